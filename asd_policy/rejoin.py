"""Rejoining: proposals that return to points where the network was evaluated already.

After a rejection the real path runs beside the one that was just evaluated, a little off, and every
later point would move with it and be evaluated again. Here a step's proposal tries to end where the
last proposal from that step ended. Let P = μ + σξ be that one, μ' the mean of the new one, and
δ = (μ − μ')/σ. Coupling the two (:mod:`asd_policy.coupling`) keeps P as often as any coupling can:
then ξ becomes ξ + δ, since P = μ' + σ(ξ + δ); otherwise ξ is reflected along δ, and the proposal is
μ' + σξ. Where P has been evaluated, and the step after it is reached again, the network's value
there is known: it is the draft and the target at once, is accepted for certain and costs no
evaluation. So a window is as long as its evaluations last, and a round may settle several steps
that would each have been a rejection.

Why the samples stay exact. Let F[m] be all that comes from outside the chunk, from x₀, and from the
noise and the uniforms of steps before m. As long as step m is not decided upon, its noise and its
uniform are, given F[m], independent, standard normal and uniform: in the beginning by how they are
drawn, and after a proposal by the following. Whether step m was proposed from before depends on how
far windows reached, that is on which points up to the one at m had been evaluated, and on the
draft, μ and μ': all in F[m]. So δ is too, and given F[m] both ξ + δ where P is kept and ξ reflected
where not make a standard normal (which is what the coupling of two Gaussians says); where δ is not
finite, ξ stays as it is. The uniform u
that has decided is used up: of it remains, given the decision and ξ, a uniform number again,
u/p where u ≤ p and (u − p)/(1 − p) where not (:func:`asd_policy.coupling.left_over`), and that
takes its place. A draft at step m is made from evaluations at points of steps up to m, which are in
F[m], as :mod:`asd_policy.drafts` asks. The decision at step m then has an ξ and a u of the right
distribution, so that the coupled step is an exact one, as without rejoining.

What must not be asked is whether P was evaluated: the point at step m + 1 has ξ[m] in it, and
evaluated are those that were not known before. (As a condition for trying, it would favour some ξ.)
Nor may a uniform decide twice: given that P was not kept, u is large. ``tests/statistical`` has
controls for both, and for trying by the noise itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.chains import Chains
from asd_policy.coupling import left_over, log_ratio, reflect, stands
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import finite, secant_coefficients


def walk(chains: Chains, denoiser: Denoiser, width: int) -> tuple[Tensor, Tensor]:
    """Propose step by step, as far as ``width`` evaluations go. Changes noise and uniforms.

    Args:
        width: evaluations, at most the chains' window.

    Returns:
        (B, W, D) points to evaluate, the current one first, and (B, W) their steps, rising; 0 and
        K where a chain needs fewer.
    """
    paths, size, n = chains.paths, chains.num_steps, chains.n
    assert paths is not None
    coefficients = secant_coefficients(chains)
    spent, going = torch.zeros_like(n), n < size
    index = chains.last.clamp(min=0).view(-1, 1, 1).expand(-1, 1, chains.dim)
    draft = chains.value.gather(1, index).squeeze(1)  # where nothing is known yet
    paths.end.copy_(n)
    on_host = n.device.type == "cpu"  # where looking costs nothing
    for m in range(int(n.min()) if on_host else 0, size):
        new = ~paths.met[:, m]
        going = going & ~(new & (spent == width))
        here = going & (n <= m)
        if on_host and not bool(going.any()):
            break
        spent = spent + (here & new)
        paths.end.add_(here)
        if m == size - 1:
            break
        found = _draft(chains, denoiser, m, draft, coefficients)
        draft = torch.where(here.unsqueeze(1), found, draft)
        _propose(chains, m, here, here & proposed_before(chains, m), draft)
    return _gather(chains, width)


def proposed_before(chains: Chains, m: int) -> Tensor:
    """(B,) whether an earlier round proposed from step m. (It did from all that are known.)"""
    return m <= chains.last


def to_evaluate(chains: Chains) -> Tensor:
    """(B, K) which steps of the window have a point that was not evaluated yet."""
    assert chains.paths is not None
    size, n = chains.num_steps, chains.n.unsqueeze(1)
    step = chains.position[:size]
    return (step >= n) & (step < chains.paths.end.unsqueeze(1)) & ~chains.paths.met[:, :size]


def _draft(
    chains: Chains, denoiser: Denoiser, m: int, before: Tensor, coefficients: Tensor
) -> Tensor:
    """(B, D) of step m: from its memory where there is one, else the draft ``before``."""
    assert chains.paths is not None
    displacement = chains.paths.point[:, m] - chains.point[:, m]
    share = torch.bmm(displacement.unsqueeze(1), chains.displacement.mT)
    draft = torch.addcmul(chains.value[:, m], chains.slopes[m], displacement)
    draft = denoiser.clip(draft + torch.bmm(share, coefficients).squeeze(1))
    draft = finite(draft, chains.value[:, m])
    return torch.where((m <= chains.last).unsqueeze(1), draft, before)


def _propose(chains: Chains, m: int, here: Tensor, tried: Tensor, draft: Tensor) -> None:
    """A proposal from step m in the chains that are ``here``; to rejoin a path where ``tried``."""
    paths, tables = chains.paths, chains.tables
    assert paths is not None
    noise, uniform = chains.noise[:, m], chains.log_uniform[:, m]
    mean = tables.a[m] * draft + tables.b[m] * paths.point[:, m]
    delta = (paths.mean[:, m] - mean) / tables.sigma[m]
    ratio = log_ratio(noise, delta)
    kept = stands(ratio, uniform)
    joined = tried & kept
    found = torch.where(kept.unsqueeze(1), noise + delta, reflect(noise, delta))
    found = torch.where(tried.unsqueeze(1), found, noise)
    moved = here & ~joined
    point = mean + tables.sigma[m] * found
    for tensor, new, where in (
        (chains.noise[:, m], found, tried),
        (paths.draft[:, m], draft, here),
        (paths.mean[:, m], mean, here),
        (paths.point[:, m + 1], point, moved),
    ):
        tensor.copy_(torch.where(where.unsqueeze(1), new, tensor))
    uniform.copy_(torch.where(tried, left_over(uniform, ratio, kept), uniform))
    paths.met[:, m + 1] &= ~moved


def _gather(chains: Chains, width: int) -> tuple[Tensor, Tensor]:
    assert chains.paths is not None
    size = chains.num_steps
    new = torch.where(to_evaluate(chains), chains.position[:size], size)
    steps = new.sort(1).values[:, :width]
    index = steps.unsqueeze(2).expand(-1, -1, chains.dim)
    points = chains.paths.point.gather(1, index)
    return points.masked_fill_((steps == size).unsqueeze(2), 0.0), steps
