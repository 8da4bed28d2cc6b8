"""Where the network is not finite, ASD ends as often as the sequential chain, at the same steps,
and what goes on has the law of the chains that went on.

A guess that breaks the network, and that the chain does not visit, must count for nothing: a
sampler that ended there would give a law conditioned on its own guesses. 40,000 chains of each form
beside as many sequential ones; false alarms: at most 6 · 1e-3. The control is such a sampler.
"""

from __future__ import annotations

import pytest
import torch
from scipy.stats import ks_2samp, norm
from torch import Tensor

from asd_policy import Schedule
from asd_policy.chains import Chains
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import Form
from asd_policy.engine.kernels import make_kernels
from asd_policy.samplers import asd
from reference.mixture import Mixture

pytestmark = [pytest.mark.statistical, pytest.mark.slow]

CHAINS, STEPS, DIM, ALPHA = 40_000, 12, 4, 1e-3
SCHEDULE = Schedule.ddpm(STEPS)
MIXTURE = Mixture(DIM).network(SCHEDULE)
FORMS = {
    "one call": Form("secant", 1, False, False),
    "two calls": Form("secant", 2, False, False),
    "rejoining": Form("secant", 1, False, True),
}


def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
    """A mixture's, with a hole in nine hundredths of the space."""
    out = MIXTURE(x, timesteps, cond)
    out[torch.sin(40 * x[:, 0]) > 0.96] = torch.nan
    return out


def drawn(form: Form, kernels: str, seed: int) -> tuple[Tensor, Tensor]:
    """(N, D) ends of chains, and (N,) the step at which each broke, −1 where none."""
    generator = torch.Generator().manual_seed(seed)
    initial, steps, uniform = (
        torch.randn(CHAINS, DIM, generator=generator),
        torch.randn(CHAINS, STEPS, DIM, generator=generator),
        torch.rand(CHAINS, STEPS, generator=generator),
    )
    chains = Chains(SCHEDULE, CHAINS, DIM, 5, initial, form.rejoin)
    chains.load(initial, steps, uniform.log(), torch.zeros(STEPS))
    chains.reset()
    denoiser = Denoiser(network, SCHEDULE, (DIM,), None, initial)
    run = asd.AutospeculativeDecoding(denoiser, chains, form, make_kernels(kernels))
    while min(n := chains.n.tolist()) < STEPS:
        run.round(n)
    return chains.x, chains.bad


def sequential(seed: int) -> tuple[Tensor, Tensor]:
    """The same of DDPM, written out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(CHAINS, DIM, generator=generator)
    denoiser = Denoiser(network, SCHEDULE, (DIM,), None, x)
    tables = Chains(SCHEDULE, 1, DIM, 1, x).tables
    bad = torch.full((CHAINS,), -1)
    for n in range(STEPS):
        at = torch.full((CHAINS,), n)
        said = denoiser.predict(x, at, torch.arange(CHAINS))
        x0 = denoiser.x0(x.unsqueeze(1), said.unsqueeze(1), at.unsqueeze(1)).squeeze(1)
        bad = torch.where((bad < 0) & ~said.isfinite().all(1), n, bad)
        noise = torch.randn(CHAINS, DIM, generator=generator)
        x = tables.a[n] * x0 + tables.b[n] * x + tables.sigma[n] * noise
        x = torch.nan_to_num(x)
    return x, bad


def smallest_p(form: Form, kernels: str, seed: int) -> float:
    """Of how many broke, at which steps, and where the others ended; Bonferroni."""
    (ours, broke), (theirs, broken) = drawn(form, kernels, seed), sequential(seed + 1)
    one, other = (float((bad >= 0).double().mean()) for bad in (broke, broken))
    assert 0.3 < other < 0.9, other
    spread = ((one * (1 - one) + other * (1 - other)) / CHAINS) ** 0.5
    p = [2 * float(norm.sf(abs(one - other) / spread))]
    p.append(ks_2samp(broke[broke >= 0], broken[broken >= 0]).pvalue)
    p += [ks_2samp(ours[broke < 0, i], theirs[broken < 0, i]).pvalue for i in range(DIM)]
    return min(p) * len(p)


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("name", FORMS)
def test_chains_break_where_the_sequential_one_does(name: str, kernels: str) -> None:
    assert smallest_p(FORMS[name], kernels, seed=len(name)) > ALPHA


def test_a_sampler_that_ends_at_a_guess_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    blame = asd._blame
    far = torch.full((CHAINS,), STEPS)
    monkeypatch.setattr(asd, "_blame", lambda chains, broken, reached: blame(chains, broken, far))
    assert smallest_p(FORMS["one call"], "torch", seed=1) < 1e-6
