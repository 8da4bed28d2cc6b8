"""The sampler as one object, noise that is handed in, and the table of samplers."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy import Noise, Sampler, SamplerConfig, Schedule
from asd_policy.drafts import Form
from asd_policy.errors import InputError
from asd_policy.policy.inpaint import AsItIs
from asd_policy.samplers.names import SAMPLER_FORMS
from asd_policy.samplers.result import streams
from asd_policy.samplers.table import METHODS, register
from reference.mixture import Mixture

SCHEDULE = Schedule.ddpm(20)
NETWORK = Mixture(6).network(SCHEDULE)
SHAPE = 3, 2, 3


def flat(x, timesteps, cond):  # type: ignore[no-untyped-def]
    return NETWORK(x.flatten(1), timesteps, cond).view(x.shape)


def sample(**options):  # type: ignore[no-untyped-def]
    return asd_policy.sample(flat, SCHEDULE, shape=SHAPE, **{"window": 4, **options})


@pytest.mark.parametrize("sampler", ["asd", "ddpm", "paradigms"])
def test_noise_may_be_handed_in(sampler: str) -> None:
    """What a seed gives, drawn by hand, gives the same sample; in either shape, of any type."""
    expected = sample(sampler=sampler, seed=7).sample
    noise = Noise.draw(SHAPE, 20, seed=7)
    assert torch.equal(sample(sampler=sampler, noise=noise).sample, expected)
    shaped = Noise(
        noise.initial.view(SHAPE).double(), noise.steps.view(3, 20, 2, 3), noise.log_uniform
    )
    assert torch.equal(sample(sampler=sampler, noise=shaped).sample, expected)
    other = Noise(-noise.initial, noise.steps, noise.log_uniform)
    assert not torch.equal(sample(sampler=sampler, noise=other).sample, expected)


def test_samplers_can_share_their_noise() -> None:
    """Where every draft is its target, the samples are then the same too."""
    schedule = Schedule.ddpm(20, prediction_type="sample")
    point = torch.linspace(-0.5, 0.5, 6).view(2, 3)
    noise = Noise.draw(SHAPE, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = [
        asd_policy.sample(
            lambda x, t, c: point.to(x).expand_as(x), schedule, shape=SHAPE, sampler=name,
            noise=noise, dtype=torch.float64, window=6,
        )
        for name in ("asd", "ddpm")
    ]  # fmt: skip
    torch.testing.assert_close(drawn[0].sample, drawn[1].sample, rtol=0, atol=1e-12)
    assert int(drawn[0].stats.calls.max()) < 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": torch.zeros(2, 6)}, r"noise\.initial must be \(3, 6\); got \(2, 6\)"),
        ({"steps": torch.zeros(3, 10, 6)}, r"noise\.steps must be \(3, 20, 6\); got \(3, 10, 6\)"),
        ({"log_uniform": torch.zeros(3, 19)}, r"noise\.log_uniform must be \(3, 20\); got"),
        ({"steps": torch.full((3, 20, 6), torch.nan)}, r"noise\.steps holds a NaN or infinite"),
        ({"log_uniform": torch.ones(3, 20)}, r"noise\.log_uniform must hold logarithms of"),
    ],
)
def test_noise_for_something_else_is_refused(change: dict, message: str) -> None:
    noise = Noise(**{**vars(Noise.draw(SHAPE, 20, seed=0)), **change})
    with pytest.raises(ValueError, match=message):
        sample(noise=noise)
    with pytest.raises(ValueError, match=r"expected noise, or a seed or generator .*, got both"):
        sample(noise=Noise.draw(SHAPE, 20, seed=0), seed=0)


def made(**options: object) -> Sampler:
    config = SamplerConfig("asd", window=5)
    return Sampler(flat, SCHEDULE, SHAPE[1:], config, dtype=torch.float64, **options)


def inputs(sampler: Sampler, seed: int = 0):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield sampler.noise(streams(generator, 3)), None


def test_a_frozen_sampler_draws_the_same_whatever_came_before() -> None:
    sampler = made()
    sampler.calibrate(inputs(sampler), chunks=2)
    assert sampler.calibration.chunks == 2
    assert bool(sampler.calibration.slopes(20).any())
    sampler.freeze()
    noise, _ = next(inputs(sampler, 5))
    first, stats = sampler.draw(noise)
    assert first.shape == SHAPE
    assert stats.sums is None
    sampler.draw(next(inputs(sampler, 6))[0])
    assert torch.equal(sampler.draw(noise)[0], first)
    sampler.close()
    assert torch.equal(sampler.draw(noise)[0], first)
    assert sampler.calibration.chunks == 2


def test_a_sampler_learns_until_it_is_frozen() -> None:
    sampler = made()
    noise, _ = next(inputs(sampler))
    before, stats = sampler.draw(noise)
    assert stats.sums is not None
    assert not torch.equal(sampler.draw(noise)[0], before), "its slopes have been learned meanwhile"
    assert sampler.calibration.chunks == 2


def test_a_stored_calibration_is_used_if_it_is_of_this_sampler() -> None:
    learner = made()
    learner.calibrate(inputs(learner), chunks=2)
    stored = learner.calibration.to_dict()
    for config, used in (
        (SamplerConfig(), True),
        (SamplerConfig(window=3), True),
        (SamplerConfig("asd-slope"), False),
        (SamplerConfig(eta=0.5), False),
        (SamplerConfig("ddpm"), False),
    ):
        sampler = Sampler(flat, SCHEDULE, SHAPE[1:], config, stored=stored)
        assert sampler.calibration.frozen is used, config
        assert (sampler.calibration.chunks > 0) is used, config


def test_the_same_plan_draws_a_chunk_again() -> None:
    sampler = made()
    noise, _ = next(inputs(sampler))
    plan = sampler.plan(3)
    drawn, _ = sampler.draw(noise, plan=plan)
    sampler.calibrate(inputs(sampler, 1), chunks=3)
    assert not torch.equal(sampler.draw(noise)[0], drawn)
    assert torch.equal(sampler.draw(noise, plan=plan)[0], drawn)


def test_forms_say_what_flags_said() -> None:
    assert (Form("secant").ahead, Form("secant").secants) == (0, True)
    assert (Form("frozen", 2).ahead, Form("frozen", 2).secants) == (1, False)
    assert len({Form("secant"), Form("secant", 1), Form("secant", 1, True)}) == 2


# ---- the table -----------------------------------------------------------------------------------


def test_every_sampler_of_the_command_line_is_in_the_table() -> None:
    assert {form["name"] for form in SAMPLER_FORMS.values()} == set(METHODS)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="there is a sampler 'asd-paper' already"):
        register("asd-paper")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddpm", "eta": 0.0}, 'eta applies to the samplers "asd" and "ddim", not to'),
        (
            {"sampler": "asd", "use_clipped_model_output": True},
            "use_clipped_model_output applies to the sampler \"ddim\", not to 'asd'",
        ),
    ],
)
def test_options_apply_to_those_that_take_them(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(**options)


def test_counts_of_a_chunk_are_host_arrays() -> None:
    stats = made().draw(next(inputs(made()))[0])[1]
    assert isinstance(stats.sums, np.ndarray)
    assert stats.sums.shape == (2, 20)


def fixed(**options: object) -> Sampler:
    calibration = asd_policy.calibrate(flat, SCHEDULE, shape=SHAPE, window=4, seed=1)
    calibration.frozen = True
    given = {"calibration": calibration, **options}
    return Sampler(flat, SCHEDULE, SHAPE[1:], SamplerConfig(window=4), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_noise_becomes_the_engine_s(kernels: str, dtype: torch.dtype, given: torch.dtype) -> None:
    """Of another type, C would read the tables of one as numbers of the other."""
    made = fixed(dtype=dtype, kernels=kernels)
    noise = Noise.draw(SHAPE, 20, seed=3, dtype=given)
    x, _ = made.draw(noise)
    expected, _ = made.draw(noise.fitted(3, 20, made.engine.like))
    assert x.dtype == dtype
    assert torch.equal(x, expected)
    shaped = Noise(noise.initial.view(SHAPE), noise.steps.view(3, 20, 2, 3), noise.log_uniform)
    assert torch.equal(made.draw(shaped)[0], expected)


@pytest.mark.parametrize("config", [SamplerConfig(window=4), SamplerConfig("ddpm")])
@pytest.mark.parametrize(
    ("shape", "steps", "cond", "message"),
    [
        (SHAPE, 1, None, r"noise\.steps must be \(3, 20, 6\)"),
        (SHAPE, 50, None, r"noise\.steps must be \(3, 20, 6\)"),
        ((3, 12), 20, None, r"noise\.initial must be \(3, 6\)"),
        (SHAPE, 20, 5, "conditions of as many; got 3 and 5"),
        (SHAPE, 20, 1, "conditions of as many; got 3 and 1"),
        ((0, 6), 20, None, "of one chain or more"),
    ],
)
def test_a_loop_s_own_noise_is_looked_at(
    config: SamplerConfig, shape: tuple[int, ...], steps: int, cond: int | None, message: str
) -> None:
    made = Sampler(flat, SCHEDULE, SHAPE[1:], config)
    noise = Noise(
        torch.zeros(shape).flatten(1), torch.zeros(shape[0], steps, 12 if 12 in shape else 6),
        torch.zeros(shape[0], steps),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        made.draw(noise, None if cond is None else torch.zeros(cond, 2))


def test_a_kept_engine_has_its_own_type_and_device() -> None:
    first = sample(seed=0, dtype=torch.float64)
    assert sample(seed=0, engine=first.engine).sample.dtype == torch.float64
    for other in ({"dtype": torch.float32}, {"device": "meta"}):
        with pytest.raises(ValueError, match=r"this engine's chains are torch.float64 on cpu; got"):
            sample(seed=0, engine=first.engine, **other)
    kept = sample(seed=0, engine=first.engine, dtype=torch.float64, device="cpu")
    assert kept.engine is first.engine


def test_what_of_an_engine_is_another_is_said() -> None:
    engine = sample(seed=0).engine

    def draw(network=flat, schedule=SCHEDULE, shape=SHAPE, **more) -> None:  # type: ignore[no-untyped-def]
        asd_policy.sample(network, schedule, shape=shape, engine=engine, window=4, seed=0, **more)

    for change, other in [
        ({"network": lambda x, t, c: 0 * x}, "got another network"),
        ({"schedule": Schedule.ddpm(20, beta_schedule="linear")}, "got another schedule"),
        ({"schedule": replace(SCHEDULE, sigma=SCHEDULE.sigma / 2)}, "got another schedule"),
        ({"shape": (3, 6)}, r"got another shape or chain \(\(6,\) in 20 steps\)"),
        ({"steps": 10}, r"got another shape or chain \(\(2, 3\) in 10 steps\)"),
    ]:
        with pytest.raises(InputError, match=other):
            draw(**change)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool, torch.float8_e5m2])
def test_chains_are_of_real_numbers_that_can_be_drawn(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"dtype must be one of torch.float64, torch.float32"):
        sample(seed=0, dtype=dtype)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "options", [{"sampler": "ddpm"}, {"window": 4}, {"window": 4, "rejoin": True}]
)
def test_a_network_may_write_into_its_input(batch: int, options: dict) -> None:
    def plain(x, t, c):  # type: ignore[no-untyped-def]
        return 0.5 * x

    def in_place(x, t, c):  # type: ignore[no-untyped-def]
        return x.mul_(0.5)

    made = [
        asd_policy.sample(network, SCHEDULE, shape=(batch, 2, 3), seed=2, **options).sample
        for network in (plain, in_place)
    ]
    assert torch.equal(*made)


def test_a_ddim_schedule_s_own_steps_and_noise_are_the_default() -> None:
    chain = SCHEDULE.ddim(8, 1.0)
    found = asd_policy.sample(flat, chain, shape=SHAPE, sampler="ddim", seed=0)
    asked = asd_policy.sample(flat, SCHEDULE, shape=SHAPE, sampler="ddim", steps=8, eta=1.0, seed=0)
    assert torch.equal(found.sample, asked.sample)
    assert found.stats.calls.tolist() == [8, 8, 8]
    other = asd_policy.sample(flat, chain, shape=SHAPE, sampler="ddim", eta=0.0, seed=0)
    assert not torch.equal(other.sample, asked.sample)


@pytest.mark.parametrize("calls", [1.0, 2.0, True])
def test_calls_a_round_are_whole_numbers(calls: object) -> None:
    with pytest.raises(ValueError, match="calls_per_round must be"):
        SamplerConfig(calls_per_round=calls)  # type: ignore[arg-type]


class Dropping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, timesteps, cond):  # type: ignore[no-untyped-def]
        return self.drop(0.5 * x)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_that_went_back_to_training_is_refused_at_the_next_chunk(wrapped: bool) -> None:
    network = Dropping().eval()
    source = AsItIs(network, SCHEDULE.timesteps) if wrapped else network
    made = Sampler(source, SCHEDULE, (6,), SamplerConfig(window=4))
    noise = made.noise(streams(torch.Generator().manual_seed(0), 2))
    made.draw(noise)
    network.train()
    with pytest.raises(InputError, match=r"Dropout 'drop' draws at random .* network.eval\(\)"):
        made.draw(noise)


def test_a_network_may_take_gradients_of_its_own() -> None:
    """As the docstring says that guidance does."""

    def guided(x, timesteps, cond):  # type: ignore[no-untyped-def]
        with torch.inference_mode(False), torch.enable_grad():
            at = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(0.25 * at.square().sum(), at)
        return gradient

    found = asd_policy.sample(guided, SCHEDULE, shape=SHAPE, seed=1, window=4).sample
    plain = asd_policy.sample(lambda x, t, c: 0.5 * x, SCHEDULE, shape=SHAPE, seed=1, window=4)
    torch.testing.assert_close(found, plain.sample)
