"""What a network is given and gives back: one tensor, or one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy import Schedule
from asd_policy.errors import NonFiniteError


@pytest.mark.parametrize(
    ("cond", "what"),
    [
        ({"state": torch.ones(3, 2)}, "a dict"),
        ((torch.ones(3, 2), torch.ones(3, 1)), "a tuple"),
        ([1.0, 2.0, 3.0], "a list"),
        (np.ones((3, 2)), "a ndarray"),
        (torch.tensor(1.0), "a number"),
        ("lift", "a str"),
    ],
)
@pytest.mark.parametrize("call", [asd_policy.sample, asd_policy.calibrate])
def test_conditions_are_one_tensor(call, cond, what) -> None:
    with pytest.raises(ValueError, match=rf"^cond must be a tensor with a row .* got {what} \("):
        call(lambda x, t, c: x, Schedule.ddpm(5), shape=(3, 4), cond=cond)


@pytest.mark.parametrize("answer", [lambda x: (x,), lambda x: {"sample": x}, lambda x: x.numpy()])
@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
def test_a_network_returns_a_tensor(answer, sampler) -> None:
    with pytest.raises(
        ValueError, match=r"network must return a tensor of .* got a (tuple|dict|ndarray)"
    ):
        asd_policy.sample(
            lambda x, t, c: answer(x), Schedule.ddpm(5), shape=(3, 4), sampler=sampler
        )


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
@pytest.mark.parametrize("first", [torch.int64, torch.bfloat16])
def test_conditions_of_another_type_are_not_cut_down(sampler, first) -> None:
    """By a kept engine, whose first chunk's may have been whole numbers."""
    schedule = Schedule.ddpm(6, prediction_type="sample", clip_sample=False)
    kept = {"shape": (2, 3), "sampler": sampler, "seed": 0}

    def network(x, timesteps, cond):
        return 0 * x + cond

    begun = asd_policy.sample(network, schedule, cond=torch.ones(2, 3, dtype=first), **kept)
    cond = torch.tensor([[0.501, 0.702, -0.903]] * 2)
    again = asd_policy.sample(network, schedule, cond=cond, engine=begun.engine, **kept)
    torch.testing.assert_close(again.sample, cond, atol=1e-4, rtol=0)


def test_conditions_are_dense_and_finite() -> None:
    def call(cond: torch.Tensor) -> object:
        return asd_policy.sample(lambda x, t, c: x, Schedule.ddpm(5), shape=(3, 4), cond=cond)

    with pytest.raises(ValueError, match=r"^cond must be a dense tensor; got torch.sparse_coo"):
        call(torch.eye(3).to_sparse())
    with pytest.raises(NonFiniteError, match="cond holds a NaN"):
        call(torch.full((3, 1), complex("nan")))
