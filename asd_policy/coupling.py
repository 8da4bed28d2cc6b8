"""Reflection-maximal coupling of two Gaussians with one covariance.

A draft and a target step leave the same point with means that differ by σ·δ and share the noise
scale σ. The coupling keeps the draft's proposal as often as any coupling can, 2Φ(−‖δ‖/2), and
returns an exact sample of the target either way (Hu et al., 2025, arXiv 2505.03983, "Gaussian
rejection sampler"; Bou-Rabee, Eberle & Zimmer, 2020, on reflection coupling).
"""

from __future__ import annotations

import torch
from torch import Tensor

EQUAL = 1e-10  # ‖δ‖ up to which draft and target count as equal


def accepts(noise: Tensor, delta: Tensor, log_uniform: Tensor) -> Tensor:
    """Whether the draft's proposal, made with ``noise``, stands.

    log u ≤ log p(proposal)/q(proposal) = −⟨ξ, δ⟩ − ½‖δ‖².

    Args:
        noise: (…, D) standard normal ξ of the proposal.
        delta: (…, D) (draft mean − target mean)/σ.
        log_uniform: (…) log of a uniform variate.

    Returns:
        (…) booleans. A ratio that is not finite is never an accept; δ = 0 always is.
    """
    return stands(log_ratio(noise, delta), log_uniform)


def log_ratio(noise: Tensor, delta: Tensor) -> Tensor:
    """(…) log p(proposal)/q(proposal), up to sign: −⟨ξ + δ/2, δ⟩ in one reduction."""
    return -torch.add(noise, delta, alpha=0.5).mul_(delta).sum(-1)


def stands(ratio: Tensor, log_uniform: Tensor) -> Tensor:
    """Whether log u ≤ the log ratio, which is finite; δ = 0 gives 0, which no log u exceeds."""
    # A NaN compares false; ∞ cannot come from finite inputs and must not be an accept.
    return (log_uniform <= ratio) & (ratio < torch.inf)


def left_over(log_uniform: Tensor, ratio: Tensor, accepted: Tensor) -> Tensor:
    """The log of what a uniform u is good for once it has decided whether u ≤ p.

    u/p where it was, (u − p)/(1 − p) where it was not: uniform given the decision, p and all that p
    was made of. (…) for (…) log u, log ratio and decision; p is the ratio, at most 1, and 0 where
    that is not finite.
    """
    least = torch.finfo(ratio.dtype).eps
    log_p = torch.where(ratio < torch.inf, ratio, -torch.inf).clamp(max=0)
    u, p = log_uniform.exp(), log_p.exp()
    above = ((u - p) / (1 - p).clamp(min=least)).clamp(least, 1)
    return torch.where(accepted, log_uniform - log_p, above.log())


def reflect(noise: Tensor, delta: Tensor) -> Tensor:
    """The noise that a rejected proposal's target sample has: ξ mirrored across δ's hyperplane.

    ξ − 2e⟨e, ξ⟩ with e = δ/‖δ‖; (…, D) → (…, D). Where ‖δ‖ ≤ 1e-10 the noise is unchanged, and
    where ‖δ‖² is not finite: a draft that far off is never kept, and ξ owes it nothing.
    """
    square = (delta * delta).sum(-1, keepdim=True)
    inner = (noise * delta).sum(-1, keepdim=True)
    reflected = torch.addcmul(
        noise, delta, inner / square.masked_fill(square <= EQUAL**2, torch.inf), value=-2
    )
    return torch.where(square < torch.inf, reflected, noise)
