"""A command of which torchrun has started several processes."""

from __future__ import annotations

from collections.abc import Callable

from asd_policy.engine.distributed import dismiss, follow
from asd_policy.engine.ranks import joined, undisturbed


def on_ranks(command: Callable[[], int]) -> int:
    """Rank 0 runs it; the others evaluate the rows that it gives them, and say nothing.

    Raises:
        EngineError: the ranks do not find each other, or one has ended.
    """
    with joined() as rank:
        if rank:
            with undisturbed():
                follow()
            return 0
        try:
            return command()
        finally:
            dismiss()
