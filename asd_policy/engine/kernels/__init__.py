"""Which implementation does a round's arithmetic around its network call."""

from __future__ import annotations

from torch import Tensor, float32, float64  # not torch, which is a module here

from asd_policy.engine.kernels import native, triton
from asd_policy.engine.kernels import torch as reference
from asd_policy.errors import InputError
from asd_policy.samplers.kernels import Kernels
from asd_policy.schedule import check_choice

KERNELS = ("auto", "torch", "native", "triton")


def choose_kernels(name: str, like: Tensor) -> str:
    """What "auto" means for tensors like this one: "native" on a CPU, "triton" on CUDA, or "torch".

    Raises:
        ValueError: an unknown name, or kernels that cannot be had here.
    """
    check_choice("kernels", name, KERNELS)
    missing = {
        "torch": None,
        "native": _without_native(like),
        "triton": _unsuited(like, "cuda") or triton.available(),
    }
    if name == "auto":
        return next(kind for kind in ("triton", "native", "torch") if not missing[kind])
    if missing[name]:
        raise InputError(f"{name} kernels cannot be used: {missing[name]}")
    return name


def make_kernels(name: str) -> Kernels:
    """Kernels of a name from :func:`choose_kernels`."""
    kinds: dict[str, Kernels] = {"torch": reference, "native": native, "triton": triton}
    return kinds[name]


def _without_native(like: Tensor) -> str | None:
    if not native.available():
        return "the extension was not built (installation builds it where there is a C compiler)"
    return _unsuited(like, "cpu")


def _unsuited(like: Tensor, device: str) -> str | None:
    if like.device.type == device and like.dtype in (float32, float64):
        return None
    kind = f"{like.dtype} on {like.device.type}".removeprefix("torch.")
    return f"they need float32 or float64 on {device}, got {kind}"
