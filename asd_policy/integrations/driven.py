"""Other libraries' policies as this package's commands drive one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asd_policy.errors import whole_from
from asd_policy.policy.checkpoint import check_rows
from asd_policy.policy.horizon import RecedingHorizon
from asd_policy.policy.sampled import SampledSource
from asd_policy.sampler import Sampler


class DrivenPolicy(RecedingHorizon):
    """Receding-horizon control with what evaluations and servers ask of a policy.

    Args:
        source: of the chunks. shapes: observation key → shape. parameters: numbers in the network
            and the encoder. card: what is reported. threads: CPU threads of the sampler; None
            leaves it its own.
    """

    source: SampledSource

    def __init__(
        self,
        source: SampledSource,
        shapes: Mapping[str, tuple[int, ...]],
        parameters: int,
        card: dict[str, Any],
        threads: int | None = None,
    ) -> None:
        super().__init__(source)
        self.device, self.card, self.parameters = source.device, card, parameters
        self.observation_keys = {
            key: int(np.prod(shape)) for key, shape in shapes.items() if key not in source.texts
        }
        self.action_dim = source.sampler.shape[1]
        if threads is not None:
            source.sampler.threads = whole_from(1, "threads", threads)

    @property
    def sampler(self) -> Sampler:
        return self.source.sampler

    @property
    def engine(self) -> Any:
        return self.sampler.engine

    @property
    def schedule(self) -> Any:
        return self.sampler.schedule

    @property
    def threads(self) -> int:
        assert self.sampler.threads is not None
        return self.sampler.threads

    @property
    def window(self) -> int | None:
        return self.sampler.window

    def measure(self) -> None:
        """Time the network on this machine again, for ``window="auto"``."""
        self.sampler.measure()

    def check_observation_space(self, keys: Mapping[str, int]) -> None:
        """Raise a CheckpointError with one table unless the low-dimensional keys are there."""
        check_rows(self.observation_keys, self.pictures, keys)

    def reset(self, seeds: int | Sequence[int | None] | None = None) -> None:
        """Start len(seeds) episodes, each with its own random stream."""
        super().reset(seeds)
        self.sampler.expect(len(self.environments))
