"""PyTorch's files, read without running what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def allowed(names: Sequence[Any]) -> Iterator[None]:
    """Within it, ``torch.load(…, weights_only=True)`` takes these classes and functions too, by
    their ``__module__`` and ``__qualname__``. (PyTorch 2.4 has no context for it.)"""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(list(names))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def refused(error: Exception) -> str:
    """What PyTorch's reader stumbled on, out of a page of advice."""
    text = str(error)
    if name := re.search(r"GLOBAL (\S+)", text):
        return f"it calls for {name[1]}"
    if reason := re.search(r"WeightsUnpickler error:\s*(\S.*)", text):
        return reason[1]
    return text.split("\n")[0].removeprefix("Weights only load failed. ")
