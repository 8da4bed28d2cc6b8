"""A scripted expert for Square: over the nut's handle, down, close, over the peg, down, open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from asd_policy.envs.experts.grasp import CLOSE, Grasp, bent, let_go, nearest_turn, unwound
from asd_policy.envs.experts.servo import (
    Gripper,
    pointing_down,
    pose_of,
    position_command,
    rotation_command,
    wrap,
    yaw_of,
)

_HANDLE = 0.054  # metres from the nut's middle to that of its handle
_WIDTH = 0.032  # metres, of the handle
_UP = 0.006  # metres above the handle's middle; lower, the fingers meet the table
_PEG = 0.13  # metres from the table to the peg's top
_RELEASE = 0.035  # metres above the table below which the nut is let go around the peg
_SLACK_XY, _SLACK_YAW = 0.005, 0.1  # metres, radians: when the nut may go down the peg
_QUARTER = np.pi / 2
# Headings of the hand at which the wrist's joint is in the middle of its range, and the lowest
# and highest to plan for: radians from that of the resting hand.
_MIDDLE, _LOWEST, _HIGHEST = 0.8, -1.8, 3.0


@dataclass(frozen=True)
class Style:
    """What differs between episodes, so that demonstrations show more than one way.

    Attributes:
        speed: largest component of a position command.
        hover: metres above the grasp at which the hand stays while misaligned.
        yaw: preferred heading of the fingers at the grasp, from that of the resting hand; of the
            two grasps of a handle the nearer one is taken.
        along: metres from the handle's middle to the grasp, outwards.
        peg_yaw: as `yaw`, at the peg; of the nut's ways onto it the nearest is taken.
        carry: metres above the table at which to carry the nut.
        bend: radians by which the way there starts out beside the straight one, to the left.
    """

    speed: float
    hover: float
    yaw: float
    along: float
    peg_yaw: float
    carry: float
    bend: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """Draw one."""
        return Style(
            speed=float(rng.uniform(0.7, 1.0)),
            hover=float(rng.uniform(0.05, 0.09)),
            yaw=float(rng.uniform(0.1, 0.9)),
            along=float(rng.uniform(-0.004, 0.01)),
            peg_yaw=float(rng.uniform(-0.6, 1.4)),
            carry=float(rng.uniform(0.175, 0.21)),
            bend=float(rng.choice([-0.4, 0.4]) + rng.uniform(-0.15, 0.15)),
        )


class SquareExpert:
    """Puts the nut of a robosuite NutAssemblySquare onto its peg, from privileged state.

    The only state kept is the style drawn at the start, as in `LiftExpert`.

    Args:
        simulation: robosuite's NutAssemblySquare, just reset.
        rng: draws the style.
    """

    def __init__(self, simulation: Any, rng: np.random.Generator) -> None:
        self._simulation = simulation
        self._table_z = float(simulation.table_offset[2])
        self._peg = simulation.sim.data.body_xpos[simulation.peg1_body_id][:2].copy()
        self._yaw = yaw_of(Gripper.of(simulation).rotation)
        self.style = Style.draw(rng)

    def act(self) -> np.ndarray:
        """The action (7,) for the present state."""
        gripper = Gripper.of(self._simulation)
        position, rotation = self._nut()
        grasp = self._grasp(position, rotation)
        speed = self.style.speed
        if self._on_peg(position):
            goal, turn, fingers = let_go(gripper, free=0.055)
        elif grasp.held(gripper, airborne=position[2] > self._table_z + 0.02):
            goal, turn, speed = self._carry(gripper, position, rotation)
            fingers = CLOSE
        else:
            goal, turn, fingers = grasp.approach(gripper, self.style.hover)
        move = position_command(gripper, goal, speed=speed)
        yaw = unwound(gripper, yaw_of(turn), self._yaw + _MIDDLE)
        rotate = rotation_command(gripper, pointing_down(yaw), speed=self.style.speed)
        return np.concatenate([move, rotate, [fingers]])

    def _nut(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3) of the nut; its handle is along x."""
        return pose_of(self._simulation, self._simulation.obj_body_id["SquareNut"])

    def _grasp(self, position: np.ndarray, rotation: np.ndarray) -> Grasp:
        """Across the handle, from the side that turns the wrist least."""
        handle = position + rotation @ [_HANDLE + self.style.along, 0, 0]
        across = yaw_of(rotation) + _QUARTER
        yaw = nearest_turn(across, np.pi, self._yaw + self.style.yaw)
        return Grasp(handle + [0, 0, _UP], yaw, _WIDTH)

    def _on_peg(self, position: np.ndarray) -> bool:
        """Whether the nut is around the peg, low enough to be let go."""
        off = np.abs(position[:2] - self._peg).max()
        return bool(off < 0.02 and position[2] < self._table_z + _RELEASE)

    def _carry(
        self, gripper: Gripper, nut: np.ndarray, rotation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Hand position, rotation and speed: up, across above the peg, down around it."""
        away = self._peg - nut[:2]
        distance = float(np.linalg.norm(away))
        height = nut[2] - self._table_z
        hand_yaw = yaw_of(gripper.rotation)
        wanted = self._yaw_at_peg(hand_yaw, yaw_of(rotation))
        off_yaw = abs(wrap(wanted - hand_yaw, 2 * np.pi))
        # Below the peg's top and this near it, the nut is around it, however askew: lifted off
        # again, as from beside the peg, it would go up and down for ever where the two meet.
        around = height < _PEG - 0.01 and distance < 0.02
        threaded = around or (height < _PEG + 0.008 and distance < 0.0085)
        aligned = threaded or (distance < _SLACK_XY and off_yaw < _SLACK_YAW)
        near = float(np.clip((distance - 0.02) / 0.05, 0, 1))
        top = _PEG + 0.025 + near * (self.style.carry - _PEG - 0.025)
        rise = (0.01 if aligned else top) - height
        clear = float(np.clip((height - _PEG + 0.01) / 0.03, 0, 1)) if near > 0 else 1.0
        across = clear * bent(away, self.style.bend, near=0.1, far=0.4)
        speed = 0.5 * self.style.speed if near < 1 else self.style.speed
        return gripper.position + [*across, rise], pointing_down(wanted), speed

    def _yaw_at_peg(self, hand: float, nut: float) -> float:
        """Hand heading, within the wrist's reach, that puts the nut square onto the peg; its
        handle not away from the robot, where the arm is too short to hold it."""
        aligned = hand + wrap(-nut, _QUARTER) - self._yaw
        ways = [nearest_turn(aligned + k * _QUARTER, 2 * np.pi, _MIDDLE) for k in range(4)]
        ways = [yaw for yaw in ways if _LOWEST < yaw < _HIGHEST]
        ways = [yaw for yaw in ways if np.cos(yaw + self._yaw - hand + nut) < 0.5]
        return self._yaw + min(ways, key=lambda yaw: abs(yaw - self.style.peg_yaw))
