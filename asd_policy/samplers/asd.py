"""Autospeculative decoding: the exact DDPM chain in far fewer sequential network calls.

Each round guesses the next W steps, evaluates the network on all of them in one batch, and couples
step by step until the first rejection, whose outcome is still an exact sample (Hu, Das, Sadigh &
Anari, ICML 2025, arXiv 2505.03983). With ``calls_per_round=2`` the current point is evaluated
first, as in the paper; with 1 it is only the first row of the batch, so that a round costs one
call and the calls never exceed K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.coupling import accepts, reflect
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import Memory, Secants, Tables, Window, propose
from asd_policy.samplers.calibration import Calibration, SlopeSums
from asd_policy.samplers.result import Clock, Noise, Stats
from asd_policy.schedule import Schedule


@dataclass
class Chains:
    """Where each of B chains is, and what the run has cost so far.

    Attributes:
        x: (B, D) current points; samples once finished. n: (B,) steps taken.
        fresh: (B,) whether the memory at step n was evaluated at x itself.
        rejected: (B,) whether the last round ended in a rejection.
    """

    x: Tensor
    n: Tensor
    fresh: Tensor
    calls: Tensor
    evaluations: Tensor
    accepted: Tensor
    decided: Tensor

    @classmethod
    def start(cls, x: Tensor, num_steps: int) -> Chains:
        batch, device = len(x), x.device
        zeros = torch.zeros(batch, dtype=torch.long, device=device)
        counts = torch.zeros((batch, num_steps), dtype=torch.long, device=device)
        fresh = torch.zeros(batch, dtype=torch.bool, device=device)
        return cls(
            x, zeros, fresh, zeros.clone(), zeros.clone(), counts, counts.clone()
        )  # fmt: skip


class _Run:
    """One batch of chains on its way from noise to samples."""

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        noise: Noise,
        draft: str,
        calls_per_round: int,
        window: int,
        calibration: Calibration,
    ) -> None:
        batch, num_steps, dim = noise.steps.shape
        self.denoiser, self.draft, self.width = denoiser, draft, window
        self.first_call = calls_per_round == 2
        self.num_steps = num_steps
        self.tables = Tables(schedule, noise.initial)
        self.noise = noise.steps.reshape(-1, dim)
        self.scaled_noise = (self.tables.noise_weight.unsqueeze(1) * noise.steps).reshape(-1, dim)
        self.log_uniform = noise.log_uniform.reshape(-1)
        self.chains = Chains.start(noise.initial, num_steps)
        self.offset = torch.arange(batch, device=dim_device(noise)) * num_steps
        self.span = torch.arange(window, device=dim_device(noise))
        self.memory = Memory(batch, num_steps, noise.initial)
        self.secants = Secants(batch, noise.initial)
        self.slopes = calibration.slopes(num_steps).to(noise.initial)
        self.sums = SlopeSums(num_steps, noise.initial)
        self.clock = Clock(noise.initial.device)

    def window(self) -> Window:
        """The next positions of every chain; as wide as the chain that has most to go needs."""
        chains, tables = self.chains, self.tables
        width = min(self.width, self.num_steps - int(chains.n.min()))
        ahead = chains.n.unsqueeze(1) + self.span[:width]
        steps = ahead.clamp(max=self.num_steps - 1)
        flat = (self.offset.unsqueeze(1) + steps).view(-1)
        shape = (*steps.shape, -1)
        columns = tables.window[steps].unsqueeze(-1).unbind(2)
        return Window(
            steps,
            ahead < self.num_steps,
            flat,
            *columns,
            noise=self.noise[flat].view(shape),
            scaled_noise=self.scaled_noise[flat].view(shape),
            x=chains.x,
            y=(chains.x * tables.start[steps[:, :1]]).unsqueeze(1),
        )

    def evaluate(self, points: Tensor, steps: Tensor, valid: Tensor) -> Tensor:
        """x̂0 at (B, W, D) points where ``valid``, remembered; 0 elsewhere. Counts the call."""
        batch, width = steps.shape
        rows = valid.reshape(-1).nonzero().squeeze(1)
        chain = rows.div(width, rounding_mode="floor")
        at, step = points.reshape(batch * width, -1)[rows], steps.reshape(-1)[rows]
        flat = chain * self.num_steps + step
        self.clock.lap("draft")
        x0 = self.denoiser(at, step, chain)
        self.clock.lap("network")
        self._learn(chain, step, flat, at, x0)
        self.memory.store(flat, at, x0)
        self.chains.calls += valid.any(1)
        self.chains.evaluations += valid.sum(1)
        targets = x0.new_zeros(batch * width, x0.shape[-1])
        targets[rows] = x0
        return targets.view(batch, width, -1)

    def _learn(self, chain: Tensor, step: Tensor, flat: Tensor, at: Tensor, x0: Tensor) -> None:
        """Slope sums for later chunks, from every step that was evaluated before."""
        known = self.memory.known[flat].unsqueeze(-1)
        displacement = (at - self.memory.point[flat]) * known
        change = x0 - self.memory.value[flat]
        self.sums.add(step, displacement, change)

    def evaluate_current(self) -> None:
        """The paper's first call: x̂0 at the current point of every chain that lacks it."""
        chains = self.chains
        need = (~chains.fresh & (chains.n < self.num_steps)).unsqueeze(1)
        if need.any():
            steps = chains.n.clamp(max=self.num_steps - 1).unsqueeze(1)
            before = self._before(self.offset + steps[:, 0])
            targets = self.evaluate(chains.x.unsqueeze(1), steps, need)
            self._add_secant(before, steps[:, 0], chains.x, targets[:, 0], need[:, 0])

    def _before(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        memory = self.memory
        return memory.point[flat], memory.value[flat], memory.known[flat]

    def _add_secant(
        self,
        before: tuple[Tensor, Tensor, Tensor],
        steps: Tensor,
        x: Tensor,
        x0: Tensor,
        usable: Tensor,
    ) -> None:
        """At the step after a rejection: how x̂0 changed between the guess and the true point."""
        point, value, known = before
        displacement = x - point
        residual = x0 - value - self.slopes[steps].unsqueeze(-1) * displacement
        self.secants.push(displacement, residual, known & usable)

    def round(self) -> None:
        """Draft, one network call on the whole window, couple, advance."""
        if self.first_call:
            self.evaluate_current()
        window = self.window()
        points, drafts = propose(
            self.draft, window, self.memory, self.secants, self.slopes, self.denoiser
        )
        before = self._before(window.flat.view(window.steps.shape)[:, 0])
        if self.first_call:
            targets = self._targets_after_first(window, points, before[1])
        else:
            targets = self.evaluate(points[:, :-1], window.steps, window.valid)
            if self.draft == "secant":
                start = window.steps[:, 0]
                self._add_secant(before, start, self.chains.x, targets[:, 0], window.valid[:, 0])
        self.advance(window, points, drafts, targets)
        self.clock.lap("verify")

    def _targets_after_first(self, window: Window, points: Tensor, first: Tensor) -> Tensor:
        """Targets when the first is known: evaluates positions 1 … W, the endpoint included."""
        ahead = window.steps + 1
        valid = window.valid & (ahead < self.num_steps)
        if not valid.any():
            return first.unsqueeze(1).expand_as(window.noise)
        later = self.evaluate(points[:, 1:], ahead.clamp(max=self.num_steps - 1), valid)
        return torch.cat([first.unsqueeze(1), later[:, :-1]], 1)

    def advance(self, window: Window, points: Tensor, drafts: Tensor, targets: Tensor) -> None:
        """Couple every position, stop at the first rejection, move on."""
        chains, tables = self.chains, self.tables
        delta = window.delta_scale * (drafts - targets)
        stands = accepts(window.noise, delta, self.log_uniform[window.flat].view(delta.shape[:2]))
        # The last step has no draft to decide on: its outcome is its target's.
        inner = window.steps < self.num_steps - 1
        run = (stands | ~inner).logical_and_(window.valid).cumprod(1)
        length = run.sum(1)
        count = window.valid.sum(1)
        stop = torch.minimum(length, count - 1).clamp(min=0)
        rows = torch.arange(len(stop), device=stop.device)
        at = window.steps[rows, stop]
        rejected = length < count
        final = (at == self.num_steps - 1) & ~rejected
        noise = window.noise[rows, stop]
        mirrored = reflect(noise, delta[rows, stop])
        noise = torch.where(rejected.unsqueeze(-1), mirrored, noise)
        a, b, sigma = (t[at].unsqueeze(-1) for t in (tables.a, tables.b, tables.sigma))
        exact = a * targets[rows, stop] + b * points[rows, stop] + sigma * noise
        moved = torch.where((rejected | final).unsqueeze(-1), exact, points[rows, stop + 1])
        active = count > 0
        chains.x = torch.where(active.unsqueeze(-1), moved, chains.x)
        chains.n = torch.where(active, at + 1, chains.n)
        chains.fresh = active & ~rejected & ~final & self.first_call
        self._count(window, run.bool() & inner, stop, inner)
        furthest = window.steps[rows, (count - 1).clamp(min=0)] + self.first_call
        furthest = furthest.clamp(max=self.num_steps - 1)
        self.memory.last = torch.where(active, self.offset + furthest, self.memory.last)

    def _count(self, window: Window, accepted: Tensor, stop: Tensor, inner: Tensor) -> None:
        reached = self.span[: window.steps.shape[1]] <= stop.unsqueeze(1)
        decided = reached & inner & window.valid
        self.chains.accepted.scatter_add_(1, window.steps, (accepted & decided).long())
        self.chains.decided.scatter_add_(1, window.steps, decided.long())


def dim_device(noise: Noise) -> torch.device:
    return noise.initial.device


def sample_asd(
    denoiser: Denoiser,
    schedule: Schedule,
    noise: Noise,
    draft: str,
    calls_per_round: int,
    window: int,
    calibration: Calibration,
) -> tuple[Tensor, Stats]:
    """Autospeculative decoding.

    Args:
        denoiser: x̂0 of any rows. schedule: one with noise in every step but the last.
        noise: all randomness of the chunk.
        draft: "secant", "slope", "memory" or "frozen".
        calls_per_round: 1, or 2 (the paper's form, with ``draft="frozen"``).
        window: θ, steps guessed ahead in a round.
        calibration: slopes from earlier chunks; this chunk's are added when it is done.

    Returns:
        (B, D) samples, distributed as those of ``sample_ddpm``, and their statistics.

    Raises:
        NonFiniteError: the network returned a NaN or an infinity.
    """
    run = _Run(denoiser, schedule, noise, draft, calls_per_round, window, calibration)
    chains = run.chains
    rounds = 0
    while int(chains.n.min()) < run.num_steps:
        run.round()
        rounds += 1
        assert rounds <= run.num_steps, "every round must advance every chain"
    run.clock.lap("other")
    stats = Stats(
        "asd",
        window,
        *(t.cpu() for t in (chains.calls, chains.evaluations, chains.accepted, chains.decided)),
        seconds=run.clock.seconds(),
    )
    calibration.update(run.sums, stats)
    return chains.x, stats
