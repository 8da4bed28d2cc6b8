"""Chunks that a sampler of this package draws, whoever trained the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asd_policy.errors import seed_number
from asd_policy.policy.horizon import ChunkSource
from asd_policy.sampler import Sampler


class SampledSource(ChunkSource):
    """A source with a sampler: its random streams can be gone on with where they were.

    Attributes:
        sampler: of the chunks. device: where they are drawn.
    """

    sampler: Sampler
    device: torch.device

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
