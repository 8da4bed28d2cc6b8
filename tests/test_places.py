"""Conditions that lie on another device than the chains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import asd_policy


class Elsewhere(Tensor):
    """A tensor that lies, as far as it says, on a device that this machine has not."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> Elsewhere:
        options = {"dtype": there.dtype, "device": "meta"}
        made = Tensor._make_wrapper_subclass(cls, there.shape, **options)  # type: ignore[attr-defined]
        made.there = there
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.overloadpacket.__name__, (args, kwargs or {})
        tensors = [t for t in args if isinstance(t, Tensor)]
        moved = name in ("to", "_to_copy")
        assert moved or all(isinstance(t, cls) for t in tensors), f"{name} of two devices"
        args, kwargs = tree_map(lambda t: t.there if isinstance(t, cls) else t, given)
        out = func(*args, **kwargs)
        return out if moved or not isinstance(out, Tensor) else cls(out)


def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
    assert cond is not None
    return 0.5 * x + cond[:, :, None]


def test_conditions_follow_the_chains() -> None:
    """As in a loop whose observations are the host's and whose network is on a GPU."""
    cond, schedule = torch.rand(2, 3), asd_policy.Schedule.ddpm(10)
    drawn = [
        asd_policy.sample(network, schedule, shape=(2, 3, 4), cond=each, device="cpu", seed=0)
        for each in (cond, Elsewhere(cond))
    ]
    assert torch.equal(drawn[0].sample, drawn[1].sample)
