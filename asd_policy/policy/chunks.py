"""Chunks of actions from a network of this package, made ready to be sampled in a loop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.ambient import own_precision
from asd_policy.errors import NonFiniteError
from asd_policy.networks.prepare import prepare
from asd_policy.sampler import Sampler
from asd_policy.samplers.acceptance import DEFAULT_WINDOW
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import Schedule
from asd_policy.threads import choose_threads

CHUNKS = 4  # that drafts learn from
_NOBODYS = 0x9E37_79B9_7F4A_7C15  # the first of their seeds; to a CPU's generator 2135587861


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
    """A sampler of chunks that learns nothing from those it draws: a seed gives the same ones.

    The network is timed if the window needs that and nothing is kept.

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
    cond = next(network.parameters()).new_zeros(1, width) if width else None
    sampler = Sampler(
        prepare(network, chain.timesteps, precision, compile),
        schedule,
        shape,
        config,
        engine=engine,
        device=device,
        stored=stored,
        cond=cond,
        threads=choose_threads(parameters) if threads is None else threads,
        compiled=compile,
    )
    sampler.engine.lead(lambda: _make_ready(sampler, cond))  # other ranks, if any, serve meanwhile
    return sampler


def _make_ready(sampler: Sampler, cond: Tensor | None) -> None:
    """Time the network if the window needs that. Without a stored calibration drafts learn from a
    few throw-away chunks, and no more.

    Their conditions are zeros, not those of the first observation, on which all later chunks would
    depend; what is learned, a number a step, is as good.
    """
    sampler.measure(again=False)
    if "draft" in sampler.config.method.options and not sampler.calibration.frozen:
        device = sampler.engine.like.device
        # Not the seeds of people's episodes: slopes must not come from the noise they serve. (Of a
        # seed, a CPU's generator heeds the lowest 32 bits alone: to it 2^63 is 0.)
        seeds = range(_NOBODYS, _NOBODYS + CHUNKS)
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        # (A network that is not finite is named when a robot asks for a chunk, not here.)
        with torch.inference_mode(), own_precision(networks_too=True), suppress(NonFiniteError):
            # With a fixed window, for "auto" may have found sequential, which teaches nothing.
            window = DEFAULT_WINDOW if sampler.config.window == "auto" else None
            inputs = [(sampler.noise([each]), cond) for each in generators]
            sampler.calibrate(inputs, CHUNKS, window and min(window, sampler.schedule.num_steps))
    sampler.freeze()
