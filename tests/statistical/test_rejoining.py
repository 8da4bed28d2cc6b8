"""The noise that rejoining chains have used is standard normal, along what their means moved by.

A chain's samples hardly tell where a coupling favoured some noise: what it favours is a direction,
and directions differ. So the chain is asked for its noise itself, of every step that was proposed
from twice or more: ξ[m] = (x[m+1] − a·x̂0 − b·x[m])/σ of its finished path, along the unit vector
e[m] by which the mean of the proposal moved when it last tried to rejoin. Both the mean and whether
it moved come from what was before ξ[m] (F[m] of asd_policy/rejoin.py), so that ⟨ξ[m], e[m]⟩ is
standard normal given all that came before it. All of these numbers, over steps and chains, are then
independent and standard normal: one sample, whose distribution (Kolmogorov–Smirnov), mean and mean
square are held against the normal's, Bonferroni-corrected.

Power: samplers with one thing wrong go through the same test at the same size and must be rejected
with p < 1e-4. One fault hides from it: asking whether P was evaluated, whose answer seldom hangs on
ξ[m]. It has a test of its own at the end of this file.

False alarms: one of the len(FORMS) = 4 forms, or of the 2 at the end, fails on a fresh seed with
probability 0.6 %; the seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import Tensor

from asd_policy import Sampler, SamplerConfig, Schedule, rejoin
from asd_policy.chains import Chains
from asd_policy.drafts import Form
from asd_policy.engine.kernels import make_kernels
from asd_policy.samplers.result import Noise
from reference.chains import bulk_noise
from reference.mixture import Mixture

pytestmark = [pytest.mark.statistical, pytest.mark.slow]

CHAINS, DIM, ALPHA = 12_000, 8, 1e-3
SCHEDULE = Schedule.ddpm(40, clip_sample=True, clip_range=1.0)
MIXTURE = Mixture(DIM).network(SCHEDULE)
FORMS = [("native", 3), ("native", 8), ("native", 24), ("torch", 4)]


def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
    """A mixture's, uneven enough that steps are proposed from again and again."""
    return MIXTURE(x, timesteps, cond) + 0.3 * torch.sin(5 * x)


Walk = Callable[..., tuple[Tensor, Tensor]]


def watched(
    sampler: Sampler, noise: Noise, window: int, watch: Callable[[Chains, Walk], Walk]
) -> Tensor:
    """(B, K − 1, D) the noise that the finished paths of rejoining chains have; ``watch`` is given
    the chains and what proposes, and returns what is called in its place."""
    run = sampler.engine._run(noise, None, Form("secant", rejoin=True), window)
    kept = make_kernels(sampler.engine.kernels)
    calls = []

    def walk(chains: Chains, *rest):  # type: ignore[no-untyped-def]
        calls.append(1)
        return inner(chains, *rest)

    inner = watch(run.chains, kept.walk)
    run.kernels = SimpleNamespace(**{**vars(kept), "walk": walk})
    sampler.draw(noise)
    assert calls, "another run was used"
    schedule, chains = sampler.schedule, run.chains
    size = schedule.num_steps - 1
    a, b, sigma = (t[:size, None] for t in (schedule.a, schedule.b, schedule.sigma))
    path, target = chains.paths.point, chains.value[:, :size]
    return (path[:, 1 : size + 1] - a * target - b * path[:, :size]) / sigma


def along(xi: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K − 1) ⟨ξ, e⟩ for the unit vector e along a direction, and the direction's length."""
    length = direction[:, : xi.shape[1]].norm(dim=2)
    return (xi * direction[:, : xi.shape[1]]).sum(2) / length, length


def used_noise(kernels: str, window: int, seed: int) -> Tensor:
    """⟨ξ[m], e[m]⟩ of every step and chain that tried to rejoin."""
    config = SamplerConfig(window=window, rejoin=True)
    sampler = Sampler(
        network, SCHEDULE, (DIM,), config, dtype=torch.float64, kernels=kernels
    )  # fmt: skip
    sampler.freeze()
    moved = torch.zeros(0)

    def watch(chains: Chains, walk: Walk) -> Walk:
        nonlocal moved
        moved = torch.zeros_like(chains.value)

        def called(chains: Chains, *rest):  # type: ignore[no-untyped-def]
            before = chains.paths.mean.clone()
            found = walk(chains, *rest)
            step = chains.position
            tried = (step <= chains.last.unsqueeze(1)) & (step >= chains.n.unsqueeze(1))
            tried &= step < chains.paths.end.unsqueeze(1)
            moved.copy_(torch.where(tried.unsqueeze(2), before - chains.paths.mean, moved))
            return found

        return called

    noise = bulk_noise(CHAINS, SCHEDULE.num_steps, DIM, seed)
    values, length = along(watched(sampler, noise, window, watch), moved)
    return values[length > 1e-9]


def smallest_p(values: Tensor) -> float:
    """Of the three tests, corrected."""
    count = len(values)
    scores = values.mean() * count**0.5, (values.square().mean() - 1) * (count / 2) ** 0.5
    found = [stats.kstest(values.numpy(), "norm").pvalue]
    found += [2 * stats.norm.sf(abs(float(score))) for score in scores]
    return min(1.0, len(found) * float(min(found)))


@pytest.mark.parametrize(("kernels", "window"), FORMS)
def test_used_noise_is_standard_normal(kernels: str, window: int) -> None:
    values = used_noise(kernels, window, seed=window)
    assert len(values) > 4 * CHAINS
    p = smallest_p(values)
    print(f"p = {p:.2e} of {len(values)}")
    assert p >= ALPHA


def where_it_will_succeed(chains: Chains, m: int) -> Tensor:
    """Whether ξ[m] leads from P towards the new mean, about: it has a part in that."""
    paths, tables = chains.paths, chains.tables
    assert paths is not None
    mean = tables.a[m] * chains.value[:, m] + tables.b[m] * paths.point[:, m]
    inner = (chains.noise[:, m] * (paths.mean[:, m] - mean)).sum(1)
    return (m <= chains.last) & (inner < 0)


def reused(log_uniform: Tensor, ratio: Tensor, accepted: Tensor) -> Tensor:
    return log_uniform


def missed(noise: Tensor, delta: Tensor) -> Tensor:
    return noise


CONTROLS = {
    "trying where the noise is favourable": ("proposed_before", where_it_will_succeed),
    "a uniform that decides twice": ("left_over", reused),
    "missing a path without reflecting": ("reflect", missed),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_broken_rejoining_is_rejected(control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejoin, *CONTROLS[control])
    p = smallest_p(used_noise("torch", 4, seed=0))
    print(f"p = {p:.2e}")
    assert p < 1e-4


# ---- was P evaluated? ---------------------------------------------------------------------------
#
# Whether P, where the last proposal from step m ended, was evaluated hangs on ξ[m] in one case
# alone: a window that had no evaluation left when it came to m went on past m only if the proposal
# from there rejoined a point that was known. Whether a step is in that case is in F[m], so that a
# right sampler has a standard normal ξ[m] after the step's next proposal, along any direction in
# F[m]. One that rejoins P only if P was evaluated couples where the window had gone on, and leaves
# ξ[m] alone where it had ended. There ξ[m] has missed P and been reflected: it lies on one side
# along δ, the move of the mean that missed. Left alone, it stays there, and the mean of ξ[m] along
# δ is below zero. The case is rare, one step in thousands of the network above, and shows only
# where that move and the next are neither small (nothing to couple) nor large (P is never kept).
# So the network here jumps by about a standard deviation of the step, in one dimension, and only
# such steps are asked.

EDGE_CHAINS, EDGE_WINDOW, BETWEEN = 30_000, 6, (0.3, 3.0)
EDGE_SCHEDULE = Schedule.ddpm(40, prediction_type="sample", clip_sample=False)


def jumps(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
    """x̂0 that jumps by 0.8 σ/a, about every two standard deviations of the step."""
    n = EDGE_SCHEDULE.num_steps - 1 - timesteps  # as the schedule visits them
    sigma, a = (t.to(x)[n].unsqueeze(1) for t in (EDGE_SCHEDULE.sigma, EDGE_SCHEDULE.a))
    place = 1.5 * x / sigma.clamp(min=1e-6) + 1.7 * n.unsqueeze(1)
    return 0.3 * x.tanh() + 0.4 * sigma / a * place.sin().sign()


NONE, SURELY, PERHAPS, NOT = range(4)  # was P evaluated, as far as F[m] can tell?


class Edges:
    """Steps whose last proposal began when F[m] did not tell whether P was evaluated.

    Attributes:
        chosen: (B, R) these steps. move, before: (B, R, D) by which the mean moved when they were
            proposed from last, and the time before that.
    """

    def __init__(self, chains: Chains, walk: Walk) -> None:
        self._walk, self._size = walk, chains.num_steps
        self.move, self.before = (torch.zeros_like(chains.value) for _ in range(2))
        self._evaluated = torch.full(chains.value.shape[:2], NONE)
        self.chosen = torch.zeros_like(self._evaluated, dtype=torch.bool)

    def __call__(self, chains: Chains, *rest):  # type: ignore[no-untyped-def]
        mean, n, last = chains.paths.mean.clone(), chains.n.unsqueeze(1), chains.last.unsqueeze(1)
        points, steps = self._walk(chains, *rest)
        step = chains.position
        inside = (step >= n) & (step < chains.paths.end.unsqueeze(1)) & (step < self._size - 1)
        tried, known = inside & (step <= last), self._evaluated
        left = step < steps[:, -1:]  # K where evaluations were left over
        self.chosen = torch.where(inside, tried & (known == PERHAPS), self.chosen)
        for kept, new in ((self.before, self.move), (self.move, mean - chains.paths.mean)):
            kept.copy_(torch.where(tried.unsqueeze(2), new, kept))
        went_on = torch.where((known == SURELY) | (known == PERHAPS), PERHAPS, NOT)
        self._evaluated = torch.where(inside, torch.where(left, SURELY, went_on), known)
        return points, steps


def noise_at_edges(kernels: str, seeds: range) -> Tensor:
    """⟨ξ[m], e[m]⟩ of the steps of :class:`Edges`, e[m] along the move before the last."""
    config, found = SamplerConfig(window=EDGE_WINDOW, rejoin=True), []
    sampler = Sampler(jumps, EDGE_SCHEDULE, (1,), config, dtype=torch.float64, kernels=kernels)
    sampler.freeze()
    size = EDGE_SCHEDULE.num_steps - 1
    for seed in seeds:
        seen: list[Edges] = []

        def watch(chains: Chains, walk: Walk, seen: list[Edges] = seen) -> Walk:
            seen.append(Edges(chains, walk))
            return seen[0]

        noise = bulk_noise(EDGE_CHAINS, EDGE_SCHEDULE.num_steps, 1, seed)
        values, length = along(watched(sampler, noise, EDGE_WINDOW, watch), seen[0].before)
        next_length = seen[0].move[:, :size].norm(dim=2)
        scale, (least, most) = EDGE_SCHEDULE.sigma[:size], BETWEEN
        wanted = seen[0].chosen[:, :size] & (length > least * scale) & (length < most * scale)
        found.append(values[wanted & (next_length > least * scale)])
    return torch.cat(found)


@pytest.mark.parametrize(("kernels", "seeds"), [("native", range(8)), ("torch", range(8, 12))])
def test_where_a_window_ended_the_noise_is_standard_normal(kernels: str, seeds: range) -> None:
    values = noise_at_edges(kernels, seeds)
    assert len(values) > 600 * len(seeds)
    p = smallest_p(values)
    print(f"p = {p:.2e} of {len(values)}, mean {values.mean():.3f}")
    assert p >= ALPHA


def test_asking_whether_p_was_evaluated_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Existence that depends on the step's own noise."""
    proposed = rejoin.proposed_before

    def evaluated(chains: Chains, m: int) -> Tensor:
        assert chains.paths is not None
        return proposed(chains, m) & chains.paths.met[:, m + 1]

    monkeypatch.setattr(rejoin, "proposed_before", evaluated)
    values = noise_at_edges("torch", range(4))
    p = smallest_p(values)
    print(f"p = {p:.2e} of {len(values)}, mean {values.mean():.3f}")
    assert p < 1e-6
