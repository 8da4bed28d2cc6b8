"""Numbers of other libraries, schedules without signal, and what is not finite."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy import NonFiniteError, SamplerConfig, Schedule
from reference.mixture import Mixture

MIXTURE = Mixture(4)
SCHEDULE = Schedule.ddpm(20)


def sample(**options):  # type: ignore[no-untyped-def]
    options = {"shape": (3, 4), "generator": torch.Generator().manual_seed(0)} | options
    return asd_policy.sample(MIXTURE.network(SCHEDULE), SCHEDULE, **options)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.tensor])
def test_whole_numbers_of_other_libraries_are_whole_numbers(kind: Callable) -> None:
    schedule = Schedule.ddpm(kind(20))
    assert schedule.to_dict() == SCHEDULE.to_dict()
    assert type(schedule.config.num_steps) is int
    assert SCHEDULE.respaced(kind(10)).to_dict() == SCHEDULE.respaced(10).to_dict()
    assert SCHEDULE.ddim(kind(10)).to_dict() == SCHEDULE.ddim(10).to_dict()
    config = SamplerConfig(window=kind(4), steps=kind(5), calls_per_round=kind(1))
    assert config == SamplerConfig(window=4, steps=5)
    assert {type(getattr(config, name)) for name in ("window", "steps", "calls_per_round")} == {int}
    given = sample(sampler="ddim", steps=kind(5), shape=(kind(3), kind(4))).sample
    assert torch.equal(given, sample(sampler="ddim", steps=5).sample)


@pytest.mark.parametrize("bad", [np.float64(10.0), np.array([10]), torch.tensor([1, 2])])
def test_other_numbers_are_not(bad: object) -> None:
    with pytest.raises(ValueError, match="window must be"):
        SamplerConfig(window=bad)  # type: ignore[arg-type]


def test_betas_are_one_thing_however_they_come() -> None:
    betas = np.linspace(0.01, 0.3, 5)
    kinds = (tuple(betas), betas.tolist(), betas, torch.from_numpy(betas))
    made = [Schedule.ddpm(5, trained_betas=kind) for kind in kinds]
    assert len({json.dumps(schedule.to_dict()) for schedule in made}) == 1
    assert Schedule.from_dict(made[2].to_dict()).config == made[0].config


@pytest.mark.parametrize("sampler", ["ddpm", "asd", "ddim", "paradigms"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "epsilon"])
@pytest.mark.parametrize("betas", [(0.1, 0.5, 0.9, 1.0), (0.1, *[0.999999999] * 60)])
def test_a_schedule_that_ends_without_signal(
    sampler: str, prediction: str, betas: tuple[float, ...]
) -> None:
    """Zero terminal SNR (Lin et al., 2024), told by a beta of 1 or by underflow."""

    def draw() -> torch.Tensor:
        schedule = Schedule.ddpm(len(betas), prediction_type=prediction, trained_betas=betas)
        options = {"shape": (2, 4), "sampler": sampler, "seed": 0}
        steps = {"steps": 4} if sampler == "ddim" else {}
        return asd_policy.sample(lambda x, t, c: 0.3 * x, schedule, **options, **steps).sample

    if prediction == "epsilon":
        with pytest.raises(ValueError, match=r"may be 1 where|signal of only .* beyond torch"):
            draw()
    else:
        assert bool(draw().isfinite().all())


def test_a_signal_beyond_the_dtype_is_refused_where_it_is_sampled() -> None:
    schedule = Schedule.ddpm(6, trained_betas=[0.98] * 6)
    for dtype in (torch.float32, torch.float64):
        asd_policy.sample(lambda x, t, c: 0 * x, schedule, shape=(1, 4), dtype=dtype)
    with pytest.raises(ValueError, match=r"signal of only 8\.0e-06.* beyond torch\.float16"):
        asd_policy.sample(lambda x, t, c: 0 * x, schedule, shape=(1, 4), dtype=torch.float16)


def test_what_is_not_finite_is_blamed_on_where_it_came_from() -> None:
    cond = torch.zeros(2, 1)
    cond[1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^cond holds a NaN"):
        asd_policy.sample(lambda x, t, c: x + c, SCHEDULE, shape=(2, 4), cond=cond)
    # Every prediction is finite; what the chain makes of it is not.
    unclipped = Schedule.ddpm(20, clip_sample=False)
    for sampler in ("ddpm", "ddim"):
        with pytest.raises(NonFiniteError, match=r"^the sample holds a NaN or infinite value"):
            asd_policy.sample(
                lambda x, t, c: torch.full_like(x, 3e38), unclipped, shape=(2, 4), sampler=sampler
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("draft", ["secant", "slope", "memory", "frozen"])
def test_chains_in_half_precision(dtype: torch.dtype, draft: str) -> None:
    made = asd_policy.sample(
        lambda x, t, c: 0.3 * x, SCHEDULE, shape=(4, 2, 7), draft=draft, dtype=dtype, window=8
    )
    assert made.sample.dtype == dtype
    assert made.sample.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pytorchs_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    """Simulation and planning code sets it."""

    def act() -> np.ndarray:
        policy = asd_policy.DiffusionPolicy.load("lift", window=16)
        policy.reset(0)
        return policy.act({key: np.full(dim, 0.1) for key, dim in policy.observation_keys.items()})

    expected = act()
    torch.set_default_dtype(dtype)
    try:
        assert np.array_equal(act(), expected)
    finally:
        torch.set_default_dtype(torch.float32)
