"""Autospeculative decoding: the exact DDPM chain in far fewer sequential network calls.

Each round guesses the next W steps, evaluates the network on all of them in one batch, and couples
step by step until the first rejection, whose outcome is still an exact sample (Hu, Das, Sadigh &
Anari, ICML 2025, arXiv 2505.03983). With ``calls_per_round=2`` the current point is evaluated
first, as in the paper; with 1 it is only the first row of the batch, so that a round costs one
call and the calls never exceed K.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asd_policy.coupling import accepts, reflect
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import Memory, Secants, Window, propose, tables
from asd_policy.samplers.calibration import Calibration, SlopeSums
from asd_policy.samplers.result import Clock, Noise, Stats
from asd_policy.schedule import Schedule


class _Run:
    """One batch of B chains on its way from noise to samples.

    Attributes:
        x: (B, D) current points; samples once finished. n: (B,) steps taken (host).
        fresh: (B,) whether the memory at step n was evaluated at x itself (host).
    """

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
        batch, self.num_steps, dim = noise.steps.shape
        self.x, self.device = noise.initial, noise.initial.device
        self.denoiser, self.draft, self.width = denoiser, draft, window
        self.first_call = calls_per_round == 2
        self.tables = tables(schedule, self.x.dtype, self.device)
        self.noise, self.log_uniform = noise.steps.reshape(-1, dim), noise.log_uniform.reshape(-1)
        self.n = np.zeros(batch, dtype=np.int64)
        self.fresh = np.zeros(batch, dtype=bool)
        self.calls, self.evaluations = np.zeros((2, batch), dtype=np.int64)
        self.accepted, self.decided = np.zeros((2, batch, self.num_steps), dtype=np.int64)
        self.memory = Memory(batch, self.num_steps, self.x)
        self.secants = Secants(batch, self.x)
        self.slopes = calibration.slopes(self.num_steps).to(self.x)
        self.sums = None if calibration.frozen else SlopeSums(self.num_steps)
        self.clock = Clock(self.device)

    def index(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.device)

    def round(self) -> None:
        """Draft, one network call on the whole window, couple, advance."""
        if self.first_call:
            self.evaluate_current()
        width = min(self.width, self.num_steps - int(self.n.min()))
        window = Window.ahead(self.x, self.n, width, self.noise, self.tables)
        before = None if self.sums is None else self.memory.read(window)
        points, drafts = propose(
            self.draft, window, self.memory, self.secants, self.slopes, self.denoiser
        )
        if self.first_call:
            targets = self._targets_after_first(window, points)
        else:
            targets = self.evaluate(points[:, :-1], window.steps, window.valid)
        decided = self.advance(window, points, drafts, targets)
        if self.sums is not None and before is not None:
            self.sums.add(window.steps, decided, before, points[:, :-1], targets)
        self.clock.lap("verify")

    def evaluate(self, points: Tensor, steps: np.ndarray, valid: np.ndarray) -> Tensor:
        """x̂0 (B, W, D) at points (B, W, D) where ``valid``, remembered; 0 elsewhere.

        One network call. Where a chain's current step was evaluated before, at the guess that a
        rejection has since replaced, the difference becomes a secant pair.
        """
        batch, width = steps.shape
        rows = np.flatnonzero(valid)
        chain, step = rows // width, steps.reshape(-1)[rows]
        flat = chain * self.num_steps + step
        at, everywhere = points.reshape(batch * width, -1), len(rows) == batch * width
        if not everywhere:
            picks = self.index(rows)
            at = at.index_select(0, picks)
        index = self.index(flat)
        self.clock.lap("draft")
        x0 = self.denoiser(at, self.index(step), self.index(chain))
        self.clock.lap("network")
        targets = x0 if everywhere else x0.new_zeros(valid.size, at.shape[1])
        if not everywhere:
            targets.index_copy_(0, picks, x0)
        targets = targets.view(points.shape)
        if self.draft == "secant":
            self._add_secant(steps[:, 0], valid[:, 0], targets[:, 0])
        self.memory.store(flat, index, at, x0)
        self.calls += valid.any(1)
        self.evaluations += valid.sum(1)
        return targets

    def _add_secant(self, steps: np.ndarray, valid: np.ndarray, x0: Tensor) -> None:
        """How x̂0 (B, D) at the current points differs from the memory, beyond the slope."""
        rows = np.arange(len(steps)) * self.num_steps + steps
        usable = self.memory.known[rows] & valid & (steps == self.n)
        if not usable.any():
            return
        index = self.index(rows)
        displacement = self.x - self.memory.point.index_select(0, index)
        slope = self.slopes.index_select(0, self.index(steps)).unsqueeze(1)
        change = x0 - self.memory.value.index_select(0, index)
        self.secants.push(
            displacement, torch.addcmul(change, slope, displacement, value=-1), usable
        )

    def evaluate_current(self) -> None:
        """The paper's first call: x̂0 at the current point of every chain that lacks it."""
        need = ~self.fresh & (self.n < self.num_steps)
        if need.any():
            steps = np.minimum(self.n, self.num_steps - 1)
            self.evaluate(self.x.unsqueeze(1), steps[:, None], need[:, None])

    def _targets_after_first(self, window: Window, points: Tensor) -> Tensor:
        """Targets when the first is known: evaluates positions 1 … W, the endpoint included."""
        first = self.memory.value.index_select(0, self.index(window.flat[:, 0])).unsqueeze(1)
        ahead = window.steps + 1
        valid = window.valid & (ahead < self.num_steps)
        if not valid.any():
            return first.expand_as(window.noise)
        later = self.evaluate(points[:, 1:], np.minimum(ahead, self.num_steps - 1), valid)
        return torch.cat([first, later[:, :-1]], 1)

    def advance(
        self, window: Window, points: Tensor, drafts: Tensor, targets: Tensor
    ) -> np.ndarray:
        """Couple every position, stop at the first rejection, move on.

        Returns:
            (B, W) whether the draft at a position was decided upon.
        """
        scale = self.tables.delta.index_select(0, self.index(window.steps.reshape(-1)))
        delta = (drafts - targets).mul_(scale.view(*window.steps.shape, 1))
        log_uniform = self.log_uniform.index_select(0, window.index).view(window.steps.shape)
        stands = accepts(window.noise, delta, log_uniform).cpu().numpy()
        # The last step has no draft to decide on: its outcome is its target's.
        inner = window.steps < self.num_steps - 1
        run = np.logical_and.accumulate((stands | ~inner) & window.valid, axis=1)
        length, count = run.sum(1), window.valid.sum(1)
        active, rejected = count > 0, length < count
        stop = np.maximum(np.minimum(length, count - 1), 0)
        chains = np.arange(len(stop))
        at = window.steps[chains, stop]
        final = active & ~rejected & (at == self.num_steps - 1)
        self._move(window, (points, targets, delta), stop, active & ~rejected, rejected | final)
        decided = (np.arange(run.shape[1]) <= stop[:, None]) & inner & window.valid
        self._count(window.steps, run & decided, decided)
        self.n = np.where(active, at + 1, self.n)
        self.fresh = active & ~rejected & ~final & self.first_call
        furthest = window.steps[chains, np.maximum(count - 1, 0)] + self.first_call
        rows = chains * self.num_steps + np.minimum(furthest, self.num_steps - 1)
        self.memory.last = np.where(active, rows, self.memory.last)
        return decided

    def _move(
        self,
        window: Window,
        found: tuple[Tensor, Tensor, Tensor],
        stop: np.ndarray,
        stood: np.ndarray,
        exact: np.ndarray,
    ) -> None:
        """New current points: the last proposal, or where ``exact``, the target's own sample."""
        points, targets, delta = found
        batch, width = stop.shape[0], window.steps.shape[1]
        chains = np.flatnonzero(stood & ~exact)
        if len(chains):
            rows = self.index(chains * (width + 1) + stop[chains] + 1)
            proposals = points.reshape(batch * (width + 1), -1).index_select(0, rows)
            self.x = _put(self.x, chains, proposals)
        chains = np.flatnonzero(exact)
        if not len(chains):
            return
        rows = self.index(chains * width + stop[chains])
        target, noise, gap = (
            t.reshape(batch * width, -1).index_select(0, rows)
            for t in (targets, window.noise, delta)
        )
        rows = self.index(chains * (width + 1) + stop[chains])
        origin = points.reshape(batch * (width + 1), -1).index_select(0, rows)
        # At the last step, where nothing was drafted, δ is zero and the noise stays as it is.
        noise = reflect(noise, gap)
        steps = self.index(window.steps[chains, stop[chains]])
        a, b, sigma = self.tables.step.index_select(0, steps).unsqueeze(2).unbind(1)
        self.x = _put(self.x, chains, (a * target).addcmul_(b, origin).addcmul_(sigma, noise))

    def _count(self, steps: np.ndarray, accepted: np.ndarray, decided: np.ndarray) -> None:
        for total, which in ((self.accepted, accepted), (self.decided, decided)):
            chain, position = np.nonzero(which)
            total[chain, steps[chain, position]] += 1


def _put(x: Tensor, chains: np.ndarray, values: Tensor) -> Tensor:
    """x (B, D) with the rows ``chains`` replaced; a new tensor."""
    if len(chains) == len(x):
        return values
    return x.index_copy(0, torch.from_numpy(chains).to(x.device), values)


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
        calibration: slopes from earlier chunks; unless frozen, this chunk's are added at its end.

    Returns:
        (B, D) samples, distributed as those of ``sample_ddpm``, and their statistics.

    Raises:
        NonFiniteError: the network returned a NaN or an infinity.
    """
    run = _Run(denoiser, schedule, noise, draft, calls_per_round, window, calibration)
    rounds = 0
    while int(run.n.min()) < run.num_steps:
        run.round()
        rounds += 1
        assert rounds <= run.num_steps, "every round must advance every chain"
    run.clock.lap("other")
    stats = Stats(
        "asd",
        window,
        calls=torch.from_numpy(run.calls),
        evaluations=torch.from_numpy(run.evaluations),
        accepted=torch.from_numpy(run.accepted),
        decided=torch.from_numpy(run.decided),
        seconds=run.clock.seconds(),
    )
    calibration.update(run.sums, stats)
    return run.x, stats
