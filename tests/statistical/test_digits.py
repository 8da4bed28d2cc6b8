"""ASD on real pictures at K = 1000: a Gaussian around each of scikit-learn's digits, whose denoiser
is known exactly. 600 chains of each form are compared with 1,800 sequential ones by 18 two-sample
tests, Holm-corrected, as in ``test_exactness``; two samplers broken on purpose must be rejected.

The law is known as well: a chain ends at a digit's own Gaussian, so that residuals have 64 degrees
of freedom, up to what 1,000 steps in place of infinitely many leave.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from asd_policy import Sampler, SamplerConfig, Schedule
from asd_policy.samplers import asd
from asd_policy.samplers.result import streams
from reference.law import smallest_p

pytest.importorskip("sklearn")
from reference.digits import SPREAD, Digits

pytestmark = [pytest.mark.statistical, pytest.mark.slow]

CHAINS, REFERENCE, CHUNK, ALPHA = 600, 1_800, 50, 1e-3
SCHEDULE = Schedule.ddpm(1000, "linear", clip_sample=False)
DIGITS = Digits()


@dataclass(frozen=True)
class Drawn:
    """Samples (N, 64), and the mean calls and evaluations of each."""

    samples: Tensor
    calls: float
    evaluations: float


def draw(chains: int, seed: int, kernels: str = "native", **options: object) -> Drawn:
    generator, samples, costs = torch.Generator().manual_seed(seed), [], []
    config = SamplerConfig(**options)  # type: ignore[arg-type]
    made = Sampler(DIGITS.network(SCHEDULE), SCHEDULE, (64,), config, kernels=kernels)
    for _ in range(chains // CHUNK):
        sample, cost = made.draw(made.noise(streams(generator, CHUNK)))
        samples.append(sample)
        costs.append((cost.calls.double().mean(), cost.evaluations.double().mean()))
    calls, evaluations = np.mean(costs, 0)
    return Drawn(torch.cat(samples), float(calls), float(evaluations))


@functools.cache
def sequential() -> Tensor:
    return draw(REFERENCE, 2024, name="ddpm").samples


def residuals(x: Tensor) -> np.ndarray:
    """Distance from the nearest picture, in its standard deviations."""
    return ((x - DIGITS.pictures[DIGITS.nearest(x)]) / SPREAD).norm(dim=1).double().numpy()


def corrected_p(sample: Tensor) -> float:
    reference, rng = sequential(), np.random.default_rng(11)
    directions = rng.normal(size=(64, 16)) / 8
    ours, theirs = (x.double().numpy() @ directions for x in (sample, reference))
    values = {
        f"projection {i}": float(stats.ks_2samp(ours[:, i], theirs[:, i], method="asymp").pvalue)
        for i in range(16)
    }
    counts = [
        torch.bincount(DIGITS.labels[DIGITS.nearest(x)], minlength=10).numpy()
        for x in (sample, reference)
    ]
    values["digits"] = float(stats.chi2_contingency(counts).pvalue)
    values["residuals"] = float(
        stats.ks_2samp(residuals(sample), residuals(reference), method="asymp").pvalue
    )
    return smallest_p(values)


FORMS = {
    "default, window 32": {"window": 32},
    "default, window 128": {"window": 128},
    "the paper's, window 64": {"window": 64, "draft": "frozen", "calls_per_round": 2},
    "no more than the window kept, window 64": {"window": 64, "kernels": "torch"},
}


@pytest.mark.parametrize(("seed", "form"), list(enumerate(FORMS)), ids=list(FORMS))
def test_law_is_that_of_the_sequential_chain(seed: int, form: str) -> None:
    drawn = draw(CHAINS, seed, **FORMS[form])
    p = corrected_p(drawn.samples)
    print(f"{drawn.calls:.1f} calls, {drawn.evaluations:.0f} evaluations, corrected p = {p:.2e}")
    assert p >= ALPHA
    assert drawn.calls < 1000 / 15, "at least 15 times fewer calls than sequential"


def test_the_sequential_chain_has_the_known_law() -> None:
    """Residuals are those of a Gaussian in 64 dimensions; each digit comes as often as it stands in
    the data."""
    norms = residuals(sequential())
    expected = stats.chi(64).mean()
    assert abs(norms.mean() / expected - 1) < 0.06, "its last step adds no noise"
    found = torch.bincount(DIGITS.labels[DIGITS.nearest(sequential())], minlength=10).double()
    shares = torch.bincount(DIGITS.labels, minlength=10).double() / len(DIGITS.labels)
    assert stats.chisquare(found.numpy(), (shares * REFERENCE).numpy()).pvalue > ALPHA


CONTROLS = {
    "accepting always": ("accepts", lambda noise, delta, u: torch.ones_like(u, dtype=torch.bool)),
    "keeping the noise on rejection": ("reflect", lambda noise, delta: noise),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_broken_sampler_is_rejected(control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asd, *CONTROLS[control])
    p = corrected_p(draw(CHAINS, 0, kernels="torch", window=32).samples)
    print(f"corrected p = {p:.2e}")
    assert p < 1e-4
