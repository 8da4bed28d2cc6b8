"""Whether this PyTorch's compiler takes the U-Net."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from asd_policy.errors import EngineError

OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9)


@contextlib.contextmanager
def or_named() -> Iterator[None]:
    """What needs it; with an older PyTorch, its failure has a name."""
    if not OLD:
        yield
        return
    with pytest.raises(EngineError, match=r"torch\.compile of PyTorch 2\.\d.* failed \(2\.9 is"):
        yield
    pytest.skip(f"PyTorch {torch.__version__} does not compile it, and says so")
