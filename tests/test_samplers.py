"""One signature for every sampler: options, messages, and the approximate samplers."""

from __future__ import annotations

import pytest
import torch

import asd_policy
from asd_policy import SamplerConfig, Schedule
from asd_policy.samplers.result import draw_noise
from reference.chains import bulk_noise, run
from reference.mixture import Mixture

MIXTURE = Mixture(4)
SCHEDULE = Schedule.ddpm(20)


def sample(**options):  # type: ignore[no-untyped-def]
    options = {"shape": (3, 4), "generator": torch.Generator().manual_seed(0)} | options
    return asd_policy.sample(MIXTURE.network(SCHEDULE), SCHEDULE, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sampler": "dpm"},
            r"one of 'asd', 'ddpm', 'ddim', 'paradigms'; got 'dpm'",
        ),
        ({"draft": "linear"}, r"draft must be one of 'secant', 'slope', 'memory', 'frozen'; got"),
        ({"calls_per_round": 3}, r"calls_per_round must be one of 1, 2; got 3"),
        ({"window": 0}, r'window must be "auto" or a whole number from 1 on, got 0'),
        ({"window": 2.5}, r"window must be .*, got 2\.5"),
        ({"window": "all"}, r"window must be .*, got 'all'"),
        ({"steps": 0}, r"inference steps must be at least 1, got 0"),
        ({"steps": -2}, r"inference steps must be at least 1, got -2"),
        ({"steps": 21}, r"whole number between 1 and the 20 training steps, got 21"),
        ({"sampler": "ddim", "steps": 21}, r"the 20 training steps, got 21"),
        ({"eta": 0.0}, r"DDIM with eta=0 has none: there is nothing to couple"),
        ({"eta": 2.0}, r"eta must be between 0 and 1, got 2\.0"),
        ({"sampler": "ddpm", "eta": 0.5}, r"eta applies to .*, not to 'ddpm'"),
        ({"sampler": "paradigms", "eta": 0.5}, r"eta applies to .*, not to 'paradigms'"),
        ({"tolerance": 0.0}, r"tolerance must be positive, got 0\.0"),
        ({"shape": (3,)}, r"shape must be \(chains, sizes of one sample …\), .*got \(3,\)"),
        ({"shape": (0, 4)}, r"all positive; got \(0, 4\)"),
        ({"cond": torch.zeros(2, 1)}, r"cond must have 3 rows, one for each chain; got 2"),
        ({"generator": [torch.Generator()] * 2}, r"expected 3 generators, .*; got 2"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(**options)


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"sampler": "ddpm"}, 20),
        ({"sampler": "ddpm", "steps": 7}, 7),
        ({"sampler": "ddim"}, 10),
        ({"sampler": "ddim", "steps": 4}, 4),
        ({"sampler": "ddim", "steps": 4, "eta": 1.0}, 4),
    ],
)
def test_sequential_samplers_take_one_call_a_step(options: dict, calls: int) -> None:
    stats = sample(**options).stats
    assert stats.sampler == options["sampler"]
    assert stats.window == 1
    assert stats.calls.tolist() == stats.evaluations.tolist() == [calls] * 3
    assert set(stats.seconds) == {"draft", "network", "verify", "other"}
    assert not stats.decided.any()


@pytest.mark.parametrize("sampler", ["asd", "ddpm", "ddim", "paradigms"])
def test_samples_have_the_dtype_asked_for(sampler: str) -> None:
    for dtype in (torch.float32, torch.float64):
        drawn = sample(sampler=sampler, dtype=dtype).sample
        assert drawn.dtype == dtype
        assert drawn.shape == (3, 4)


@pytest.mark.parametrize("sampler", ["asd", "ddpm", "ddim", "paradigms"])
def test_samples_are_ordinary_tensors(sampler: str) -> None:
    """They can be changed in place, and used where gradients are taken."""
    drawn = sample(sampler=sampler).sample
    drawn += 1
    weight = torch.ones(4, requires_grad=True)
    (drawn * weight).sum().backward()
    assert weight.grad is not None


def test_times_add_up_to_the_run() -> None:
    seconds = sample(sampler="asd").stats.seconds
    assert all(value >= 0 for value in seconds.values())
    assert seconds["network"] > 0
    assert seconds["draft"] > 0
    assert seconds["verify"] > 0


def test_asd_and_ddpm_share_their_noise() -> None:
    """The same streams give the same ξ, whatever the sampler: only ASD's uniforms are extra."""
    like = torch.empty(2, 4)
    first, second = (
        draw_noise([torch.Generator().manual_seed(s) for s in (1, 2)], 5, like) for _ in range(2)
    )
    assert torch.equal(first.steps, second.steps)
    assert torch.equal(first.log_uniform, second.log_uniform)
    assert bool((first.log_uniform <= 0).all())
    assert bool(torch.isfinite(first.log_uniform).all())
    assert not torch.equal(first.steps[0], first.steps[1])


# ---- DDIM and ParaDiGMS -------------------------------------------------------------------------


def test_ddim_without_noise_is_a_function_of_the_start() -> None:
    chain = SCHEDULE.ddim(10)
    network = MIXTURE.network(SCHEDULE)
    one, other = bulk_noise(3, 10, 4, 1), bulk_noise(3, 10, 4, 2)
    mixed = type(one)(one.initial, other.steps, other.log_uniform)
    config = SamplerConfig("ddim", steps=10)
    expected, _ = run(config, network, chain, one)
    assert torch.equal(run(config, network, chain, mixed)[0], expected)
    assert not torch.equal(run(config, network, chain, other)[0], expected)


@pytest.mark.parametrize(("name", "said"), [("asd", "ASD"), ("paradigms", "ParaDiGMS")])
def test_speculation_on_a_ddim_that_uses_the_prediction_itself_is_refused(
    name: str, said: str
) -> None:
    chain = SCHEDULE.ddim(20, 0.5)
    assert bool(chain.c.any())
    message = f"{said} needs steps whose mean .* use_clipped_model_output=True"
    with pytest.raises(ValueError, match=message):
        run(
            SamplerConfig(name, window=4), MIXTURE.network(SCHEDULE), chain, bulk_noise(1, 20, 4, 1)
        )
    with pytest.raises(ValueError, match=r"applies to the sampler .ddim., not to"):
        SamplerConfig(name, use_clipped_model_output=True)


@pytest.mark.parametrize("window", [1, 3, 8, 20, 64])
@pytest.mark.parametrize("eta", [None, 0.5])
def test_paradigms_without_tolerance_is_the_sequential_chain(
    eta: float | None, window: int
) -> None:
    chain = SCHEDULE if eta is None else SCHEDULE.ddim(20, eta, use_clipped_model_output=True)
    network, noise = MIXTURE.network(SCHEDULE), bulk_noise(5, 20, 4, 3)
    expected, _ = run(SamplerConfig("ddpm"), network, chain, noise)
    config = SamplerConfig("paradigms", window=window, tolerance=1e-13)
    samples, stats = run(config, network, chain, noise)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-9)
    assert int(stats.calls.max()) <= 20
    assert stats.sampler == "paradigms"
    if window == 1:
        assert stats.calls.tolist() == stats.evaluations.tolist() == [20] * 5


def test_paradigms_with_tolerance_is_near_and_cheaper() -> None:
    network, noise = MIXTURE.network(SCHEDULE), bulk_noise(50, 20, 4, 3)
    expected, _ = run(SamplerConfig("ddpm"), network, SCHEDULE, noise)
    strict, loose = (
        run(SamplerConfig("paradigms", tolerance=tolerance), network, SCHEDULE, noise)
        for tolerance in (1e-13, 0.1)
    )
    assert float(loose[1].calls.double().mean()) < float(strict[1].calls.double().mean())
    error = (loose[0] - expected).abs()
    assert 0 < float(error.mean()) < 0.1


def test_paradigms_batches_are_independent() -> None:
    network, noise = MIXTURE.network(SCHEDULE), bulk_noise(6, 20, 4, 3)
    config = SamplerConfig("paradigms", window=7, tolerance=0.05)
    together, stats = run(config, network, SCHEDULE, noise)
    for i in range(6):
        row = type(noise)(*(v[i : i + 1] for v in (noise.initial, noise.steps, noise.log_uniform)))
        alone, costs = run(config, network, SCHEDULE, row)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9)
        assert int(costs.calls) == int(stats.calls[i])
        assert int(costs.evaluations) == int(stats.evaluations[i])
