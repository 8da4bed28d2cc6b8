"""Drafts: guesses of x̂0 along the chain, made from what the network has already returned.

The draft for step n may depend on the noise ξ[0…n−1] and the uniforms u[0…n−1] only (and on
anything from outside the chunk): then every coupled step has the target's distribution (Hu et al.,
2025). Memory and secant pairs hold evaluations at steps up to n, made at points built from
ξ[0…n−1]; slopes come from earlier chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.chains import PAIRS, RIDGE, Chains, Tables
from asd_policy.denoiser import Denoiser

DRAFTS = ("secant", "slope", "memory", "frozen")


@dataclass(frozen=True)
class Form:
    """Which autospeculative decoding.

    Attributes:
        draft: one of ``DRAFTS``. calls_per_round: 1, or 2 (the current point on its own first).
        learn: keep what slopes are estimated from.
        rejoin: let proposals return to points that are evaluated (:mod:`asd_policy.rejoin`).
    """

    draft: str
    calls_per_round: int = 1
    learn: bool = False
    rejoin: bool = False

    @property
    def ahead(self) -> int:
        """Steps from the current one to the first of a round's batch."""
        return self.calls_per_round - 1

    @property
    def secants(self) -> bool:
        """Whether secant pairs are kept."""
        return self.draft == "secant"


def propose(chains: Chains, denoiser: Denoiser, form: Form, width: int) -> tuple[Tensor, Tensor]:
    """Draft every step of a window without a loop over it.

    Slope and secant corrections need the points at which drafts are made, which depend on the
    drafts before them. Any draft that looks only backwards is allowed, so provisional points
    serve: scan with the memory, correct at the points found, scan again. (On the shipped networks
    a second correction saved no calls.)

    Args:
        form: its draft counts. width: steps ahead, at most the chains' window.

    Returns:
        (B, W+1, D) points (the current one first) and (B, W, D) drafts.
    """
    steps, kind = chains.steps(width), form.draft
    last = chains.last.unsqueeze(1)
    # Where nothing is known yet, the furthest known step's draft is carried on.
    source = torch.minimum(steps[:, :1].expand_as(steps) if kind == "frozen" else steps, last)
    base = chains.take(chains.value, chains.memory_rows(source.clamp(min=0)), width)
    scan = Scan(chains, chains.noise_of(steps))
    points = scan(base)
    if kind in ("memory", "frozen"):
        return points, base
    known = (steps <= last).unsqueeze(2)
    displacement = points[:, :-1] - chains.take(chains.point, chains.memory_rows(steps), width)
    displacement = displacement.masked_fill_(~known, 0.0)
    drafts = torch.addcmul(base, chains.slopes[steps].unsqueeze(2), displacement)
    if kind == "secant":
        share = torch.bmm(displacement, chains.displacement.mT)
        drafts = drafts.baddbmm_(share, secant_coefficients(chains))
    drafts = finite(denoiser.clip(drafts), base)
    carried = (source - steps[:, :1]).clamp_(min=0).unsqueeze(2)
    drafts = drafts.gather(1, carried.expand_as(drafts))
    return scan(drafts), drafts


def finite(drafts: Tensor, base: Tensor) -> Tensor:
    """The memory where a correction overflowed, as it may far ahead: 0·∞ reaches every point."""
    return torch.where(drafts.isfinite(), drafts, base)


def secant_coefficients(chains: Chains) -> Tensor:
    """(B, P, D) coefficients of the secants' residuals.

    A displacement z is regressed on the stored Δx by ridge regression, and the coefficients are
    applied to the stored residuals R: z ↦ (z Δxᵀ)(Δx Δxᵀ + λI)⁻¹ R. Empty pairs are zero and
    predict nothing.
    """
    ridge = RIDGE * torch.eye(PAIRS, dtype=chains.x.dtype, device=chains.x.device)
    gram = torch.baddbmm(ridge, chains.displacement, chains.displacement.mT)
    residual, like = chains.residual, chains.x
    if like.dtype in (torch.float16, torch.bfloat16):  # which PyTorch does not solve in
        gram, residual = gram.float(), residual.float()
    return torch.linalg.solve_ex(gram, residual)[0].to(like.dtype)


class Scan:
    """From drafts of the steps ahead to the points that they lead to."""

    def __init__(self, chains: Chains, noise: Tensor) -> None:
        """``noise``: (B, W, D) of the window's steps."""
        carry, self._weights, kicks = _blocks(chains.tables, chains.n, noise.shape[1])
        self._path = torch.baddbmm(carry * chains.x.unsqueeze(1), kicks, noise)

    def __call__(self, drafts: Tensor) -> Tensor:
        """(B, W, D) drafts → (B, W+1, D) points: the current one and every proposal."""
        return torch.baddbmm(self._path, self._weights, drafts)


def _blocks(tables: Tables, n: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the steps n (B,) … n+W−1 for their W+1 points.

    Returns:
        (B, W+1, 1) of the current point, (B, W+1, W) of the drafts and of the noises.
    """
    if len(n) == 1 and n.device.type == "cpu":  # a block as it stands
        first = int(n)
        block = slice(first, first + width + 1), slice(first, first + width)
        carry = tables.carry[block[0], first : first + 1]
        return carry[None], tables.draft[block][None], tables.noise[block][None]
    points = n.unsqueeze(1) + torch.arange(width + 1, device=n.device)
    index = points.unsqueeze(2) * tables.rows + points[:, None, :-1]
    carried = points * (tables.rows + 1) + n.unsqueeze(1)
    return (
        tables.carry.view(-1)[carried].unsqueeze(2),
        tables.draft.view(-1)[index],
        tables.noise.view(-1)[index],
    )
