"""What a policy keeps of one environment, in memory and in a pickle."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Frame = Any  # one environment's observation at one time, as its source keeps it
Stream = Any  # what a source draws from: PyTorch's generators, where it draws here


@dataclass(frozen=True)
class _Kept:
    """A generator, as it is pickled."""

    device: torch.device
    state: np.ndarray


@dataclass
class Environment:
    """One environment's random stream, history and queue of actions.

    ``drawn``: chunks that its stream has given.
    """

    seed: int | None
    stream: Stream
    drawn: int = 0
    history: deque[Frame] = field(default_factory=deque)
    queue: deque[np.ndarray] = field(default_factory=deque)

    def __getstate__(self) -> dict[str, Any]:
        """With a generator's state as an array: PyTorch's own pickling keeps it in shared memory
        that is gone when a process that was spawned looks for it."""
        kept, stream = dict(vars(self)), self.stream
        if isinstance(stream, torch.Generator):
            kept["stream"] = _Kept(stream.device, stream.get_state().numpy())
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        vars(self).update(kept)
        if isinstance(self.stream, _Kept):
            state = torch.from_numpy(self.stream.state)
            self.stream = torch.Generator(self.stream.device).set_state(state)

    def observe(self, frames: Sequence[Frame], length: int) -> None:
        """Append to the history; the first observation of an episode fills it."""
        self.history.extend(frames)
        while len(self.history) < length:
            self.history.appendleft(self.history[0])
        while len(self.history) > length:
            self.history.popleft()
