"""A stand-in for capture: work is recorded as the function it is, and replayed by calling it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor


class HostRecorder:
    """Counts what a device would be asked for. Reads happen when they are waited for, or before."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.replays: dict[str, int] = {}
        self.reads = 0

    def record(self, work: Callable[[], object], what: str) -> tuple[Callable[[], None], int]:
        for _ in range(3):
            work()
        self.recorded.append(what)
        self.replays[what] = 0

        def replay() -> None:
            self.replays[what] += 1
            work()

        return replay, 0

    def read_later(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        copies = [tensor.clone() for tensor in tensors]
        self.reads += 1
        return lambda: copies

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        yield

    def synchronize(self) -> None:
        pass
