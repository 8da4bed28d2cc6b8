"""The first chunks, before a robot waits for one."""

from __future__ import annotations

from typing import Any

import numpy as np

from asd_policy.serving.requests import Seen


def warm_up(policy: Any, robots: int) -> None:
    """Draw throw-away chunks: twice of each batch up to ``robots`` on a GPU, where each has graphs
    of its own; elsewhere of one robot, and of all.

    Calibration that is being learned is left as it was found.
    """
    many = range(1, robots + 1) if policy.device.type == "cuda" else sorted({1, robots})
    sampler = policy.source.sampler
    frozen, sampler.calibration.frozen = sampler.calibration.frozen, True
    policy.reset([0] * robots)
    shapes = Seen.by(policy).shapes
    kinds = {key: _kind(policy, key) for key in shapes}
    for batch in many:
        zeros = {key: np.zeros((batch, *shape), kinds[key]) for key, shape in shapes.items()}
        for _ in range(2):
            policy.observe(zeros, range(batch))
            policy.predict(range(batch))
    sampler.calibration.frozen = frozen


def _kind(policy: Any, key: str) -> type[np.generic]:
    """Of an observation's array; zeros of text are empty."""
    if key in policy.texts:
        return np.str_
    return np.uint8 if key in policy.pictures else np.float32
