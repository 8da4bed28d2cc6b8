"""How many CPU threads a network is sampled with, and that they do not spin while they wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# Parameters from which more threads repay themselves. A call of a smaller network is a hundred
# operations of some microseconds: two threads gain a tenth there on idle cores, and where other
# work has one of the cores, each operation waits for a thread that is not running.
LARGE = 16_000_000


def wait_passively() -> None:
    """Let OpenMP's threads sleep, not spin, while they wait for one another.

    To be called before torch is imported, which reads this once; inherited by child processes. A
    choice that the user has made in the environment stands.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def choose_threads(parameters: int) -> int:
    """CPU threads for a network of so many parameters: one, or torch's own number for a large one.

    A function of the network alone: the load of the moment must not change what a seed gives.
    """
    import torch

    return torch.get_num_threads() if parameters >= LARGE else 1


@contextlib.contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Within, this thread's operations use so many threads of the CPU."""
    import torch

    before = torch.get_num_threads()
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
