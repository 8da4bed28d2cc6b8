"""A stand-in for capture: work is recorded as the function it is, and replayed by calling it.

A strict one refuses what a CUDA graph cannot hold: a number that the host reads of a tensor (``if``
of a comparison, ``item``, a mask used as an index) or makes into one (``torch.tensor``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from asd_policy.errors import EngineError

# By name: in inference mode composite operations arrive whole, elsewhere as what they are made of.
_WAITS = {
    "item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select",
    "_unique2", "unique_consecutive", "bincount", "lift_fresh",
}  # fmt: skip


class Capturing(TorchDispatchMode):
    """Refuses what makes the host wait, or copies from it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _WAITS or (name.startswith("index") and _by_mask(args)):
            raise EngineError(
                f"capturing {self.what} as a CUDA graph failed: {name} waits for the host"
            )
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    listed = [i for arg in args if isinstance(arg, (list, tuple)) for i in arg]
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in listed)


class Launching(TorchDispatchMode):
    """Counts operations that a device would launch a kernel for.

    Attributes:
        names: of those that made, or changed, a tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        given = [t for t in args if isinstance(t, Tensor)]
        made = out if isinstance(out, (list, tuple)) else [out]
        if name.endswith("_") or not all(_lies_in(t, given) for t in made):
            self.names += [] if "empty" in name else [name]
        return out


def _lies_in(tensor: Any, given: list[Tensor]) -> bool:
    """Whether it is no tensor, or a view of one of those."""
    if not isinstance(tensor, Tensor):
        return True
    place = tensor.untyped_storage().data_ptr()
    return any(place == other.untyped_storage().data_ptr() for other in given)


class HostRecorder:
    """Counts what a device would be asked for. Reads happen when they are waited for, or before.

    Args:
        strict: refuse work that waits for the host. (A single chain's does, on a CPU.)
        skips: leave out what a flag on the device says.

    Attributes:
        ahead: at every wait of the host, how many reads had been asked for and not waited for;
            open: those of the moment.
        synchronized: how often the host waited for all that was launched.
    """

    def __init__(self, strict: bool = False, skips: bool = False) -> None:
        self.strict, self.skips = strict, skips
        self.recorded: list[str] = []
        self.replays: dict[str, int] = {}
        self.skipped: dict[str, int] = {}
        self.ahead: list[int] = []
        self.reads = self.open = self.synchronized = 0

    def record(
        self,
        work: Callable[[], object],
        what: str,
        when: Callable[[], Tensor] | None = None,
        smaller: str = "",
    ) -> tuple[Callable[[], None], int]:
        for _ in range(3):
            work()
        if self.strict:
            with Capturing(what):
                if when is not None:
                    when()
                work()
        self.recorded.append(what)
        self.replays[what] = self.skipped[what] = 0

        def replay() -> None:
            self.replays[what] += 1
            if when is None or bool(when()):
                work()
            else:
                self.skipped[what] += 1

        return replay, 0

    def read_later(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        copies = [tensor.clone() for tensor in tensors]
        self.reads += 1
        self.open += 1

        def wait() -> list[Tensor]:
            self.ahead.append(self.open)
            self.open -= 1
            return copies

        return wait

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        yield

    def synchronize(self) -> None:
        self.synchronized += 1
