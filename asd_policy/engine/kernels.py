"""Which implementation does a round's arithmetic around its network call."""

from __future__ import annotations

import torch

from asd_policy.engine import native, triton_kernels
from asd_policy.samplers.asd import Kernels
from asd_policy.schedule import check_choice

KERNELS = ("auto", "torch", "native", "triton")


def choose_kernels(name: str, like: torch.Tensor) -> str:
    """What "auto" means for tensors like this one: "native" on a CPU, "triton" on CUDA, or "torch".

    Raises:
        ValueError: an unknown name, or kernels that cannot be had here.
    """
    check_choice("kernels", name, KERNELS)
    missing = {
        "torch": None,
        "native": _without_native(like),
        "triton": _unsuited(like, "cuda") or triton_kernels.available(),
    }
    if name == "auto":
        return next(kind for kind in ("triton", "native", "torch") if not missing[kind])
    if missing[name]:
        raise ValueError(f"{name} kernels cannot be used: {missing[name]}")
    return name


def make_kernels(name: str) -> Kernels:
    """Kernels of a name from :func:`choose_kernels`."""
    kinds = {
        "torch": Kernels,
        "native": native.NativeKernels,
        "triton": triton_kernels.TritonKernels,
    }
    return kinds[name]()


def _without_native(like: torch.Tensor) -> str | None:
    if not native.available():
        return "the extension was not built (installation builds it where there is a C compiler)"
    return _unsuited(like, "cpu")


def _unsuited(like: torch.Tensor, device: str) -> str | None:
    if like.device.type == device and like.dtype in (torch.float32, torch.float64):
        return None
    kind = f"{like.dtype} on {like.device.type}".removeprefix("torch.")
    return f"they need float32 or float64 on {device}, got {kind}"
