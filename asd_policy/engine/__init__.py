"""Engines run samplers; the samplers' mathematics does not know which one."""

from __future__ import annotations

import torch

from asd_policy.denoiser import Network, PreparedNetwork
from asd_policy.engine.eager import Engine
from asd_policy.schedule import Schedule, check_choice

ENGINES = ("auto", "eager")

__all__ = ["ENGINES", "Engine", "make_engine"]


def make_engine(
    name: str,
    network: Network | PreparedNetwork,
    schedule: Schedule,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    kernels: str = "auto",
) -> Engine:
    """An engine for one network, chain and device.

    Args:
        name: one of ``ENGINES``.
        schedule: ``SamplerConfig.schedule(…)`` of the sampler that will run. shape: of one sample.
        kernels: what does a round's arithmetic, one of ``asd_policy.engine.kernels.KERNELS``.

    Raises:
        ValueError: an unknown name, or one that cannot be had here.
    """
    check_choice("engine", name, ENGINES)
    return Engine(network, schedule, shape, device, dtype, kernels)
