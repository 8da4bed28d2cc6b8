"""Engines run samplers; the samplers' mathematics does not know which one."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from asd_policy.denoiser import Network, PreparedNetwork, check_arguments, check_mode
from asd_policy.engine.cuda_graph import CudaGraphEngine
from asd_policy.engine.distributed import DistributedEngine
from asd_policy.engine.eager import Engine
from asd_policy.engine.openvino import OpenVinoEngine, unsuited
from asd_policy.engine.timing import network_costs
from asd_policy.errors import EngineError
from asd_policy.networks.openvino_layers import version
from asd_policy.samplers.acceptance import DEFAULT_WINDOW
from asd_policy.schedule import Schedule, check_choice

ENGINES = ("auto", "eager", "cuda_graph", "openvino", "distributed")
CLEARLY = 0.95  # of the eager engine's time, below which OpenVINO's counts as less

__all__ = ["ENGINES", "Engine", "make_engine"]


def make_engine(
    name: str,
    network: Network | PreparedNetwork,
    schedule: Schedule,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    kernels: str = "auto",
    cond: Tensor | None = None,
) -> Engine:
    """An engine for one network, chain and device.

    Args:
        name: "eager"; "cuda_graph"; "openvino"; "distributed", which splits network calls over the
            ranks of the default process group (see ``DistributedEngine``); or "auto": "cuda_graph"
            on a CUDA device, with a warning and eager rounds where capture fails; on a CPU
            "openvino" where it is installed and its calls were measured to be faster, else "eager".
        schedule: ``SamplerConfig.schedule(…)`` of the sampler that will run. shape: of one sample.
        kernels: what does a round's arithmetic, one of ``asd_policy.engine.kernels.KERNELS``.
        cond: (1, …), one chain's, to time the network with; its values do not matter.

    Raises:
        ValueError: an unknown name, kernels that cannot be had here, or a network that cannot be
            sampled (``asd_policy.denoiser.check_mode``).
        EngineError: an engine that cannot be had here.
    """
    check_choice("engine", name, ENGINES)
    check_arguments(network)
    check_mode(network)
    arguments = network, schedule, shape, device, dtype, kernels
    if name == "distributed":
        return DistributedEngine(*arguments)
    if name == "cuda_graph" or (name == "auto" and torch.device(device).type == "cuda"):
        return CudaGraphEngine(*arguments, fallback=name == "auto")
    if name == "openvino":
        return OpenVinoEngine(*arguments)
    engine = Engine(*arguments)
    # An extra that nobody installed is no fault; one that cannot be used is.
    if name == "eager" or version() is None or unsuited(network, device):
        return engine
    try:
        return _faster(engine, OpenVinoEngine(*arguments, fallback=True), cond)
    except EngineError as error:
        warnings.warn(f"using the eager engine: {error}", stacklevel=2)
        return engine


def _faster(eager: Engine, other: Engine, cond: Tensor | None) -> Engine:
    """By what is known of this machine, or is measured and kept: calls of sequential sampling and
    of rounds, on one row and on a window."""

    def seconds(engine: Engine) -> float:
        if engine.schedule.c.any():  # a DDIM on which no round can be timed; it has none either
            timer = engine.timer(1, cond)
            return min(timer() for _ in range(6))
        costs = network_costs(engine, cond)
        return float(costs.call(1) + costs.call(DEFAULT_WINDOW))

    return other if seconds(other) < CLEARLY * seconds(eager) else eager
