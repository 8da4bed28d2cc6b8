"""Engines run samplers; the samplers' mathematics does not know which one."""

from __future__ import annotations

import torch

from asd_policy.denoiser import Network, PreparedNetwork, check_mode
from asd_policy.engine.cuda_graph import CudaGraphEngine
from asd_policy.engine.distributed import DistributedEngine
from asd_policy.engine.eager import Engine
from asd_policy.schedule import Schedule, check_choice

ENGINES = ("auto", "eager", "cuda_graph", "distributed")

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
        name: "eager"; "cuda_graph"; "distributed", which splits network calls over the ranks of
            the default process group (see ``DistributedEngine``); or "auto": "cuda_graph" on a
            CUDA device, with a warning and eager rounds where capture fails, else "eager".
        schedule: ``SamplerConfig.schedule(…)`` of the sampler that will run. shape: of one sample.
        kernels: what does a round's arithmetic, one of ``asd_policy.engine.kernels.KERNELS``.

    Raises:
        ValueError: an unknown name, kernels that cannot be had here, or a network that cannot be
            sampled (``asd_policy.denoiser.check_mode``).
        EngineError: an engine that cannot be had here.
    """
    check_choice("engine", name, ENGINES)
    check_mode(network)
    arguments = network, schedule, shape, device, dtype, kernels
    if name == "distributed":
        return DistributedEngine(*arguments)
    if name == "cuda_graph" or (name == "auto" and torch.device(device).type == "cuda"):
        return CudaGraphEngine(*arguments, fallback=name == "auto")
    return Engine(*arguments)
