"""The order of the numbers inside robosuite's observation ``object``, which its 1.5 changed.

Published data was made on 1.4.1, and policies here are trained in that order; files that say
robosuite 1.5 (``env_version``) have 1.5's. The two hold the same numbers: each of one order is one
of the other's, or its negative.
"""

from __future__ import annotations

import numpy as np

# robosuite's name of a task → pieces of 1.5's ``object`` in published order: start, end, sign.
_WORLD_FIRST = ((7, 14, 1), (0, 7, 1))  # 1.5 gives an object's pose in the hand's frame first
_PIECES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "Lift": ((0, 7, 1), (7, 10, -1)),
    "PickPlaceCan": _WORLD_FIRST,
    "NutAssemblySquare": _WORLD_FIRST,
    "ToolHang": (
        *((start + 14 * i, end + 14 * i, 1) for i in range(3) for start, end, _ in _WORLD_FIRST),
        (42, 44, 1),
    ),
    "TwoArmTransport": ((0, 27, 1), (29, 41, 1), (27, 29, 1)),
}  # fmt: skip


def is_known(env_name: object) -> bool:
    """Whether both orders are known for an environment."""
    return env_name in _PIECES


def to_published(env_name: str) -> tuple[np.ndarray, np.ndarray]:
    """(columns, signs), each (dim,): ``published = signs * of_15[..., columns]``."""
    pieces = _PIECES[env_name]
    columns = np.concatenate([np.arange(start, end) for start, end, _ in pieces])
    return columns, np.concatenate([np.full(end - start, sign) for start, end, sign in pieces])


def from_published(env_name: str) -> tuple[np.ndarray, np.ndarray]:
    """(columns, signs), each (dim,): ``of_15 = signs * published[..., columns]``."""
    columns, signs = to_published(env_name)
    inverse = np.argsort(columns)
    return inverse, signs[inverse]
