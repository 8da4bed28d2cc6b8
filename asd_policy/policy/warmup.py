"""The first chunks, before a robot waits for one."""

from __future__ import annotations

from typing import Any

import numpy as np

from asd_policy.policy.observations import shapes_seen
from asd_policy.policy.sampled import SampledSource


def needs_warmth(policy: Any) -> bool:
    """Whether its chunks are drawn in this process (a server has warmed its own), by a policy that
    says what it sees."""
    return isinstance(policy.source, SampledSource) and hasattr(policy, "observation_keys")


def warm_up(policy: Any, robots: int = 1, committed: bool = False) -> None:
    """Draw throw-away chunks: twice of each batch up to ``robots`` on a GPU, where each has graphs
    of its own; elsewhere of one robot, and of all.

    The policy must be reset afterwards.

    Args:
        policy: that :func:`needs_warmth`.
        committed: draw chunks that are given an action, which is a chain of its own, too.
    """
    many = range(1, robots + 1) if policy.device.type == "cuda" else sorted({1, robots})
    told, policy.on_draw = policy.on_draw, None
    try:
        policy.reset([0] * robots)
        for batch in many:
            for _ in range(2):
                _draw(policy, range(batch), committed)
    finally:
        policy.on_draw = told


def _draw(policy: Any, rows: range, committed: bool) -> None:
    shapes = shapes_seen(policy)
    zeros = {k: np.zeros((len(rows), *shape), _kind(policy, k)) for k, shape in shapes.items()}
    policy.observe(zeros, rows)
    chunks = policy.predict(rows)
    if committed:
        policy.predict(rows, [chunk[:1] for chunk in chunks])


def _kind(policy: Any, key: str) -> type[np.generic]:
    """Of an observation's array; zeros of text are empty."""
    if key in policy.texts:
        return np.str_
    return np.uint8 if key in policy.pictures else np.float32
