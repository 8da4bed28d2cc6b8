"""Observations that a policy cannot see: the same sentence here as from a server."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asd_policy.errors import InputError, NonFiniteError
from asd_policy.policy import Controller, DiffusionPolicy, SamplerConfig
from asd_policy.policy.observations import numbers, one_row
from reference.recording_policy import observation
from reference.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return DiffusionPolicy(tiny_checkpoint(), SamplerConfig(window=4))


WRONG = {
    "complex": (np.zeros(3, complex), "must be of numbers, got complex128"),
    "text": ("hello", "must be of numbers, got <U5"),
    "a mapping": ({"a": 1}, "must be of numbers, got object"),
    "None": (None, "must be of numbers, got object"),
    "Nones": (np.array([None] * 3), "must be of numbers, got object"),
    "ragged": ([[1], [1, 2]], "is no array"),
    "of a graph": (torch.zeros(3, requires_grad=True), "is no array"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_holds_no_numbers_is_named_and_nothing_is_remembered(policy, name) -> None:
    value, message = WRONG[name]
    policy.reset(0)
    with pytest.raises(InputError, match=f"^observation 'object' {message}"):
        policy.act({**observation(0.0), "object": value})
    with pytest.raises(InputError, match=r"^observation 'object' "):
        policy.observe({**one_row(observation(0.0)), "object": [value]})
    assert not policy.environments[0].history


@pytest.mark.parametrize("kind", [np.int64, np.uint8, bool, np.float16, np.float64])
def test_numbers_of_any_kind_are_seen(policy, kind) -> None:
    policy.reset(0)
    expected = policy.act(observation(0.0) | {"object": np.ones(3, np.float32)})
    policy.reset(0)
    got = policy.act(observation(0.0) | {"object": np.ones(3, kind)})
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("value", [None, [1], "object", np.zeros(3)])
def test_an_observation_is_a_mapping(policy, value) -> None:
    policy.reset(0)
    got = f"^expected a mapping of names, an observation; got a {type(value).__name__}$"
    for call in (policy.act, policy.observe, policy.act_batch):
        with pytest.raises(InputError, match=got):
            call(value)


def test_what_the_policy_does_not_see_may_be_anything(policy) -> None:
    policy.act(observation(0.0) | {"note": "lift it", "frames": [[1], [1, 2]], "camera": None})


def test_a_number_that_float32_cannot_hold_is_infinite() -> None:
    assert numbers("x", [1e300]).dtype == np.float64
    with pytest.raises(NonFiniteError, match="'x' holds a NaN or infinite value"):
        numbers("x", [1e300], np.float32)


def test_a_robot_s_observations_are_checked_as_well(policy) -> None:
    class Robot:
        def observe(self):  # type: ignore[no-untyped-def]
            return None

        def act(self, action: np.ndarray) -> None: ...

    with pytest.raises(InputError, match="expected a mapping of names"):
        Controller(policy).run(Robot(), 100.0, 1)
