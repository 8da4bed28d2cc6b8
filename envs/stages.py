"""How far a task has got: its stages in order, told from the simulator's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

_LIFTED = 0.03  # metres that an object is higher than where it lay
_ABOVE_PEG = 0.02  # metres between the axes of a nut and its peg: as robosuite counts it on the peg

Stage = Callable[[Any], bool]


def _holds(sim: Any, arm: int, thing: Any) -> bool:
    """Whether both fingers of an arm touch an object or one of the named geometries."""
    return bool(sim._check_grasp(gripper=sim.robots[arm].gripper, object_geoms=thing))


def _position(sim: Any, name: str) -> np.ndarray:
    position: np.ndarray = sim.sim.data.body_xpos[sim.obj_body_id[name]]
    return position


def _lift() -> dict[str, Stage]:
    return {
        "grasped": lambda sim: _holds(sim, 0, sim.cube),
        "lifted": lambda sim: sim._check_success(),
    }


def _can() -> dict[str, Stage]:
    def can(sim: Any) -> Any:
        return sim.objects[sim.object_id]

    def lifted(sim: Any) -> bool:
        z = _position(sim, "Can")[2] - sim.bin1_pos[2]
        # A can that stands has its middle half its height above the bin.
        return bool(z > abs(can(sim).bottom_offset[2]) + _LIFTED and _holds(sim, 0, can(sim)))

    def over(sim: Any) -> bool:
        corner, (x, y, _) = sim.bin2_pos, _position(sim, "Can")
        return bool(corner[0] < x and corner[1] < y)

    return {
        "grasped": lambda sim: _holds(sim, 0, can(sim)),
        "lifted": lifted,
        "over its bin": over,
        "placed": lambda sim: sim._check_success(),
    }


def _square() -> dict[str, Stage]:
    def nut(sim: Any) -> Any:
        return sim.nuts[sim.nut_id]

    def off(sim: Any) -> float:
        peg = sim.sim.data.body_xpos[sim.peg1_body_id][:2]
        return float(np.abs(_position(sim, "SquareNut")[:2] - peg).max())

    def height(sim: Any) -> float:
        return float(_position(sim, "SquareNut")[2] - sim.table_offset[2])

    return {
        "grasped": lambda sim: _holds(sim, 0, nut(sim)),
        "lifted": lambda sim: height(sim) > 0.02 + _LIFTED and _holds(sim, 0, nut(sim)),
        "aligned": lambda sim: off(sim) < _ABOVE_PEG,
        "inserted": lambda sim: sim.on_peg(_position(sim, "SquareNut"), 0),
        "let go": lambda sim: sim._check_success(),
    }


def _tool_hang() -> dict[str, Stage]:
    return {
        "frame grasped": lambda sim: _holds(sim, 0, sim.frame),
        "frame inserted": lambda sim: sim._check_frame_assembled(),
        "tool grasped": lambda sim: _holds(sim, 0, sim.tool),
        "tool hung": lambda sim: sim._check_success(),
    }


def _transport() -> dict[str, Stage]:
    return {
        "lid grasped": lambda sim: _holds(sim, 0, sim.transport.lid),
        "hammer grasped": lambda sim: _holds(sim, 0, sim.transport.payload),
        "hammer handed over": lambda sim: (
            _holds(sim, 1, sim.transport.payload) and not _holds(sim, 0, sim.transport.payload)
        ),
        "hammer placed": lambda sim: sim.transport.payload_in_target_bin,
        "trash grasped": lambda sim: _holds(sim, 1, sim.transport.trash),
        "trash thrown away": lambda sim: sim.transport.trash_in_trash_bin,
    }


STAGES: Mapping[str, Mapping[str, Stage]] = MappingProxyType(
    {
        "lift": _lift(),
        "can": _can(),
        "square": _square(),
        "tool_hang": _tool_hang(),
        "transport": _transport(),
    }
)
"""Task → its stages in order, each with what tells, of robosuite's environment, that it holds now.
Transport's two arms have each an order of their own."""
