"""Chunks of actions from a network of this package, made ready to be sampled in a loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from asd_policy.networks.prepare import prepare
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import Schedule
from asd_policy.threads import choose_threads


def chunk_sampler(
    network: nn.Module,
    schedule: Schedule,
    shape: tuple[int, ...],
    config: SamplerConfig,
    device: torch.device | str = "cpu",
    engine: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    stored: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Sampler:
    """A sampler of chunks. The network is timed if the window needs that and nothing is kept.

    Args:
        network: predicts what ``schedule`` says, of chunks; on ``device``.
        schedule: that the network was trained for. shape: of a chunk, (Tp, action_dim).
        config: how chunks are drawn.
        device, engine, precision, compile, threads: as for ``DiffusionPolicy``.
        stored: the calibration of the network's checkpoint.

    Raises:
        ValueError: a sampler that this chain does not allow, or an unknown option.
    """
    chain, width = config.schedule(schedule), int(getattr(network, "global_cond_dim", 0))
    parameters = sum(p.numel() for p in network.parameters())
    sampler = Sampler(
        prepare(network, chain.timesteps, precision, compile),
        schedule,
        shape,
        config,
        engine=engine,
        device=device,
        stored=stored,
        cond=next(network.parameters()).new_zeros(1, width) if width else None,
        threads=choose_threads(parameters) if threads is None else threads,
        compiled=compile,
    )
    if sampler.needs_costs:  # other ranks, if there are, serve meanwhile
        sampler.engine.lead(lambda: sampler.measure(again=False))
    return sampler
