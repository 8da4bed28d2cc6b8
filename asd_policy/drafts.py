"""Drafts: guesses of x̂0 along the chain, made from what the network has already returned.

The draft for step n may depend on the noise ξ[0…n−1] and the uniforms u[0…n−1] only (and on
anything from outside the chunk): then every coupled step has the target's law (Hu et al., 2025).
Memory and secant pairs hold evaluations at steps up to n, made at points built from ξ[0…n−1];
slopes come from earlier chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.denoiser import Denoiser
from asd_policy.schedule import Schedule

DRAFTS = ("secant", "slope", "memory", "frozen")
_PASSES = {"secant": 2, "slope": 2, "memory": 0, "frozen": 0}


class Tables:
    """Coefficients of a schedule for a scan over a window, on the chain's device.

    With g[n] = Π_{i<n} b[i], the recurrence x[n+1] = a·d + b·x + σ·ξ is a cumulative sum:
    x[n+1]/g[n+1] = x[n]/g[n] + (a[n]·d + σ[n]·ξ)/g[n+1], the stochastic-localization coordinate
    up to a factor. The last step, where b may be zero, needs no draft and has weight zero.
    """

    def __init__(self, schedule: Schedule, like: Tensor) -> None:
        self.num_steps = schedule.num_steps
        g = torch.cat([torch.ones(1, dtype=torch.float64), schedule.b.cumprod(0)])
        last = torch.zeros(1, dtype=torch.float64)
        inner = slice(0, self.num_steps - 1)
        draft_weight = torch.cat([schedule.a[inner] / g[1:-1], last])
        noise_weight = torch.cat([schedule.sigma[inner] / g[1:-1], last])
        # δ = (a/σ)·(draft − target); the last step's outcome is the target's own.
        delta = torch.cat([schedule.a[inner] / schedule.sigma[inner], last])
        self.a, self.b, self.sigma = (t.to(like) for t in (schedule.a, schedule.b, schedule.sigma))
        self.noise_weight = noise_weight.to(like)
        self.start = (1 / g[:-1]).to(like)  # 1/g[n] at the window's first point
        # Columns, by step: weight of the draft, g of the next point, draft-to-target scale.
        self.window = torch.stack([draft_weight, g[1:], delta], 1).to(like)


@dataclass(frozen=True)
class Window:
    """The steps that a round looks at; W positions for each of B chains.

    Attributes:
        steps: (B, W) step of each position, at most K−1. valid: (B, W) false past the last step.
        flat: (B·W,) chain·K + step. draft_weight, next_scale, delta_scale: (B, W, 1) tables.
        noise: (B, W, D) ξ. scaled_noise: (B, W, D) σ·ξ/g.
        x: (B, D) the current points. y: (B, 1, D) the same over g.
    """

    steps: Tensor
    valid: Tensor
    flat: Tensor
    draft_weight: Tensor
    next_scale: Tensor
    delta_scale: Tensor
    noise: Tensor
    scaled_noise: Tensor
    x: Tensor
    y: Tensor

    def scan(self, drafts: Tensor) -> Tensor:
        """(B, W, D) drafts → (B, W+1, D) points: the current one and every proposal."""
        y = torch.addcmul(self.scaled_noise, self.draft_weight, drafts)
        y[:, :1] += self.y
        points = y.cumsum(1).mul_(self.next_scale)
        return torch.cat([self.x.unsqueeze(1), points], 1)


class Memory:
    """The last x̂0 of every step of every chain, and the point where it was evaluated."""

    def __init__(self, batch: int, num_steps: int, like: Tensor) -> None:
        dim = like.shape[-1]
        self.value = like.new_zeros(batch * num_steps, dim)
        self.point = like.new_zeros(batch * num_steps, dim)
        self.known = torch.zeros(batch * num_steps, dtype=torch.bool, device=like.device)
        # Furthest step that the last round evaluated, as chain·K + step.
        self.last = torch.arange(batch, device=like.device) * num_steps

    def store(self, flat: Tensor, points: Tensor, values: Tensor) -> None:
        """Keep x̂0 ``values`` (N, D) evaluated at ``points`` (N, D), rows ``flat`` (N,)."""
        self.value[flat] = values
        self.point[flat] = points
        self.known[flat] = True


class Secants:
    """Recent pairs (Δx, Δx̂0 − αΔx), one for each rejection, and what they predict.

    A displacement z is regressed on the stored Δx by ridge regression, and the coefficients are
    applied to the stored residuals: z ↦ (z Δxᵀ)(Δx Δxᵀ + λI)⁻¹ R, with every pair scaled to
    ‖Δx‖ = 1.
    """

    def __init__(self, batch: int, like: Tensor, pairs: int = 6, ridge: float = 0.05) -> None:
        dim = like.shape[-1]
        self.displacement = like.new_zeros(batch, pairs, dim)
        self.residual = like.new_zeros(batch, pairs, dim)
        self._ridge = ridge * torch.eye(pairs, dtype=like.dtype, device=like.device)
        self._turn = 0

    def push(self, displacement: Tensor, residual: Tensor, usable: Tensor) -> None:
        """Put one pair (B, D), (B, D) of each chain in place of its oldest; (B,) usable or not."""
        square = (displacement * displacement).sum(-1, keepdim=True)
        scale = square.rsqrt()
        keep = usable.unsqueeze(-1) & (square > 1e-12)
        slot = self._turn % self.displacement.shape[1]
        self.displacement[:, slot] = torch.where(keep, displacement * scale, 0.0)
        self.residual[:, slot] = torch.where(keep, residual * scale, 0.0)
        self._turn += 1

    def solve(self) -> Tensor | None:
        """(B, pairs, D) coefficients (Δx Δxᵀ + λI)⁻¹ R; None before the first pair."""
        if not self._turn:
            return None
        gram = self.displacement @ self.displacement.mT + self._ridge
        return torch.linalg.solve(gram, self.residual)

    def correct(self, drafts: Tensor, displacement: Tensor, coefficients: Tensor) -> Tensor:
        """Add the predicted residuals of (B, W, D) displacements to the drafts."""
        weights = displacement @ self.displacement.mT
        return torch.baddbmm(drafts, weights, coefficients)


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
    if kind == "frozen":
        first = window.flat.view(window.steps.shape)[:, 0]
        source = torch.where(memory.known[first], first, memory.last)
        drafts = memory.value[source].unsqueeze(1).expand_as(window.noise)
        return window.scan(drafts), drafts
    batch, width = window.steps.shape
    known = memory.known[window.flat].view(batch, width, 1)
    flat = window.flat.view(batch, width)
    source = torch.where(known[..., 0], flat, memory.last.unsqueeze(1)).view(-1)
    base = memory.value[source].view(batch, width, -1)
    points, drafts = window.scan(base), base
    if not _PASSES[kind]:
        return points, drafts
    origin = memory.point[window.flat].view(batch, width, -1)
    slope = torch.where(known, slopes[window.steps].unsqueeze(-1), 0.0)
    coefficients = secants.solve() if kind == "secant" else None
    # Where nothing is known yet, the corrected draft of the furthest known step is carried on.
    carried = (memory.last - flat[:, 0]).clamp(0, width - 1)
    rows = torch.arange(batch, device=carried.device)
    for _ in range(_PASSES[kind]):
        displacement = points[:, :-1] - origin
        drafts = torch.addcmul(base, slope, displacement)
        if coefficients is not None:
            drafts = secants.correct(drafts, displacement * known, coefficients)
        drafts = denoiser.clip(drafts)
        drafts = torch.where(known, drafts, drafts[rows, carried].unsqueeze(1))
        points = window.scan(drafts)
    return points, drafts
