"""Chunks that a sampler of this package draws, whoever trained the network; policies of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from asd_policy.errors import seed_number, whole_from
from asd_policy.policy.checkpoint import check_rows
from asd_policy.policy.horizon import ChunkSource, RecedingHorizon
from asd_policy.sampler import Sampler
from asd_policy.samplers.calibration import Calibration
from asd_policy.schedule import Schedule


class SampledSource(ChunkSource):
    """A source with a sampler: its random streams can be gone on with where they were.

    Attributes:
        sampler: of the chunks. device: where they are drawn. robots: that are expected.
    """

    sampler: Sampler
    device: torch.device
    robots = 1

    def stream(self, seed: int | None, drawn: int = 0) -> torch.Generator:
        """The random stream of an environment with this seed (None draws one), after ``drawn``
        chunks. On the policy's device: noise is drawn where it is used."""
        generator = torch.Generator(self.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed_number(seed))
        for _ in range(drawn):
            self.sampler.noise([generator])
        return generator

    def close(self) -> None:
        """Release what engines keep on their device. The source can still be used."""
        self.sampler.close()

    def ahead(self, streams: Sequence[torch.Generator]) -> None:
        self.sampler.ahead(streams)

    def expect(self, batch: int) -> None:
        self.robots = batch
        self.sampler.expect(batch)


class SampledPolicy(RecedingHorizon):
    """Receding-horizon control by a sampler of this package, with what evaluations and servers ask
    of a policy. Attributes: ``device``, ``card``.
    """

    source: SampledSource
    device: torch.device
    card: dict[str, Any]

    @property
    def engine(self) -> Any:
        """What draws the chunks, one of ``asd_policy.engine``'s."""
        return self.source.sampler.engine

    @property
    def schedule(self) -> Schedule:
        """Of the chain that is sampled."""
        return self.source.sampler.schedule

    @property
    def calibration(self) -> Calibration:
        """What chunks are drawn with: slopes, acceptance, and costs of this machine."""
        return self.source.sampler.calibration

    @property
    def threads(self) -> int:
        """CPU threads that chunks are drawn with."""
        assert self.source.sampler.threads is not None
        return self.source.sampler.threads

    @property
    def window(self) -> int | None:
        """θ of the next chunks (1: sequentially); None of a sampler without a window."""
        return self.source.sampler.window

    def measure(self) -> None:
        """Time the network on this machine again, for ``window="auto"``, and keep the result."""
        self.source.sampler.measure()

    def stream(self, seed: int | None, drawn: int = 0) -> torch.Generator:
        """The random stream of an environment with this seed (None draws one), after ``drawn``
        chunks."""
        return self.source.stream(seed, drawn)

    def close(self) -> None:
        """Release what the engine keeps on its device. The policy can still be used."""
        self.source.close()


class EncodedPolicy(SampledPolicy):
    """Another library's policy, its encoder in its source.

    Args:
        source: of the chunks. shapes: observation key → shape. parameters: numbers in the network
            and the encoder. card: what is reported. threads: CPU threads of the sampler; None
            leaves it its own.
    """

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

    def check_observation_space(self, keys: Mapping[str, int]) -> None:
        """Raise a CheckpointError with one table unless the low-dimensional keys are there."""
        check_rows(self.observation_keys, self.pictures, keys)
