"""What a check answers, and how two policies' numbers are compared."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

OK, DIFFERS, NONE = "ok", "DIFFERS", "-"
TOLERANCE = 1e-4
Check = Callable[[], tuple[str, str]]


def load(content: dict[str, Any]) -> Any:
    """robomimic's policy of a file's content."""
    import robomimic.utils.file_utils as file_utils

    with contextlib.redirect_stdout(io.StringIO()):
        policy, _ = file_utils.policy_from_checkpoint(
            ckpt_dict=copy.deepcopy(content), device=torch.device("cpu")
        )
    return policy


def verdict(got: Any, expected: Any, what: str) -> tuple[str, str]:
    """Status and text of two arrays: the largest difference, of numbers of about one."""
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        return DIFFERS, f"{what}: shape {got.shape}, expected {expected.shape}"
    worst = float(np.abs(got - expected).max() / max(1.0, float(np.abs(expected).max())))
    return (OK if worst <= TOLERANCE else DIFFERS), f"{what}: within {worst:.1e}"
