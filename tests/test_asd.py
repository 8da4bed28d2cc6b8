"""Invariants of autospeculative decoding: what must hold for any network, schedule and window."""

from __future__ import annotations

import gc
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import asd_policy
from asd_policy import Calibration, Noise, SamplerConfig, Schedule, Stats, chains, sampling
from asd_policy.drafts import DRAFTS
from asd_policy.samplers import asd
from asd_policy.schedule import BETA_SCHEDULES, PREDICTION_TYPES, VARIANCE_TYPES
from reference.chains import bulk_noise, run
from reference.mixture import Mixture

FORMS = list(itertools.product(DRAFTS, (1, 2)))


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def wild(slope: float):
    """A network that answers with huge, ever-changing slopes: few drafts can come true."""

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        phase = slope * x + timesteps.view(-1, *[1] * (x.ndim - 1)).to(x)
        together = phase.cos().sum(dim=tuple(range(1, x.ndim)), keepdim=True)
        return 3 * torch.sin(phase) + 0.1 * together

    return network


def check_books(stats: Stats, num_steps: int, window: int, calls_per_round: int) -> None:
    """What calls, evaluations and decisions must satisfy together."""
    calls, rejections = stats.calls, stats.rejections
    accepted, decided = stats.accepted, stats.decided
    assert int(calls.max()) <= num_steps
    assert int(calls.min()) >= 1
    assert accepted.shape == decided.shape == (len(calls), num_steps)
    assert bool(((accepted >= 0) & (accepted <= decided) & (decided <= 1)).all())
    # Every step but the last is decided on exactly once, and the last never.
    assert bool((decided[:, :-1] == 1).all())
    assert not decided[:, -1].any()
    assert torch.equal(rejections, (decided - accepted).sum(1))
    # Each step is evaluated at least once, and a call evaluates at most a window.
    assert bool((stats.evaluations >= num_steps).all())
    assert bool((stats.evaluations <= calls * max(window, 1)).all())
    if calls_per_round == 1:
        # Every round but the last ends at a rejection or at the window's end.
        most_full_windows = (num_steps - 1 - rejections) // window
        assert bool((calls >= rejections).all())
        assert bool((calls <= rejections + most_full_windows + 1).all())
        if window >= num_steps:
            last_was_rejected = calls - rejections
            assert bool(((last_was_rejected == 0) | (last_was_rejected == 1)).all())
    else:
        assert not (decided - accepted)[:, 0].any(), "the paper's first proposal always stands"


# ---- drafts that equal their targets ------------------------------------------------------------


@pytest.mark.parametrize(("draft", "calls"), FORMS)
@pytest.mark.parametrize("window", [1, 5, 40])
def test_asd_is_ddpm_where_every_draft_is_right(draft: str, calls: int, window: int) -> None:
    """A denoiser that returns one clean sample whatever it sees: nothing is ever rejected."""
    clean = torch.linspace(-1, 1, 6, dtype=torch.float64)
    schedule = Schedule.ddpm(40, prediction_type="sample")
    noise = bulk_noise(3, 40, 6, 0)

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        return clean.expand_as(x)

    expected, _ = run(SamplerConfig("ddpm"), network, schedule, noise)
    config = SamplerConfig("asd", draft, calls, window)
    samples, stats = run(config, network, schedule, noise)
    # Before the first call nothing is known, and the one-call forms draft zero.
    unknown = window if calls == 1 else 0
    late = stats.accepted[:, unknown:-1]
    assert bool((late == 1).all())
    if calls == 2:
        torch.testing.assert_close(samples, expected, rtol=0, atol=1e-9)
        assert not stats.rejections.any()


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("window", [1, 5, 40])
def test_one_call_asd_is_ddpm_where_every_draft_is_right(draft: str, window: int) -> None:
    """The same for one call a round, with the clean sample 0, which is what a blank memory says."""
    schedule = Schedule.ddpm(40, prediction_type="sample")
    noise = bulk_noise(3, 40, 6, 0)

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    expected, _ = run(SamplerConfig("ddpm"), network, schedule, noise)
    samples, stats = run(SamplerConfig("asd", draft, 1, window), network, schedule, noise)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-9)
    assert not stats.rejections.any()
    assert stats.calls.tolist() == [-(-40 // window)] * 3
    assert stats.evaluations.tolist() == [40] * 3


# ---- the worst case -----------------------------------------------------------------------------


@pytest.mark.parametrize(("draft", "calls"), FORMS)
def test_calls_never_exceed_the_steps(draft: str, calls: int) -> None:
    for num_steps, slope in itertools.product((1, 2, 3, 10, 33, 60), (30.0, 1e4)):
        schedule = Schedule.ddpm(num_steps, clip_sample=False)
        for window in sorted({1, 2, 3, num_steps // 2, num_steps} - {0}):
            noise = bulk_noise(4, num_steps, 3, window)
            config = SamplerConfig("asd", draft, calls, window)
            _, stats = run(config, wild(slope), schedule, noise)
            check_books(stats, num_steps, window, calls)


@pytest.mark.parametrize(("draft", "calls"), FORMS)
def test_calls_where_every_draft_is_rejected(
    draft: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step a call with one call a round; the paper's form moves two steps in two calls."""

    def only_equal(noise: Tensor, delta: Tensor, log_uniform: Tensor) -> Tensor:
        return (delta == 0).all(-1)

    monkeypatch.setattr(asd, "accepts", only_equal)
    schedule, noise = Schedule.ddpm(21, clip_sample=False), bulk_noise(2, 21, 4, 0)
    for window in (1, 2, 7, 21):
        config = SamplerConfig("asd", draft, calls, window)
        _, stats = run(config, Mixture(4).network(schedule), schedule, noise)
        assert stats.calls.tolist() == [21, 21]
        if calls == 1:
            assert stats.rejections.tolist() == [20, 20]


# ---- shapes, schedules, windows -----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_schedule_shape_and_window(data: st.DataObject) -> None:
    draw = data.draw
    train = draw(st.integers(1, 40), label="training steps")
    steps = draw(st.integers(1, train), label="steps")
    form = draw(st.sampled_from(FORMS), label="form")
    window = draw(st.integers(1, 50), label="window")
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=2, max_size=5), label="shape"))
    clip = draw(st.booleans(), label="clip")
    schedule = Schedule.ddpm(
        train,
        draw(st.sampled_from(BETA_SCHEDULES), label="betas"),
        draw(st.sampled_from(PREDICTION_TYPES), label="prediction"),
        draw(st.sampled_from(VARIANCE_TYPES), label="variance"),
        clip,
        0.5,
        timestep_spacing=draw(st.sampled_from(("leading", "linspace", "trailing"))),
    )
    eta = draw(st.sampled_from((None, 0.2, 1.0)), label="eta")
    seen = []

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        assert x.shape[1:] == shape[1:]
        assert timesteps.shape == (len(x),)
        assert timesteps.dtype == torch.int64
        assert cond is not None
        assert cond.shape == (len(x), 2)
        seen.append(len(x))
        return torch.tanh(x + cond[:, :1].view(-1, *[1] * (x.ndim - 1)))

    result = asd_policy.sample(
        network,
        schedule,
        shape=shape,
        cond=torch.randn((shape[0], 2), generator=torch.Generator().manual_seed(1)),
        draft=form[0],
        calls_per_round=form[1],
        window=window,
        steps=steps,
        eta=eta,
        generator=torch.Generator().manual_seed(2),
    )
    assert result.sample.shape == shape
    assert result.sample.dtype == torch.float32
    assert bool(torch.isfinite(result.sample).all())
    check_books(result.stats, steps, window, form[1])
    assert int(result.stats.evaluations.sum()) == sum(seen)
    assert int(result.stats.calls.max()) <= len(seen) <= int(result.stats.calls.sum())
    # The last point is the last x̂0 where no noise follows it. (A DDIM's stride may end before 0,
    # as in diffusers, where it does not divide the training steps.)
    chain = SamplerConfig("asd", steps=steps, eta=eta).schedule(schedule)
    if clip and float(chain.sigma[-1]) == 0 and abs(float(chain.b[-1])) < 1e-12:
        assert float(result.sample.abs().max()) <= 0.5 + 1e-5


@pytest.mark.parametrize(("draft", "calls"), FORMS)
def test_window_beyond_the_chain_is_the_whole_chain(draft: str, calls: int) -> None:
    schedule, noise = Schedule.ddpm(12), bulk_noise(3, 12, 4, 0)
    network = Mixture(4).network(schedule)
    whole, far = (
        run(SamplerConfig("asd", draft, calls, window), network, schedule, noise)
        for window in (12, 1000)
    )
    assert torch.equal(whole[0], far[0])
    assert torch.equal(whole[1].calls, far[1].calls)


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("draft", "calls"), FORMS)
@pytest.mark.parametrize("slope", [0.0, 0.9])
def test_a_chain_does_not_depend_on_its_batch(draft: str, calls: int, slope: float) -> None:
    """The same stream gives the same sample and costs alone, in company, and in another order."""
    schedule = Schedule.ddpm(80, clip_range=1.0)
    mixture = Mixture(5)
    calibration = Calibration.from_dict(
        {
            "chunks": 1,
            "slope_cross": [slope] * 80,
            "slope_square": [1.0] * 80,
            "accepted": [1] * 80,
            "decided": [1] * 80,
        }
    )
    calibration.frozen = True
    network = mixture.network(schedule)

    def draw(*seeds: int) -> tuple[Tensor, Stats]:
        result = asd_policy.sample(
            lambda x, t, cond: network(x, t, cond) + 0.2 * cond,
            schedule,
            shape=(len(seeds), 5),
            cond=torch.tensor([[0.1 * seed] for seed in seeds], dtype=torch.float64),
            draft=draft,
            calls_per_round=calls,
            window=6,
            generator=streams(*seeds),
            calibration=calibration,
            dtype=torch.float64,
        )
        return result.sample, result.stats

    seeds = list(range(12))
    together, stats = draw(*seeds)
    for order in ([7], [3, 7], [7, 11, 0, 3], seeds[::-1]):
        apart, costs = draw(*order)
        torch.testing.assert_close(apart, together[order], rtol=0, atol=1e-9)
        for name in ("calls", "evaluations", "accepted", "decided"):
            assert torch.equal(getattr(costs, name), getattr(stats, name)[order]), name


def test_one_generator_seeds_a_stream_for_each_chain() -> None:
    schedule = Schedule.ddpm(10)
    mixture = Mixture(4)

    def draw(generator, batch: int) -> Tensor:  # type: ignore[no-untyped-def]
        network = mixture.network(schedule)
        return asd_policy.sample(
            network, schedule, shape=(batch, 4), generator=generator, window=4
        ).sample

    first = draw(torch.Generator().manual_seed(5), 6)
    assert torch.equal(first, draw(torch.Generator().manual_seed(5), 6))
    assert not torch.equal(first, draw(torch.Generator().manual_seed(6), 6))
    torch.testing.assert_close(first[:4], draw(torch.Generator().manual_seed(5), 4))
    assert len({tuple(row.tolist()) for row in first}) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_guess_is_accepted_as_seldom_as_it_should_be(dtype: torch.dtype) -> None:
    """Whatever the chain's numbers are: of bfloat16's own uniforms the least is 1/256."""
    noise = Noise.draw((4, 1), 100_000, seed=0, dtype=dtype)
    assert noise.log_uniform.dtype == dtype
    for probable in (1e-1, 1e-2, 1e-3):
        share = float((noise.log_uniform <= math.log(probable)).double().mean())
        assert share == pytest.approx(probable, rel=4 / math.sqrt(400_000 * probable) + 0.01)


def test_several_generators_say_where_chains_are_as_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule, seen = Schedule.ddpm(5), []

    def sampler(*args: object) -> None:
        seen.append(args[-2])
        raise InterruptedError

    monkeypatch.setattr(sampling, "_sampler", sampler)
    elsewhere = SimpleNamespace(device="cuda:1")
    for generator in (elsewhere, [elsewhere, elsewhere], None, []):
        with pytest.raises(InterruptedError):
            asd_policy.sample(wild(1.0), schedule, shape=(2, 4), generator=generator)
    assert seen == ["cuda:1", "cuda:1", "cpu", "cpu"]


def test_tables_go_with_their_schedule() -> None:
    """They grow with the square of the steps; each draw with ``steps=`` makes a schedule."""
    schedule = Schedule.ddpm(20)
    network = Mixture(4).network(schedule)
    gc.collect()
    before = len(chains._made)
    for _ in range(3):
        asd_policy.sample(network, schedule, shape=(1, 4), steps=7)
        gc.collect()
        assert len(chains._made) == before


def test_chains_that_finish_early_are_left_alone() -> None:
    """A batch of fast and slow chains: the fast ones stop calling, and keep their samples."""
    schedule = Schedule.ddpm(30, prediction_type="sample", clip_sample=False)
    cond = torch.tensor([[0.0], [1.0]], dtype=torch.float64)

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        return cond * 3 * torch.sin(50 * x)

    noise = bulk_noise(2, 30, 3, 0)
    samples, stats = run(SamplerConfig("asd", "memory", 1, 30), network, schedule, noise, cond=cond)
    assert int(stats.calls[0]) == 1
    assert int(stats.evaluations[0]) == 30
    assert int(stats.calls[1]) > 10
    assert np.array_equal(samples[0], np.zeros(3))
