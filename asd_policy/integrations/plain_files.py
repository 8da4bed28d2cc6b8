"""PyTorch's files, read without running what they hold."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asd_policy.errors import CheckpointError
from asd_policy.files import check_archive


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


def read(path: Path, names: Sequence[Any], expected: str) -> Any:
    """What a file holds, every byte of it as it was written; nothing in it is run.

    Args:
        names: classes and functions that it may call for, beside PyTorch's own. expected: what it
            should hold, for the message.

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds more.
    """
    check_archive(path)
    try:
        with allowed(names):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was not opened: expected {expected}, got more, or a damaged file "
            f"({refused(error)})"
        ) from error
    except Exception as error:  # a damaged file may make the reader raise anything
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def refused(error: Exception) -> str:
    """What PyTorch's reader stumbled on, out of a page of advice."""
    text = str(error)
    if name := re.search(r"GLOBAL (\S+)", text):
        return f"it calls for {name[1]}"
    if reason := re.search(r"WeightsUnpickler error:\s*(\S.*)", text):
        return reason[1]
    return text.split("\n")[0].removeprefix("Weights only load failed. ")
