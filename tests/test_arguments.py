"""Arguments of another kind: one sentence each, of what was expected and what came."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy import Schedule
from asd_policy.errors import InputError
from reference.mixture import Mixture

MIXTURE = Mixture(4)
SCHEDULE = Schedule.ddpm(20)


def sample(**options):  # type: ignore[no-untyped-def]
    options = {"generator": torch.Generator().manual_seed(0)} | options
    return asd_policy.sample(MIXTURE.network(SCHEDULE), SCHEDULE, **options)


@pytest.mark.parametrize("schedule", [100, None, SCHEDULE.config])
def test_the_schedule_is_one(schedule: object) -> None:
    with pytest.raises(InputError, match=r"schedule must be an asd_policy\.Schedule, .*; got "):
        asd_policy.sample(MIXTURE.network(SCHEDULE), schedule, shape=(3, 4))


def test_the_denoiser_can_be_called() -> None:
    with pytest.raises(InputError, match=r"denoiser must be a network or .*; got NoneType"):
        asd_policy.sample(None, SCHEDULE, shape=(3, 4))


@pytest.mark.parametrize(
    ("denoiser", "taken"),
    [(lambda x, t: x, r"\(x, t\)"), (torch.nn.Linear(4, 4), r"\(input"), (lambda: 0, r"\(\)")],
)
def test_the_denoiser_takes_points_times_and_conditions(denoiser: object, taken: str) -> None:
    message = rf"called as denoiser\(x, timesteps, cond\); this one takes {taken}"
    with pytest.raises(InputError, match=message):
        asd_policy.sample(denoiser, SCHEDULE, shape=(3, 4))


def test_sizes_may_be_of_numpy_and_of_torch() -> None:
    expected = sample(shape=(3, 4)).sample
    for shape in ([3, 4], torch.Size([3, 4]), (np.int64(3), torch.tensor(4)), np.array([3, 4])):
        given = sample(shape=shape)
        assert torch.equal(given.sample, expected)


def test_an_unknown_option_is_told_the_function_s_own_as_well() -> None:
    message = r"options of calibrate are sampler, .*chunks, .*draft, .*; got 'chunk'; did you mean"
    with pytest.raises(InputError, match=message):
        asd_policy.calibrate(MIXTURE.network(SCHEDULE), SCHEDULE, shape=(3, 4), chunk=1)
