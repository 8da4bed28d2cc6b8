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
with p < 1e-4. Not among them: asking whether P was evaluated, ever or in the last round. It is
forbidden, but the answer seldom hangs on ξ[m] (only where a window ends within an earlier one,
which reached further for what it had rejoined), and this test does not see it (tried with windows
from 3 to 12, in 1 and 8 dimensions: p from 0.3 to 1). The control asks the noise itself.

False alarms: one of the len(FORMS) = 4 forms fails on a fresh seed with probability 0.4 %; the
seeds are fixed.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import Tensor

from asd_policy import Sampler, SamplerConfig, Schedule, rejoin
from asd_policy.chains import Chains
from asd_policy.drafts import Form
from asd_policy.engine.kernels import make_kernels
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


def used_noise(kernels: str, window: int, seed: int) -> Tensor:
    """⟨ξ[m], e[m]⟩ of every step and chain that tried to rejoin."""
    config = SamplerConfig(window=window, rejoin=True)
    sampler = Sampler(
        network, SCHEDULE, (DIM,), config, dtype=torch.float64, kernels=kernels
    )  # fmt: skip
    sampler.freeze()
    noise = bulk_noise(CHAINS, SCHEDULE.num_steps, DIM, seed)
    run = sampler.engine._run(noise, None, Form("secant", rejoin=True), window)
    moved, kept = torch.zeros_like(run.chains.value), make_kernels(kernels)

    def walk(chains: Chains, *rest):  # type: ignore[no-untyped-def]
        before = chains.paths.mean.clone()
        found = kept.walk(chains, *rest)
        step = chains.position
        tried = (step <= chains.last.unsqueeze(1)) & (step >= chains.n.unsqueeze(1))
        tried &= step < chains.paths.end.unsqueeze(1)
        moved.copy_(torch.where(tried.unsqueeze(2), before - chains.paths.mean, moved))
        return found

    run.kernels = SimpleNamespace(**{**vars(kept), "walk": walk})
    sampler.draw(noise)
    assert moved.any(), "another run was used"
    steps = slice(0, SCHEDULE.num_steps - 1)
    a, b, sigma = (t[steps, None] for t in (SCHEDULE.a, SCHEDULE.b, SCHEDULE.sigma))
    path, target = run.chains.paths.point, run.chains.value[:, steps]
    xi = (path[:, 1 : SCHEDULE.num_steps] - a * target - b * path[:, steps]) / sigma
    length = moved[:, steps].norm(dim=2)
    return ((xi * moved[:, steps]).sum(2) / length)[length > 1e-9]


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
