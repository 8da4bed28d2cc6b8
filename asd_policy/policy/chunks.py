"""Chunks of actions for given conditions: one network, one chain, one engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from asd_policy.engine import make_engine
from asd_policy.networks.prepare import prepare
from asd_policy.samplers.calibration import DEFAULT_WINDOW, Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Stats, draw_noise
from asd_policy.sampling import draw
from asd_policy.schedule import Schedule


class ChunkSampler:
    """Draws chunks; the window that is chosen from cost and acceptance is chosen here.

    Args:
        network: predicts what ``schedule`` says, of chunks; on ``device``.
        schedule: that the network was trained for. shape: (Tp, action_dim) of a chunk.
        sampler: how chunks are drawn.
        device, engine, precision, compile: as for ``DiffusionPolicy``.
        calibration: slopes, acceptance and costs known before.

    Attributes:
        last_slopes: (K,) that ASD drafted the last chunks with.

    Raises:
        ValueError: a sampler that this chain does not allow, or an unknown option.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        shape: tuple[int, int],
        sampler: SamplerConfig,
        device: torch.device | str = "cpu",
        engine: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        self.sampler, self.shape = sampler, shape
        self.schedule = sampler.schedule(schedule)
        prepared = prepare(network, self.schedule.timesteps, precision, compile)
        self.engine = make_engine(engine, prepared, self.schedule, shape, device)
        self.calibration = calibration or Calibration()
        self.last_slopes: Tensor | None = None

    def draw(
        self,
        cond: Tensor,
        generators: Sequence[torch.Generator],
        calibration: Calibration | None = None,
    ) -> tuple[Tensor, Stats]:
        """(B, …) conditions and B streams → (B, Tp, action_dim) chunks, and what they cost.

        ``calibration``: in place of the sampler's own, which then neither measures nor learns.
        """
        if calibration is None:
            self._measure_costs(cond)
            calibration = self.calibration
        if self.sampler.name == "asd":
            self.last_slopes = calibration.slopes(self.schedule.num_steps)
        x, stats = self._sample(self.sampler, cond, generators, calibration)
        return x.view(-1, *self.shape), stats

    def _sample(
        self,
        config: SamplerConfig,
        cond: Tensor,
        generators: Sequence[torch.Generator],
        calibration: Calibration,
    ) -> tuple[Tensor, Stats]:
        noise = draw_noise(generators, self.schedule.num_steps, self.engine.like)
        return draw(config, self.engine, noise, cond, calibration)

    def _measure_costs(self, cond: Tensor) -> None:
        """Time the network once for this batch size, if the window is to be chosen from it."""
        if self.sampler.name != "asd" or self.sampler.window != "auto":
            return
        if not self.calibration.has_costs(len(cond)):
            self.calibration.measure_costs(
                len(cond), self.schedule.num_steps, lambda rows: self.engine.seconds(rows, cond[:1])
            )
            # Two throw-away chunks, for the cost of a round apart from the network.
            probe = replace(self.sampler, window=DEFAULT_WINDOW)
            device = self.engine.like.device
            for _ in range(2):
                generators = [torch.Generator(device).manual_seed(0) for _ in cond]
                self._sample(probe, cond, generators, self.calibration)
