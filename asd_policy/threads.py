"""How many CPU threads a network is sampled with, and that they do not spin while they wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# Parameters from which more threads repay themselves. A call of a small network is a hundred
# operations of some microseconds, and each waits for a thread that may not be running. Two threads
# that sleep while they wait, against one, on two cores (calls of 1, 8, 32 rows): 0.3, 0.5, 0.8
# times as fast at 2.5 M parameters, 0.9, 1.0, 1.2 at 18 M, 1.0, 1.3, 1.5 at 38 M, 1.1, 1.5, 1.7 at
# 66 M.
LARGE = 30_000_000


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
