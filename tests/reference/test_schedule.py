"""Schedule tables and single steps against the NumPy oracles and against diffusers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from asd_policy import SamplerConfig, Schedule
from asd_policy.checkpoints import shipped
from asd_policy.policy import load_checkpoint
from asd_policy.schedule import BETA_SCHEDULES, TIMESTEP_SPACINGS, VARIANCE_TYPES
from reference import oracles
from reference.chains import bulk_noise, oracle_chain, run

RANGES = {
    "linear": (1e-4, 0.02),
    "scaled_linear": (8.5e-4, 0.012),
    "squaredcos_cap_v2": (1e-4, 0.02),  # not used by it
}


def every_schedule():
    """Beta schedules × variance types × spacings × numbers of steps."""
    product = itertools.product(BETA_SCHEDULES, VARIANCE_TYPES, TIMESTEP_SPACINGS)
    for kind, variance, spacing in product:
        for train, steps in ((1, 1), (100, 100), (100, 1), (100, 7), (100, 40), (1000, 50)):
            start, end = RANGES[kind]
            yield Schedule.ddpm(
                train, kind, variance_type=variance, beta_start=start, beta_end=end,
                inference_steps=steps, timestep_spacing=spacing,
            )  # fmt: skip


def assert_tables(schedule: Schedule) -> None:
    chain, visited, bars = oracle_chain(schedule)
    assert schedule.timesteps.tolist() == visited
    for name, expected in (("a", chain.a), ("b", chain.b), ("sigma", chain.sigma)):
        table = getattr(schedule, name)
        assert table.dtype == torch.float64
        np.testing.assert_allclose(table, expected, rtol=1e-7, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(schedule.signal**2, bars, rtol=1e-12)
    np.testing.assert_allclose(schedule.noise**2, 1 - np.array(bars), rtol=1e-12)


def test_ddpm_tables() -> None:
    for schedule in every_schedule():
        assert_tables(schedule)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_tables(eta: float) -> None:
    for schedule in every_schedule():
        assert_tables(schedule.ddim(schedule.num_steps, eta, use_clipped_model_output=True))


def test_ddim_with_eta_one_is_ddpm() -> None:
    """Song et al. (2021), section 4.1, for the posterior variance."""
    schedule = Schedule.ddpm(100).respaced(20)
    ddim = schedule.ddim(20, 1.0, use_clipped_model_output=True)
    for name in ("a", "b", "sigma"):
        np.testing.assert_allclose(getattr(ddim, name), getattr(schedule, name), atol=1e-12)


def test_fixed_small_is_stochastic_localization() -> None:
    """y[n+1] = y[n] + Δs·x̂0 + √Δs·ξ with s = ᾱ/(1−ᾱ), y = x·√ᾱ/(1−ᾱ) (Hu et al., 2025)."""
    schedule = Schedule.ddpm(100)
    bar = schedule.signal[:-1] ** 2, schedule.signal[1:] ** 2
    scale = [value.sqrt() / (1 - value) for value in bar]
    gain = bar[1] / (1 - bar[1]) - bar[0] / (1 - bar[0])
    np.testing.assert_allclose(scale[1] * schedule.a[:-1] / gain, 1, atol=1e-10)
    np.testing.assert_allclose(scale[1] * schedule.sigma[:-1] / gain.sqrt(), 1, atol=1e-10)
    np.testing.assert_allclose(scale[1] * schedule.b[:-1] / scale[0], 1, atol=1e-10)
    ratio = schedule.a[:-1] / schedule.sigma[:-1]
    np.testing.assert_allclose(ratio, gain.sqrt(), rtol=1e-8)
    # The figures of the method's description, by training timestep.
    published = {99: 0.016, 75: 0.12, 50: 0.24, 25: 0.67, 10: 2.4, 5: 5.9, 1: 31.8}
    for timestep, value in published.items():
        assert float(ratio[99 - timestep]) == pytest.approx(value, rel=0.05)


def test_posterior_moments_by_quadrature() -> None:
    """Mean and variance of p(x_prev | x, x0) by integrating Bayes' rule numerically."""
    schedule = Schedule.ddpm(20, clip_sample=False)
    bars = schedule.alphas_cumprod.tolist()
    for n in (2, 10, 18):
        t = int(schedule.timesteps[n])
        alpha, prev = bars[t] / bars[t - 1], bars[t - 1]
        x, x0 = 0.4, -0.7

        # A sum over a fine grid integrates a Gaussian to rounding error.
        z = np.linspace(-12, 12, 100_001)
        prior = -((z - math.sqrt(prev) * x0) ** 2) / (2 * (1 - prev))
        density = np.exp(prior - (x - math.sqrt(alpha) * z) ** 2 / (2 * (1 - alpha)))
        moments = [(density * z**k).sum() for k in range(3)]
        mean = moments[1] / moments[0]
        assert float(schedule.a[n] * x0 + schedule.b[n] * x) == pytest.approx(mean, abs=1e-9)
        variance = moments[2] / moments[0] - mean**2
        assert float(schedule.sigma[n] ** 2) == pytest.approx(variance, rel=1e-8)


def test_forward_process_and_training_targets() -> None:
    """x0 and ε come back from what the network is trained on, at every timestep."""
    clean = torch.randn(50, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise, timesteps = clean.flip(0), torch.arange(50)
    for kind in ("epsilon", "sample", "v_prediction"):
        schedule = Schedule.ddpm(50, prediction_type=kind)
        bar = schedule.alphas_cumprod.view(-1, 1, 1)
        noisy = schedule.add_noise(clean, noise, timesteps)
        assert torch.allclose(noisy, bar.sqrt() * clean + (1 - bar).sqrt() * noise)
        target = schedule.training_target(clean, noise, timesteps)
        for i in range(50):
            x0 = oracles.x0_from(kind, noisy[i].numpy(), target[i].numpy(), float(bar[i]), None)
            np.testing.assert_allclose(x0, clean[i], atol=1e-9)


def test_trained_betas_and_dict_round_trip() -> None:
    betas = tuple(0.01 + 0.001 * i for i in range(30))
    schedule = Schedule.ddpm(30, trained_betas=betas, inference_steps=10, eta=0.5)
    again = Schedule.from_dict(schedule.to_dict() | {"trained_betas": list(betas)})
    assert again.config == schedule.config
    assert torch.equal(again.a, schedule.a)
    np.testing.assert_allclose(schedule.alphas_cumprod, oracles.alphas_cumprod(list(betas)))


# ---- diffusers ----------------------------------------------------------------------------------


def _float64(scheduler):  # type: ignore[no-untyped-def]
    """diffusers' tables in float64, so that only the formulas are compared."""
    config = scheduler.config
    betas = oracles.betas(
        config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end
    )
    np.testing.assert_allclose(scheduler.betas, betas, rtol=2e-3, atol=1e-7)
    scheduler.betas = torch.tensor(betas, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


def _one_step(schedule: Schedule, n: int, sampler: str) -> tuple[torch.Tensor, ...]:
    """x, the network's output, ξ and the package's next point, at step n: rows are chains.

    The chain before step n is skipped by giving the network's output and coefficients of n only.
    """
    noise = bulk_noise(8, 1, 5, seed=n)
    prediction = 1.5 * bulk_noise(8, 1, 5, seed=n + 1000).initial
    fields = {k: getattr(schedule, k)[n : n + 1] for k in
              ("timesteps", "signal", "noise", "a", "b", "sigma", "c")}  # fmt: skip
    step = Schedule(schedule.config, schedule.alphas_cumprod, **fields)
    moved, _ = run(SamplerConfig(sampler), lambda x, t, cond: prediction, step, noise)
    return noise.initial, prediction, noise.steps[:, 0], moved


CASES = [
    (kind, prediction, variance, clip, spacing, steps)
    for kind in BETA_SCHEDULES
    for prediction in ("epsilon", "sample", "v_prediction")
    for variance in VARIANCE_TYPES
    for clip in (True, False)
    for spacing in TIMESTEP_SPACINGS
    for steps in (None, 10, 7)
    if steps is not None or spacing == "leading"
]


def test_ddpm_step_is_that_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option, first, middle and last steps.

    Respaced steps go from each visited timestep to the next visited one. diffusers ≥ 0.32 does
    the same (``DDPMScheduler.previous_timestep``); before, it went to t − train // steps, which
    is the same timestep for spacing "leading" only, and the others are not compared there.
    """
    diffusers = pytest.importorskip("diffusers", minversion="0.27")
    from diffusers.schedulers import scheduling_ddpm

    follows = tuple(int(v) for v in diffusers.__version__.split(".")[:2]) >= (0, 32)
    injected: list[torch.Tensor] = []
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kw: injected[0])
    compared = 0
    for kind, prediction, variance, clip, spacing, steps in CASES:
        if steps is not None and spacing != "leading" and not follows:
            continue
        start, end = RANGES[kind]
        theirs = _float64(
            scheduling_ddpm.DDPMScheduler(
                100, start, end, kind, prediction_type=prediction, variance_type=variance,
                clip_sample=clip, clip_sample_range=0.9, timestep_spacing=spacing,
            )
        )  # fmt: skip
        if steps is not None:
            theirs.set_timesteps(steps)
        ours = Schedule.ddpm(
            100, kind, prediction, variance, clip, 0.9, beta_start=start, beta_end=end,
            inference_steps=steps, timestep_spacing=spacing if steps else "leading",
        )  # fmt: skip
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        for n in {0, ours.num_steps // 2, ours.num_steps - 2, ours.num_steps - 1}:
            x, output, xi, moved = _one_step(ours, n, "ddpm")
            injected[:] = [xi]
            expected = theirs.step(output, int(ours.timesteps[n]), x).prev_sample
            torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)
            compared += 1
    assert compared >= 3 * 3 * 2 * 2 * 3 * 4


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("use_clipped", [False, True])
def test_ddim_step_is_that_of_diffusers(eta: float, use_clipped: bool) -> None:
    """Its defaults are what people run: the network's own ε, an end at ᾱ = 1."""
    pytest.importorskip("diffusers", minversion="0.27")
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    compared = 0
    ends = [(True, 0), (False, 0), (True, 1), (False, 1)]
    for case, (to_one, offset) in itertools.product(CASES, ends):
        kind, prediction, variance, clip, spacing, steps = case
        if variance != "fixed_small" or steps is None or (offset and spacing != "leading"):
            continue
        start, end = RANGES[kind]
        theirs = _float64(
            ddim.DDIMScheduler(
                100, start, end, kind, prediction_type=prediction, clip_sample=clip,
                clip_sample_range=0.9, timestep_spacing=spacing, set_alpha_to_one=to_one,
                steps_offset=offset,
            )
        )  # fmt: skip
        theirs.set_timesteps(steps)
        theirs.final_alpha_cumprod = torch.ones(()).double() if to_one else theirs.alphas_cumprod[0]
        ours = Schedule.ddpm(
            100, kind, prediction, clip_sample=clip, clip_range=0.9, beta_start=start,
            beta_end=end, timestep_spacing=spacing, set_alpha_to_one=to_one, steps_offset=offset,
        ).ddim(steps, eta, use_clipped)  # fmt: skip
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        for n in range(steps):
            x, output, xi, moved = _one_step(ours, n, "ddim")
            expected = theirs.step(
                output, int(ours.timesteps[n]), x, eta=eta,
                use_clipped_model_output=use_clipped, variance_noise=xi if eta else None,
            ).prev_sample  # fmt: skip
            torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)
            compared += 1
    assert compared > 1000


def test_an_offset_beyond_the_last_timestep_is_refused() -> None:
    schedule = Schedule.ddpm(100, steps_offset=10)
    assert schedule.timesteps[0] == 99  # of DDIM alone
    with pytest.raises(ValueError, match="steps_offset 10 leads to timestep 100, and"):
        schedule.ddim(10)
    with pytest.raises(ValueError, match="steps_offset must be a whole number from 0 on, got -1"):
        Schedule.ddpm(100, steps_offset=-1)


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("offset", [0, 1, 12])
def test_the_ends_of_a_ddim_are_those_of_diffusers(to_one: bool, offset: int) -> None:
    """``set_alpha_to_one`` and ``steps_offset``; with 12 the last step ends at timestep 2."""
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    options = {"set_alpha_to_one": to_one, "steps_offset": offset, "clip_sample": False}
    theirs = _float64(ddim.DDIMScheduler(125, beta_schedule="squaredcos_cap_v2", **options))
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod if to_one else theirs.alphas_cumprod[0]
    theirs.set_timesteps(12)
    ours = Schedule.ddpm(125, "squaredcos_cap_v2", **options).ddim(12)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for n in (0, 5, 10, 11):
        x, output, _, moved = _one_step(ours, n, "ddim")
        expected = theirs.step(output, int(ours.timesteps[n]), x).prev_sample
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)
    assert Schedule.from_dict(ours.to_dict()).timesteps.equal(ours.timesteps)


def test_ddim_of_a_trained_policy_is_the_loop_that_people_run() -> None:
    """The shipped policy, whose clipping is active, through diffusers' own scheduler as robomimic,
    LeRobot and diffusion_policy call it; and the other form is not that."""
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    made = load_checkpoint(shipped("lift"))
    network, config = made.network.double().eval(), made.schedule.config
    cond = bulk_noise(8, 1, made.config.condition_dim, seed=1).initial / 2
    noise = bulk_noise(8, 10, 16 * 7, seed=2)
    theirs = _float64(
        scheduling.DDIMScheduler(
            config.num_steps, beta_schedule=config.beta_schedule, clip_sample=True,
            set_alpha_to_one=True, steps_offset=0, prediction_type="epsilon",
        )
    )  # fmt: skip
    theirs.final_alpha_cumprod = torch.ones(()).double()
    theirs.set_timesteps(10)
    x, clipped = noise.initial.view(8, 16, 7), 0
    with torch.no_grad():
        for t in theirs.timesteps:
            output = network(x, torch.full((8,), int(t)), cond)
            stepped = theirs.step(output, int(t), x)
            clipped += int((stepped.pred_original_sample.abs() >= 1).sum())
            x = stepped.prev_sample
    assert clipped > 100
    with torch.no_grad():
        ours, other = (
            run(
                SamplerConfig("ddim", steps=10, use_clipped_model_output=use_clipped),
                lambda p, t, c: network(p.view(-1, 16, 7), t, c).flatten(1),
                made.schedule.ddim(10, 0.0, use_clipped), noise, cond=cond,
            )[0].view(8, 16, 7)
            for use_clipped in (False, True)
        )  # fmt: skip
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)
    assert float((other - x).abs().max()) > 1e-3
