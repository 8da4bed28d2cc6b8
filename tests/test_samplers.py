"""One signature for every sampler: options, messages, and the approximate samplers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy import SamplerConfig, Schedule
from asd_policy.samplers.names import SAMPLER_NAMES
from asd_policy.samplers.result import draw_noise, one_line
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
            r"one of asd, .*asd-paper, .*paradigms, ddim-N; got 'dpm'; did you mean 'ddpm'\?",
        ),
        ({"sampler": "asd_paper"}, r"got 'asd_paper'; did you mean 'asd-paper'\?"),
        ({"sampler": "ddim-0"}, r"ddim-N; got 'ddim-0'"),
        (
            {"sampler": "asd-paper", "draft": "secant"},
            r"sampler 'asd-paper' means draft='frozen'; got draft='secant'",
        ),
        ({"sampler": "asd-slope", "calls_per_round": 2}, r"calls_per_round=1; got .*=2"),
        ({"sampler": "ddim-4", "steps": 5}, r"sampler 'ddim-4' means steps=4; got steps=5"),
        ({"sampler": "asd-ddim"}, r"DDIM with eta=0 has none"),
        ({"seed": 1}, r"expected seed or generator, got both"),
        ({"seed": 1.5, "generator": None}, r"seed must be a whole number .* 2\^64 − 1, got 1\.5"),
        ({"seed": -1, "generator": None}, r"seed must be a whole number from 0 to .*, got -1"),
        ({"seed": "a", "generator": None}, r"seed must be a whole number .*, got 'a'"),
        ({"seed": True, "generator": None}, r"seed must be a whole number .*, got True"),
        ({"seed": 2**64, "generator": None}, r"seed must be a whole number .*, got 18446744073"),
        ({"draft": "linear"}, r"draft must be one of 'secant', 'slope', 'memory', 'frozen'; got"),
        (
            {"rejoin": True, "draft": "slope"},
            r"rejoin=True applies to draft=\"secant\" and .*slope",
        ),
        ({"rejoin": True, "calls_per_round": 2}, r"rejoin=True applies to .*calls_per_round=2"),
        (
            {"rejoin": True, "sampler": "ddpm"},
            r'rejoin applies to the sampler "asd", not to .ddpm.',
        ),
        ({"calls_per_round": 3}, r"calls_per_round must be one of 1, 2; got 3"),
        ({"window": 0}, r'window must be "auto" or a whole number from 1 on, got 0'),
        ({"window": 2.5}, r"window must be .*, got 2\.5"),
        ({"window": True}, r"window must be .*, got True"),
        ({"window": "all"}, r"window must be .*, got 'all'"),
        ({"steps": 0}, r"inference steps must be a whole number from 1 on, got 0"),
        ({"steps": 21}, r"whole number between 1 and the 20 training steps, got 21"),
        ({"sampler": "ddim", "steps": 21}, r"the 20 training steps, got 21"),
        ({"eta": 0.0}, r"DDIM with eta=0 has none: there is nothing to couple"),
        ({"eta": 2.0}, r"eta must be between 0 and 1, got 2\.0"),
        ({"sampler": "ddpm", "eta": 0.5}, r"eta applies to .*, not to 'ddpm'"),
        ({"sampler": "paradigms", "eta": 0.5}, r"eta applies to .*, not to 'paradigms'"),
        ({"tolerance": 0.0}, r"tolerance must be positive, got 0\.0"),
        ({"shape": (3,)}, r"shape must be \(chains, sizes of one sample …\), .*got \(3,\)"),
        ({"shape": (0, 4)}, r"whole numbers from 1 on; got \(0, 4\)"),
        ({"shape": (-1, 4), "cond": torch.zeros(1, 1)}, r"whole numbers from 1 on; got \(-1, 4\)"),
        ({"shape": (1.0, 4)}, r"shape must be .*; got \(1\.0, 4\)"),
        ({"shape": 16}, r"shape must be .*; got 16"),
        ({"shape": "1"}, r"shape must be .*; got '1'"),
        ({"shape": "16"}, r"shape must be .*; got '16'"),
        (
            {"cond": torch.zeros(2, 1)},
            r"cond must be of shape \(3, …\), a row for .*; got \(2, 1\)",
        ),
        (
            {"shape": (1, 4), "cond": torch.zeros(3)},
            r"cond must be of shape \(1, …\), .*; got \(3,\)",
        ),
        ({"steps": "10"}, r"inference steps must be a whole number from 1 on, got '10'"),
        ({"sampler": "paradigms", "tolerance": "x"}, r"tolerance must be positive, got 'x'"),
        ({"eta": "x"}, r"eta must be a number, got 'x'"),
        (
            {"generator": 3},
            r"generator must be a torch.Generator, a list of one for each chain, or None; got int",
        ),
        ({"noise": 3, "generator": None}, r"noise must be a Noise, .*; got int"),
        ({"dtype": "float32"}, r"dtype must be a torch.dtype; got str"),
        ({"calibration": 3}, r"calibration must be a Calibration, .*; got int"),
        ({"calibration": {}}, r"calibration must be a Calibration, .*; got dict"),
        ({"device": "tpu"}, r"device must be one that torch can use here \(cpu.*\); got 'tpu'"),
        ({"device": "cuda:77"}, r"device must be one that torch can use .*; got 'cuda:77'"),
        ({"generator": [torch.Generator()] * 2}, r"expected 3 generators, .*; got 2"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(**options)


@pytest.mark.parametrize(
    ("name", "options", "spelled_out"),
    [
        ("asd", {}, ("asd", "secant", 1)),
        ("asd", {"draft": "slope"}, ("asd", "slope", 1)),
        ("asd-slope", {}, ("asd", "slope", 1)),
        ("asd-memory", {"window": 4}, ("asd", "memory", 1, 4)),
        ("asd-frozen", {}, ("asd", "frozen", 1)),
        ("asd-paper", {}, ("asd", "frozen", 2)),
        ("asd-paper", {"draft": "frozen", "calls_per_round": 2}, ("asd", "frozen", 2)),
        ("asd-ddim", {"eta": 1.0}, ("asd", "secant", 1, "auto", 10, 1.0)),
        ("asd-ddim", {"eta": 0.5, "steps": 7}, ("asd", "secant", 1, "auto", 7, 0.5)),
        ("ddim-16", {}, ("ddim", None, None, "auto", 16)),
        ("ddim-16", {"steps": 16, "eta": 0.5}, ("ddim", None, None, "auto", 16, 0.5)),
        ("ddpm", {}, ("ddpm",)),
        ("paradigms", {}, ("paradigms",)),
    ],
)
def test_names_of_the_command_line_are_forms_of_the_four(
    name: str, options: dict, spelled_out: tuple
) -> None:
    assert SamplerConfig.named(name, **options) == SamplerConfig(*spelled_out)
    assert SamplerConfig(name, **options) == SamplerConfig(*spelled_out)
    assert replace(SamplerConfig(name, **options)) == SamplerConfig(*spelled_out)


@pytest.mark.parametrize("name", [*SAMPLER_NAMES, "ddim-7"])
def test_every_name_samples_as_what_it_stands_for(name: str) -> None:
    options: dict = {"eta": 1.0} if name == "asd-ddim" else {}
    config = SamplerConfig(name, window=4, **options)
    got = sample(sampler=name, window=4, **options)
    again = sample(**{k if k != "name" else "sampler": v for k, v in asdict(config).items()})
    assert torch.equal(got.sample, again.sample)
    assert got.stats.calls.tolist() == again.stats.calls.tolist()


def test_the_command_line_and_the_core_mean_the_same_by_a_name() -> None:
    pytest.importorskip("tyro")
    from asd_policy.eval.options import EvalOptions
    from asd_policy.eval.samplers import sampler_settings

    options = EvalOptions(window=4, eta=0.5)
    for name in (*SAMPLER_NAMES, "ddim-7"):
        settings = sampler_settings(name, options)
        given = {"window": 4} if "window" in settings else {}
        given |= {"eta": 0.5} if "ddim" in name else {}
        given |= {"steps": 10} if name in ("ddim", "ddim-clipped") else {}
        assert SamplerConfig(settings.pop("sampler"), **settings) == SamplerConfig(name, **given)


def test_options_are_named_once() -> None:
    with pytest.raises(ValueError, match=r"got 'windw'; did you mean 'window'\?"):
        SamplerConfig.named("asd", windw=3)
    with pytest.raises(ValueError, match=r"has its options already; leave out window"):
        SamplerConfig.named(SamplerConfig(), window=3)
    assert SamplerConfig.named(SamplerConfig("ddpm")) == SamplerConfig("ddpm")


@pytest.mark.parametrize("seed", [0, 7, np.int64(7), 2**64 - 1])
def test_a_seed_is_the_generator_of_that_seed(seed: int) -> None:
    given = sample(generator=None, seed=seed).sample
    generator = torch.Generator().manual_seed(int(seed))
    assert torch.equal(given, sample(generator=generator).sample)


def test_a_calibration_may_be_seeded() -> None:
    network = MIXTURE.network(SCHEDULE)

    def slopes(**options: object) -> torch.Tensor:
        made = asd_policy.calibrate(
            network, SCHEDULE, shape=(3, 4), window=4, measure_costs=False, **options
        )
        return made.slopes(20)

    assert torch.equal(slopes(seed=5), slopes(generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(slopes(seed=5), slopes(seed=6))
    with pytest.raises(ValueError, match="expected seed or generator, got both"):
        slopes(seed=5, generator=torch.Generator())


@pytest.mark.parametrize("sampler", ["asd", "ddpm", "ddim", "paradigms"])
def test_what_a_run_cost_is_printed_on_one_line(sampler: str) -> None:
    result = sample(sampler=sampler, window=4)
    for text in (str(result.stats), repr(result.stats)):
        assert re.fullmatch(
            sampler + r": \d+(–\d+)? calls, \d+ evaluations, [\d.]+ ms(, window 4)?, 3 chains", text
        )
    assert repr(result) == f"sample of shape (3, 4); {result.stats}"
    calls = result.stats.calls.tolist()
    assert f"{min(calls)}" in str(result.stats)
    assert f"{max(calls)} calls" in str(result.stats)


def test_the_line_gives_the_range_of_calls_and_the_mean_of_evaluations() -> None:
    assert one_line("asd", 24, [15, 16], 208.4, 0.2754) == (
        "asd: 15–16 calls, 208 evaluations, 275 ms, window 24, 2 chains"
    )
    assert one_line("ddpm", 1, [1], 1.0, 0.00321) == "ddpm: 1 call, 1 evaluation, 3.21 ms"


class Wrapped(torch.nn.Module):
    """A network of another's, hidden in a module."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 4), layer)

    def forward(self, x, timesteps, cond):  # type: ignore[no-untyped-def]
        return self.inner(x)


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: n.forward, lambda n: partial(n)])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (torch.nn.BatchNorm1d(4), r"BatchNorm1d 'inner\.1' mixes the rows of a call in training"),
        (torch.nn.Dropout(0.1), r"Dropout 'inner\.1' draws at random in training mode"),
        (torch.nn.AlphaDropout(0.1), r"AlphaDropout 'inner\.1' draws at random"),
        (torch.nn.RReLU(), r"RReLU 'inner\.1' draws at random"),
    ],
)
def test_a_network_in_training_mode_is_refused_where_that_matters(
    layer: torch.nn.Module, message: str, wrap: Callable, sampler: str
) -> None:
    network = Wrapped(layer).train()
    with pytest.raises(ValueError, match=message + r".*; call network\.eval\(\)"):
        asd_policy.sample(wrap(network), SCHEDULE, shape=(2, 4), sampler=sampler)
    with pytest.raises(ValueError, match=message):
        asd_policy.calibrate(wrap(network), SCHEDULE, shape=(2, 4))
    network.eval()
    kept = asd_policy.sample(network, SCHEDULE, shape=(2, 4), sampler=sampler)
    network.train()  # after the engine was made
    with pytest.raises(ValueError, match=message):
        asd_policy.sample(network, SCHEDULE, shape=(2, 4), sampler=sampler, engine=kept.engine)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (torch.nn.BatchNorm1d(4), "mixes the rows of a call in training"),
        (torch.nn.Dropout(0.1), "draws at random in training mode"),
        (torch.nn.RReLU(), "draws at random in training mode"),
    ],
)
def test_so_is_one_that_was_scripted(layer: torch.nn.Module, message: str) -> None:
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 4), layer).train())
    network = Wrapped(scripted)
    with pytest.raises(ValueError, match=message):
        asd_policy.sample(network, SCHEDULE, shape=(2, 4))
    asd_policy.sample(network.eval(), SCHEDULE, shape=(2, 4))


def test_training_mode_is_allowed_where_it_changes_nothing() -> None:
    for layer in (torch.nn.Dropout(0.0), torch.nn.LayerNorm(4), torch.nn.Mish()):
        asd_policy.sample(Wrapped(layer).train(), SCHEDULE, shape=(2, 4))
        asd_policy.sample(Wrapped(torch.jit.script(layer)).train(), SCHEDULE, shape=(2, 4))


def test_batch_norm_without_running_statistics_is_refused_in_every_mode() -> None:
    network = Wrapped(torch.nn.BatchNorm1d(4, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match=r"has no running statistics.*not independent"):
        asd_policy.sample(network, SCHEDULE, shape=(2, 4))


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


@pytest.mark.parametrize("name", ["asd", "paradigms"])
def test_speculation_on_a_ddim_that_uses_the_prediction_itself_is_refused(name: str) -> None:
    chain = SCHEDULE.ddim(20, 0.5)
    assert bool(chain.c.any())
    message = f"(?i){name} needs steps whose mean .* use_clipped_model_output=True"
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
