"""Chunks of actions for given conditions: one network, one chain, one engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from asd_policy.engine import make_engine
from asd_policy.engine.timing import network_costs
from asd_policy.networks.prepare import prepare
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.costs import Costs
from asd_policy.samplers.result import Stats, draw_noise
from asd_policy.sampling import draw, window_of
from asd_policy.schedule import Schedule
from asd_policy.threads import choose_threads, limited_to


class ChunkSampler:
    """Draws chunks; the window that is chosen from cost and acceptance is chosen here.

    Args:
        network: predicts what ``schedule`` says, of chunks; on ``device``.
        schedule: that the network was trained for. shape: (Tp, action_dim) of a chunk.
        sampler: how chunks are drawn.
        device, engine, precision, compile, threads: as for ``DiffusionPolicy``.
        calibration: slopes and acceptance known before.

    Attributes:
        last_slopes: (K,) that ASD drafted the last chunks with.
        threads: CPU threads that chunks are drawn with.

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
        threads: int | None = None,
    ) -> None:
        self.sampler, self.shape = sampler, shape
        self.schedule = sampler.schedule(schedule)
        self.threads = threads or choose_threads(sum(p.numel() for p in network.parameters()))
        self._network, self._compile = network, compile
        prepared = prepare(network, self.schedule.timesteps, precision, compile)
        self.engine = make_engine(engine, prepared, self.schedule, shape, device)
        self.calibration = calibration or Calibration()
        self.last_slopes: Tensor | None = None
        self._together = 1
        self.measure(again=False)

    def expect(self, batch: int) -> None:
        """Choose the window for so many chunks at once, from here on: not for those of the moment,
        so that a chunk does not depend on which others are drawn beside it."""
        self._together = max(1, batch)

    def measure(self, again: bool = True) -> None:
        """Time the network on this machine, if the window is to be chosen, and keep what it took;
        unless ``again``, only if nothing is kept."""
        if self.sampler.name != "asd" or self.sampler.window != "auto":
            return
        like = next(self._network.parameters())
        width = int(getattr(self._network, "global_cond_dim", 0))
        cond = like.new_zeros(1, width) if width else None

        def costs() -> Costs:
            return network_costs(self.engine, cond, self._compile, again)

        with limited_to(self.threads):  # ``again``: other ranks, if there are, serve already
            found = costs() if again else self.engine.lead(costs)
        if found is not None:
            self.calibration.use_costs(found)

    @property
    def window(self) -> int | None:
        """θ of the next chunks (1: sequentially); None of samplers without a window."""
        if self.sampler.name not in ("asd", "paradigms"):
            return None
        steps = self.schedule.num_steps
        return window_of(self.sampler, self.calibration, self._together, steps)

    def draw(
        self,
        cond: Tensor,
        generators: Sequence[torch.Generator],
        calibration: Calibration | None = None,
    ) -> tuple[Tensor, Stats]:
        """(B, …) conditions and B streams → (B, Tp, action_dim) chunks, and what they cost.

        ``calibration``: in place of the sampler's own, which then does not learn.
        """
        known = calibration or self.calibration
        if self.sampler.name == "asd":
            self.last_slopes = known.slopes(self.schedule.num_steps)
        with limited_to(self.threads):
            noise = draw_noise(generators, self.schedule.num_steps, self.engine.like)
            x, stats = draw(self.sampler, self.engine, noise, cond, known, self._together)
        return x.view(-1, *self.shape), stats
