"""Drafts: guesses of x̂0 along the chain, made from what the network has already returned.

The draft for step n may depend on the noise ξ[0…n−1] and the uniforms u[0…n−1] only (and on
anything from outside the chunk): then every coupled step has the target's law (Hu et al., 2025).
Memory and secant pairs hold evaluations at steps up to n, made at points built from ξ[0…n−1];
slopes come from earlier chunks.

Which steps are where is bookkeeping, done in NumPy on the host; the arithmetic on points, drafts
and noise is done by torch on the chain's device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asd_policy.denoiser import Denoiser
from asd_policy.schedule import Schedule

DRAFTS = ("secant", "slope", "memory", "frozen")
# Corrections at provisional points. On the shipped networks a second and a third pass saved no
# calls (8.9, 9.0 and 9.0 a chunk), so there is one.
_PASSES = {"secant": 1, "slope": 1, "memory": 0, "frozen": 0}


class Tables:
    """What a draft, a noise and the current point contribute to the points ahead.

    Unrolled, x[n+1] = a·d + b·x + σ·ξ makes the point at step p, from the one at n, the sum of
    Π_{n≤m<p} b[m] · x[n] and, for every q from n to p−1, Π_{q<m<p} b[m] · (a[q]·d[q] + σ[q]·ξ[q]).
    One row of these products for each p: a window of proposals is one small matrix product.
    """

    def __init__(self, schedule: Schedule, like: Tensor) -> None:
        size = schedule.num_steps
        carry = torch.zeros((size + 1, size + 1), dtype=torch.float64)  # [p, n] = Π_{n≤m<p} b[m]
        for p in range(size + 1):
            carry[p, p] = 1
            if p:
                carry[p, :p] = carry[p - 1, :p] * schedule.b[p - 1]
        behind = carry[:, 1:].tril(-1)  # [p, q] = Π_{q<m<p} b[m] for q < p
        self.size = size
        self.carry = carry.to(like).flatten()
        self.draft = (behind * schedule.a).to(like).flatten()
        self.noise = (behind * schedule.sigma).to(like).flatten()
        # δ = (a/σ)·(draft − target). The last step has no draft to decide on.
        last = torch.zeros(1, dtype=torch.float64)
        self.delta = torch.cat([schedule.a[:-1] / schedule.sigma[:-1], last]).to(like)
        self.step = torch.stack([schedule.a, schedule.b, schedule.sigma], 1).to(like)

    def blocks(self, steps: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of (B, W) consecutive steps for their W+1 points (the current one first).

        Returns:
            (B, W+1, 1) of the current point, (B, W+1, W) of the drafts and of the noises.
        """
        if len(steps) == 1:  # one chain: its window is a block as it stands
            n, width = int(steps[0, 0]), steps.shape[1]
            points, columns = slice(n, n + width + 1), slice(n, n + width)
            carry, draft, noise = (
                table.view(self.size + 1, -1)[None, points]
                for table in (self.carry, self.draft, self.noise)
            )
            return carry[:, :, n : n + 1], draft[:, :, columns], noise[:, :, columns]
        points = np.concatenate([steps, steps[:, -1:] + 1], 1)
        index = torch.from_numpy(points[:, :, None] * self.size + steps[:, None, :]).to(device)
        first = torch.from_numpy(points * (self.size + 1) + steps[:, :1]).to(device)
        shape, flat = index.shape, index.view(-1)
        return (
            self.carry.index_select(0, first.view(-1)).view(*first.shape, 1),
            self.draft.index_select(0, flat).view(shape),
            self.noise.index_select(0, flat).view(shape),
        )


@functools.lru_cache(maxsize=8)
def tables(schedule: Schedule, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables of a schedule, made once: making them takes milliseconds."""
    return Tables(schedule, torch.empty(0, dtype=dtype, device=device))


@dataclass(frozen=True)
class Window:
    """The W steps that each of B chains looks at in a round.

    Attributes:
        steps: (B, W) step of each position, at most K−1 (host). valid: (B, W) false past K−1.
        flat: (B, W) chain·K + step (host). index: (B·W,) the same on the device.
        noise: (B, W, D) ξ of the steps.
        path: (B, W+1, D) points that the noise alone leads to. weights: (B, W+1, W) of the drafts.
    """

    steps: np.ndarray
    valid: np.ndarray
    flat: np.ndarray
    index: Tensor
    noise: Tensor
    path: Tensor
    weights: Tensor

    @classmethod
    def ahead(cls, x: Tensor, n: np.ndarray, width: int, noise: Tensor, tables: Tables) -> Window:
        """The next ``width`` steps of chains at points x (B, D), steps n (B,); noise (B·K, D)."""
        size, batch = tables.size, len(n)
        steps = n[:, None] + np.arange(width)
        valid = steps < size
        steps = np.minimum(steps, size - 1)
        flat = np.arange(batch)[:, None] * size + steps
        index = torch.from_numpy(flat.reshape(-1)).to(x.device)
        ahead = noise.index_select(0, index).view(batch, width, -1)
        carry, weights, noise_weights = tables.blocks(steps, x.device)
        path = torch.baddbmm(carry * x.unsqueeze(1), noise_weights, ahead)
        return cls(steps, valid, flat, index, ahead, path, weights)

    def scan(self, drafts: Tensor) -> Tensor:
        """(B, W, D) drafts → (B, W+1, D) points: the current one and every proposal."""
        return torch.baddbmm(self.path, self.weights, drafts)


class Memory:
    """The last x̂0 of every step of every chain, and the point where it was evaluated.

    Attributes:
        value, point: (B·K, D), row chain·K + step.
        known: (B·K,) whether the row was ever evaluated (host).
        last: (B,) row of the furthest step that the last round evaluated (host).
    """

    def __init__(self, batch: int, num_steps: int, like: Tensor) -> None:
        dim = like.shape[-1]
        self.value = like.new_zeros(batch * num_steps, dim)
        self.point = like.new_zeros(batch * num_steps, dim)
        self.known = np.zeros(batch * num_steps, dtype=bool)
        self.last = np.arange(batch) * num_steps

    def read(self, window: Window) -> tuple[Tensor, Tensor, np.ndarray]:
        """Points (B, W, D), x̂0 (B, W, D) and known (B, W) of a window's steps."""
        shape = window.noise.shape
        point = self.point.index_select(0, window.index).view(shape)
        value = self.value.index_select(0, window.index).view(shape)
        return point, value, self.known[window.flat]

    def store(self, rows: np.ndarray, index: Tensor, points: Tensor, values: Tensor) -> None:
        """Keep x̂0 ``values`` (N, D) evaluated at ``points`` (N, D); ``index`` is ``rows`` (N,)."""
        self.value.index_copy_(0, index, values)
        self.point.index_copy_(0, index, points)
        self.known[rows] = True


class Secants:
    """Recent pairs (Δx, Δx̂0 − αΔx), one for each rejection, and what they predict.

    A displacement z is regressed on the stored Δx by ridge regression, and the coefficients are
    applied to the stored residuals R: z ↦ (z Δxᵀ)(Δx Δxᵀ + λ diag(Δx Δxᵀ))⁻¹ R, which is a ridge
    of λ on pairs scaled to ‖Δx‖ = 1. Empty pairs are zero and predict nothing.
    """

    def __init__(self, batch: int, like: Tensor, pairs: int = 6, ridge: float = 0.05) -> None:
        dim = like.shape[-1]
        self.displacement = like.new_zeros(batch, pairs, dim)
        self.residual = like.new_zeros(batch, pairs, dim)
        self._ridge = ridge
        self._pushed = np.zeros(batch, dtype=np.int64)

    def push(self, displacement: Tensor, residual: Tensor, usable: np.ndarray) -> None:
        """Put a pair (B, D), (B, D) in place of the oldest, in the chains where it is usable (B,).

        Each chain counts its own: its drafts must not depend on who shares its batch.
        """
        pairs, dim = self.displacement.shape[1:]
        chains = np.flatnonzero(usable)
        slots = chains * pairs + self._pushed[chains] % pairs
        index = torch.from_numpy(slots).to(displacement.device)
        if len(chains) < len(usable):
            rows = torch.from_numpy(chains).to(displacement.device)
            displacement, residual = (t.index_select(0, rows) for t in (displacement, residual))
        self.displacement.view(-1, dim).index_copy_(0, index, displacement)
        self.residual.view(-1, dim).index_copy_(0, index, residual)
        self._pushed[chains] += 1

    def solve(self) -> Tensor | None:
        """(B, pairs, D) coefficients (Δx Δxᵀ + λ diag)⁻¹ R; None before the first pair."""
        if not self._pushed.any():
            return None
        gram = torch.bmm(self.displacement, self.displacement.mT)
        gram.diagonal(dim1=1, dim2=2).mul_(1 + self._ridge).add_(1e-12)
        return torch.linalg.solve(gram, self.residual)


def propose(
    kind: str,
    window: Window,
    memory: Memory,
    secants: Secants,
    slopes: Tensor,
    denoiser: Denoiser,
) -> tuple[Tensor, Tensor]:
    """Draft every step of a window without a loop over it.

    Slope and secant corrections need the points at which drafts are made, which depend on the
    drafts before them. Any draft that looks only backwards is allowed, so provisional points
    serve: scan with the memory, correct at the points found, scan again.

    Args:
        kind: one of ``DRAFTS``. slopes: (K,) α by step, from earlier chunks.

    Returns:
        (B, W+1, D) points (the current one first) and (B, W, D) drafts.
    """
    flat, (batch, width), device = window.flat, window.steps.shape, window.path.device
    known = memory.known[flat]
    if kind == "frozen":
        source = np.where(known[:, 0], flat[:, 0], memory.last)[:, None].repeat(width, 1)
    else:
        source = np.where(known, flat, memory.last[:, None])
    rows = torch.from_numpy(source.reshape(-1)).to(device)
    base = memory.value.index_select(0, rows).view(batch, width, -1)
    points, drafts = window.scan(base), base
    if not _PASSES[kind]:
        return points, drafts
    origin = memory.point.index_select(0, window.index).view(base.shape)
    mask = torch.from_numpy(known).to(device).unsqueeze(2)
    slope = slopes.index_select(0, torch.from_numpy(window.steps.reshape(-1)).to(device))
    slope = slope.view(batch, width, 1) * mask
    coefficients = secants.solve() if kind == "secant" else None
    # Where nothing is known yet, the corrected draft of the furthest known step is carried on.
    furthest = np.minimum(np.maximum(memory.last - flat[:, 0], 0), width - 1)[:, None]
    carried = np.arange(batch)[:, None] * width + np.where(known, np.arange(width), furthest)
    carry = torch.from_numpy(carried.reshape(-1)).to(device)
    for _ in range(_PASSES[kind]):
        displacement = points[:, :-1] - origin
        drafts = torch.addcmul(base, slope, displacement)
        if coefficients is not None:
            share = torch.bmm(displacement, secants.displacement.mT).mul_(mask)
            drafts = drafts.baddbmm_(share, coefficients)
        drafts = denoiser.clip(drafts).view(batch * width, -1).index_select(0, carry)
        drafts = drafts.view(base.shape)
        points = window.scan(drafts)
    return points, drafts
