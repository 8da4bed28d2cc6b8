"""Noise that is drawn before it is asked for, while nobody waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asd_policy.samplers.result import Noise, draw_noise

MOST = 256  # streams of which something is kept


class Ahead:
    """What random streams will give next, by stream.

    A stream stays where it is until its noise is taken. Then it must still be there: noise of a
    stream that was seeded anew, or that something else was drawn from, is drawn again. So the
    numbers are those of :func:`draw_noise`, whatever was drawn ahead and never taken.

    Args:
        num_steps, like: as for :func:`draw_noise`.
    """

    def __init__(self, num_steps: int, like: Tensor) -> None:
        self._given = num_steps, like
        # By id: older PyTorch gives no weak references to generators. Another stream that has got
        # the id of one that is gone has another state, or else the same noise.
        self._kept: dict[int, tuple[Tensor, Noise, Tensor]] = {}

    def __reduce__(self) -> tuple[type[Ahead], tuple[int, Tensor]]:
        """A copy begins with nothing: it has other streams."""
        return Ahead, self._given

    def draw(self, generators: Sequence[torch.Generator]) -> None:
        """Have the next noise of these streams at hand."""
        for generator in generators:
            before = generator.get_state()
            self._kept.pop(id(generator), None)
            try:
                noise = draw_noise([generator], *self._given)
                self._kept[id(generator)] = before, noise, generator.get_state()
            finally:
                generator.set_state(before)
        while len(self._kept) > max(MOST, len(generators)):
            del self._kept[next(iter(self._kept))]  # the oldest

    def take(self, generators: Sequence[torch.Generator]) -> Noise:
        """The next noise of these streams, which they then have given."""
        if not any(id(generator) in self._kept for generator in generators):
            return draw_noise(generators, *self._given)
        parts = [self._next(generator) for generator in generators]
        if len(parts) == 1:
            return parts[0]
        names = ("initial", "steps", "log_uniform")
        return Noise(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def _next(self, generator: torch.Generator) -> Noise:
        kept = self._kept.pop(id(generator), None)
        if kept is None or not torch.equal(kept[0], generator.get_state()):
            return draw_noise([generator], *self._given)
        generator.set_state(kept[2])
        return kept[1]
