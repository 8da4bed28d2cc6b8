"""A scripted expert for Can: over the can, down, close, over the walls, into its bin, open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from asd_policy.envs.experts.grasp import CLOSE, Grasp, bent, let_go, nearest_turn
from asd_policy.envs.experts.servo import (
    Gripper,
    pointing_down,
    pose_of,
    position_command,
    rotation_command,
    yaw_of,
)

_DIAMETER = 0.05  # metres, of the can
_STANDING = 0.06  # metres above the bin's frame, of the middle of a can that stands in it
# Where the hand can set it down, from the corner of its quarter of the bin: the middle of the
# quarter is out of the arm's reach, and nearer to the walls the fingers come down on them.
_PLACE = np.array([0.060, 0.070])
_RELEASE = 0.1  # metres above the bin at which the fingers open
_CLEAR = 0.165  # metres above the bin at which the can may start across the walls


@dataclass(frozen=True)
class Style:
    """What differs between episodes, so that demonstrations show more than one way.

    Attributes:
        speed: largest component of a position command.
        hover: metres above the grasp at which the hand stays while misaligned.
        yaw: heading of the fingers at the grasp, from that of the resting hand; a round can may
            be taken from any side.
        up: metres from the can's middle to the grasp.
        place: metres from the usual place to set it down.
        place_yaw: as `yaw`, at that place.
        carry: metres above the bin at which to carry it.
        bend: radians by which the way there starts out beside the straight one, to the left.
    """

    speed: float
    hover: float
    yaw: float
    up: float
    place: tuple[float, float]
    place_yaw: float
    carry: float
    bend: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """Draw one."""
        return Style(
            speed=float(rng.uniform(0.7, 1.0)),
            hover=float(rng.uniform(0.07, 0.11)),
            yaw=float(rng.uniform(-0.8, 0.8)),
            up=float(rng.uniform(0.005, 0.02)),
            place=(float(rng.uniform(-0.01, 0.01)), float(rng.uniform(-0.015, 0.015))),
            place_yaw=float(rng.uniform(-0.6, 0.6)),
            carry=float(rng.uniform(0.18, 0.23)),
            bend=float(rng.choice([-0.3, 0.5]) + rng.uniform(-0.15, 0.15)),
        )


class CanExpert:
    """Puts the can of a robosuite PickPlaceCan environment into its bin, from privileged state.

    The only state kept is the style drawn at the start, as in `LiftExpert`.

    Args:
        simulation: robosuite's PickPlaceCan, just reset.
        rng: draws the style.
    """

    def __init__(self, simulation: Any, rng: np.random.Generator) -> None:
        self._simulation = simulation
        self._floor = float(simulation.bin1_pos[2])
        self._yaw = yaw_of(Gripper.of(simulation).rotation)
        self.style = Style.draw(rng)

    def act(self) -> np.ndarray:
        """The action (7,) for the present state."""
        gripper = Gripper.of(self._simulation)
        position, rotation = self._can()
        grasp = self._grasp(position, rotation)
        if self._in_bin(position):
            goal, turn, fingers = let_go(gripper, free=0.065)
        elif grasp.held(gripper, airborne=position[2] > self._floor + _STANDING + 0.01):
            goal, turn = self._carry(gripper, position)
            fingers = CLOSE
        else:
            goal, turn, fingers = grasp.approach(gripper, self.style.hover)
        move = position_command(gripper, goal, speed=self.style.speed)
        rotate = rotation_command(gripper, turn, speed=0.5 * self.style.speed)
        return np.concatenate([move, rotate, [fingers]])

    def _can(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3) of the can."""
        return pose_of(self._simulation, self._simulation.obj_body_id["Can"])

    def _grasp(self, position: np.ndarray, rotation: np.ndarray) -> Grasp:
        """Around a can that stands, whichever way the hand is turned, or across one that lies."""
        axis, yaw, up = rotation[:, 2], self._yaw + self.style.yaw, self.style.up
        slack_yaw = np.pi
        if abs(axis[2]) < 0.7:
            across = float(np.arctan2(axis[0], -axis[1]))
            yaw, up, slack_yaw = nearest_turn(across, np.pi, self._yaw), 0.0, 0.1
        return Grasp(
            position + [0, 0, up], yaw, _DIAMETER, reach=0.025, slack_yaw=slack_yaw, clearance=0.012
        )

    def _in_bin(self, position: np.ndarray) -> bool:
        """Whether the can is where it may be let go."""
        inside = position - self._simulation.bin2_pos
        return bool(inside[0] > 0.03 and inside[1] > 0.03 and inside[2] < _RELEASE + 0.005)

    def _carry(self, gripper: Gripper, can: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hand position and rotation: up, across once clear of the walls, down over the place."""
        place = self._simulation.bin2_pos[:2] + _PLACE + self.style.place
        height = can[2] - self._simulation.bin2_pos[2]
        away = place - can[:2]
        distance = float(np.linalg.norm(away))
        clear = float(np.clip((height - _CLEAR) / 0.02 + 1, 0, 1)) if distance > 0.03 else 1.0
        across = clear * bent(away, self.style.bend, near=0.1, far=0.6)
        lowered = float(np.clip((distance - 0.015) / 0.04, 0, 1))
        rise = (_RELEASE - 0.005) + (self.style.carry - _RELEASE) * lowered - height
        yaw = self._yaw + self.style.place_yaw
        return gripper.position + [*across, rise], pointing_down(yaw)
