"""Which implementation does a round's arithmetic around its network call."""

from __future__ import annotations

import torch

from asd_policy.chains import Chains
from asd_policy.denoiser import Denoiser
from asd_policy.engine import native
from asd_policy.samplers.asd import Kernels
from asd_policy.schedule import check_choice

KERNELS = ("auto", "torch", "native")


def choose_kernels(name: str, like: torch.Tensor) -> str:
    """What "auto" means for tensors like this one.

    Raises:
        ValueError: an unknown name, or kernels that cannot be had here.
    """
    check_choice("kernels", name, KERNELS)
    fits = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
    if name == "native" and not (fits and native.available()):
        raise ValueError(
            "native kernels need float32 or float64 on a CPU and the extension that is built at "
            f"installation where there is a C compiler; got {like.dtype} on {like.device.type}, "
            f"extension {'built' if native.available() else 'not built'}"
        )
    if name == "auto":
        return "native" if fits and native.available() else "torch"
    return name


def make_kernels(name: str, chains: Chains, denoiser: Denoiser) -> Kernels:
    """Kernels of a name from :func:`choose_kernels`."""
    return native.NativeKernels(chains, denoiser) if name == "native" else Kernels()
