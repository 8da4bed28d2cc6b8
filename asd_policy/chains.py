"""What a batch of chains carries from round to round: points, noise, memory, secants, counts.

Shapes are static and every tensor stays where it is, so that a round can be captured as a graph.
Beyond the last step, tables and noise go on with rows of an absorbing step (a = σ = 0, b = 1): a
window that reaches past the end accepts them all and moves nothing.
"""

from __future__ import annotations

import functools
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from asd_policy.schedule import Schedule

PAIRS = 6  # secants that a chain keeps
RIDGE = 0.05  # of their regression, on pairs scaled to unit displacement


class Tables:
    """A schedule's coefficients on a device, ``extra`` absorbing steps included (R = K + extra).

    Attributes:
        a, b, sigma, c: (R,) the step's coefficients.
        delta: (R,) a/σ, which makes δ of draft minus target; 0 where there is nothing to decide.
        carry, draft, noise: (R+1, R+1) and twice (R+1, R). Unrolled, x[n+1] = a·d + b·x + σ·ξ
            makes the point at step p, from the one at n, the sum of carry[p, n]·x[n] and, for
            every q from n to p−1, of draft[p, q]·d[q] + noise[p, q]·ξ[q]. A window of proposals is
            thus one small matrix product.
    """

    def __init__(self, schedule: Schedule, extra: int, like: Tensor) -> None:
        self.num_steps, self.rows = schedule.num_steps, schedule.num_steps + extra
        host = functools.partial(torch.zeros, dtype=torch.float64, device="cpu")
        pad = host(extra)
        a, b, sigma, c = (
            torch.cat([t, pad + fill])
            for t, fill in (
                (schedule.a, 0), (schedule.b, 1), (schedule.sigma, 0), (schedule.c, 0),
            )
        )  # fmt: skip
        decided = torch.arange(self.rows, device="cpu") < self.num_steps - 1
        delta = torch.where(decided, a / sigma.clamp(min=1e-300), 0.0)
        carry = host((self.rows + 1, self.rows + 1))
        carry[0, 0] = 1
        for p in range(self.rows):
            carry[p + 1] = carry[p] * b[p]
            carry[p + 1, p + 1] = 1
        behind = carry[:, 1:].tril(-1)  # [p, q] = Π_{q<m<p} b[m] for q < p
        self.a, self.b, self.sigma, self.c = (t.to(like) for t in (a, b, sigma, c))
        self.delta = delta.to(like)
        self.carry = carry.to(like)
        self.draft, self.noise = (behind * a).to(like), (behind * sigma).to(like)


_Kind = tuple[int, torch.dtype, torch.device]
_made: WeakKeyDictionary[Schedule, dict[_Kind, Tables]] = WeakKeyDictionary()


def make_tables(schedule: Schedule, extra: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables of a schedule, made once, and kept as long as it is: they are large."""
    tables = _made.setdefault(schedule, {})
    kind = extra, dtype, device
    if kind not in tables:
        tables[kind] = Tables(schedule, extra, torch.empty(0, dtype=dtype, device=device))
    return tables[kind]


class Paths:
    """The last proposals of every step, where proposals rejoin them (:mod:`asd_policy.rejoin`).

    Attributes:
        point: (B, R, D) at every step, where the last proposal from the step before ended; the
            current point at n. mean, draft: (B, R, D) of the last proposal from every step.
        met: (B, R) whether ``Chains.value`` is the network's at ``point``.
        end: (B,) step after the last of the window.
    """

    def __init__(self, batch: int, rows: int, like: Tensor) -> None:
        dim = like.shape[-1]
        self.point, self.mean, self.draft = (like.new_zeros(batch, rows, dim) for _ in range(3))
        self.met = torch.zeros((batch, rows), dtype=torch.bool, device=like.device)
        self.end = torch.zeros(batch, dtype=torch.int64, device=like.device)


class Chains:
    """B chains of D numbers each, K steps, windows of up to θ steps. Changed in place.

    Row ``chain·R + step`` of the (B, R, …) tensors belongs to a step; R = K + θ + 1. Of the memory,
    nothing is read again but what belongs to the window and to the step before it: with ``lean``,
    rows ``step mod (θ + 2)`` hold that and no more (R' = θ + 2 in place of R), and the noise stays
    where it was given. Samples are the same, bit for bit.

    Attributes:
        x: (B, D) current points; samples once finished. n: (B,) steps taken.
        noise: (B, R, D) ξ; lean, (B, K, D), on any device, of the chunk that is drawn.
        log_uniform: (B, R) log u.
        value, point: (B, R or R', D) the last x̂0 of every step and where it was evaluated.
        last: (B,) furthest step ever evaluated (−1: none). All from n to there are known.
        fresh: (B,) whether x̂0 at step n was evaluated at x itself.
        displacement, residual: (B, P, D) secant pairs Δx and Δx̂0 − αΔx, scaled to ‖Δx‖ = 1; zero
            where there is none yet. pushed: (B,) pairs so far.
        slopes: (R,) α by step, from earlier chunks.
        calls, evaluations: (B,) network calls and rows. accepted, decided: (B, R) counts.
        cross, square: (B, R) ⟨Δx, Δx̂0⟩ and ‖Δx‖² of the last two evaluations of a step;
            learned: (2, R) float64 their sums over decided steps.
        bad: (B,) first step at which the network was not finite (−1: none).
        paths: of chains that rejoin them, else None.
    """

    def __init__(
        self,
        schedule: Schedule,
        batch: int,
        dim: int,
        window: int,
        like: Tensor,
        rejoin: bool = False,
        lean: bool = False,
    ) -> None:
        assert not (rejoin and lean), "paths are rejoined beyond the window"
        schedule.check_speculation("ASD")
        self.batch, self.dim, self.window, self.num_steps = batch, dim, window, schedule.num_steps
        self.tables = make_tables(schedule, window + 1, like.dtype, like.device)
        rows = self.tables.rows
        self.lean, self.kept = lean, window + 2 if lean else rows
        self.x = like.new_zeros(batch, dim)
        self.noise = like.new_zeros(batch, 0 if lean else rows, dim)
        self.value, self.point = (like.new_zeros(batch, self.kept, dim) for _ in range(2))
        self.log_uniform = like.new_zeros(batch, rows)
        self.cross, self.square = like.new_zeros(2, batch, rows).unbind()
        self._secants = like.new_zeros(2, batch, PAIRS, dim)
        self.displacement, self.residual = self._secants.unbind()
        self.slopes = like.new_zeros(rows)
        self._loaded_slopes: Tensor | None = None
        whole = functools.partial(torch.zeros, dtype=torch.int64, device=like.device)
        # One block, so that one copy brings all of it to the host.
        self.counts = whole(batch * (6 + 2 * rows))
        marks, counts = self.counts.split([6 * batch, 2 * batch * rows])
        self.last, self.bad, self.n, self.pushed, self.calls, self.evaluations = marks.view(
            6, batch
        ).unbind()
        self.accepted, self.decided = counts.view(2, batch, rows).unbind()
        self.fresh = torch.zeros(batch, dtype=torch.bool, device=like.device)
        self.learned = torch.zeros((2, rows), dtype=torch.float64, device=like.device)
        self.chain = torch.arange(batch, device=like.device).unsqueeze(1)
        self.position = torch.arange(rows, device=like.device)
        self.paths = Paths(batch, rows, self.x) if rejoin else None
        self.reset()

    def load(self, initial: Tensor, steps: Tensor, log_uniform: Tensor, slopes: Tensor) -> None:
        """Take a chunk's (B, D), (B, K, D), (B, K) of noise and (K,) slopes."""
        size = self.num_steps
        self.x.copy_(initial)
        if self.lean:
            self.noise = steps
        else:
            self.noise[:, :size].copy_(steps)
        self.log_uniform[:, :size].copy_(log_uniform)
        if slopes is not self._loaded_slopes:  # they seldom change, and come from the host
            self.slopes[:size].copy_(slopes)
            self._loaded_slopes = slopes

    def reset(self) -> None:
        """Forget the last chunk, but for its points and noise. No synchronization."""
        for tensor in (self.counts, self._secants, self.fresh, self.value[:, 0], self.learned):
            tensor.zero_()
        self.counts[: 2 * self.batch].fill_(-1)  # last, bad
        if self.paths is not None:
            self.paths.met.zero_()
            self.paths.point[:, 0].copy_(self.x)

    def forget_noise(self) -> None:
        """Let go of noise that was not copied."""
        if self.lean:
            self.noise = self.x.new_zeros(self.batch, 0, self.dim)

    def steps(self, width: int, ahead: int = 0) -> Tensor:
        """(B, width) the steps from n + ``ahead`` on; those past K−1 are absorbing."""
        return self.n.unsqueeze(1) + self.position[ahead : ahead + width]

    def rows(self, steps: Tensor) -> Tensor:
        """(B, W) steps → (B·W,) rows of the flattened (B·R, …) tensors."""
        return (steps + self.chain * self.tables.rows).view(-1)

    def memory_rows(self, steps: Tensor) -> Tensor:
        """(B, W) steps → (B·W,) rows of the flattened memory, ``value`` and ``point``."""
        if not self.lean:
            return self.rows(steps)
        return (steps % self.kept + self.chain * self.kept).view(-1)

    def noise_of(self, steps: Tensor) -> Tensor:
        """(B, W) steps → (B, W, D) ξ. (Lean, of absorbing steps that of the last, which counts for
        nothing there.)"""
        if not self.lean:
            return self.take(self.noise, self.rows(steps), steps.shape[1])
        where = self.chain, steps.clamp(max=self.num_steps - 1)
        return self.noise[tuple(index.to(self.noise.device) for index in where)].to(self.x)

    def take(self, tensor: Tensor, rows: Tensor, width: int) -> Tensor:
        """Rows of a (B, R, …) tensor as (B, width, …)."""
        taken = tensor.flatten(0, 1).index_select(0, rows)
        return taken.view(self.batch, width, *tensor.shape[2:])
