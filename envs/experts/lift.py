"""A scripted expert for Lift: over the cube, down, close, up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from asd_policy.envs.experts.grasp import CLOSE, OPEN
from asd_policy.envs.experts.servo import (
    Gripper,
    pointing_down,
    pose_of,
    position_command,
    rotation_command,
    wrap,
    yaw_of,
)

_SLACK_XY = 0.006  # metres beside the goal at which the hand may be all the way down
_SLACK_YAW = 0.1  # radians, likewise
_QUARTER = np.pi / 2


@dataclass(frozen=True)
class Style:
    """What differs between episodes, so that demonstrations show more than one way.

    Attributes:
        speed: largest component of a position command.
        hover: metres above the grasp at which the hand stays while misaligned.
        quarter_turns: which of the four grasps of a cube, counted from its own yaw.
        offset: metres from the cube's centre to the grasp: along the fingers' flat side, and up.
        rise: metres above the table to lift the hand to.
    """

    speed: float
    hover: float
    quarter_turns: int
    offset: tuple[float, float]
    rise: float

    @staticmethod
    def draw(rng: np.random.Generator, misalignment: float) -> Style:
        """Draw one, given the yaw (radians) from the hand to the cube's own grasp.

        Near grasps are likelier, by a factor e for each 0.25 rad: about even at 45°, where two
        of them are as near, and a clear choice elsewhere.
        """
        turns = np.arange(4)
        angles = np.array([abs(wrap(misalignment + k * _QUARTER, 2 * np.pi)) for k in turns])
        weights = np.exp(-(angles - angles.min()) / 0.25)
        return Style(
            speed=float(rng.uniform(0.7, 1.0)),
            hover=float(rng.uniform(0.045, 0.08)),
            quarter_turns=int(rng.choice(turns, p=weights / weights.sum())),
            offset=(float(rng.uniform(-0.005, 0.005)), float(rng.uniform(-0.005, 0.003))),
            rise=float(rng.uniform(0.12, 0.16)),
        )


class LiftExpert:
    """Lifts the cube of a robosuite Lift environment, reading its privileged state.

    The only state kept is the style drawn at the start: what to do next is decided anew at every
    step from poses and finger motion, all of which two observation frames show.

    Args:
        simulation: robosuite's Lift, just reset.
        rng: draws the style.
    """

    def __init__(self, simulation: Any, rng: np.random.Generator) -> None:
        self._simulation = simulation
        self._table_z = float(simulation.table_offset[2])
        yaw = yaw_of(Gripper.of(simulation).rotation)
        self.style = Style.draw(rng, yaw_of(self._cube()[1]) - yaw)

    def act(self) -> np.ndarray:
        """The action (7,) for the present state."""
        gripper = Gripper.of(self._simulation)
        goal, rotation, misaligned = self._grasp(gripper)
        fingers, lifting = self._phase(gripper, goal, misaligned)
        if lifting:
            goal = goal * [1, 1, 0] + [0, 0, self._table_z + self.style.rise]
        elif fingers == OPEN:
            goal = goal + [0, 0, self.style.hover * misaligned]
        move = position_command(gripper, goal, speed=self.style.speed)
        turn = rotation_command(gripper, rotation, speed=self.style.speed)
        return np.concatenate([move, turn, [fingers]])

    def _cube(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3) of the cube."""
        return pose_of(self._simulation, self._simulation.cube_body_id)

    def _grasp(self, gripper: Gripper) -> tuple[np.ndarray, np.ndarray, float]:
        """Grasp position (3,) and rotation (3, 3), and how far off, from 0 (go down) to 1."""
        position, rotation = self._cube()
        yaw = yaw_of(rotation) + self.style.quarter_turns * _QUARTER
        along, up = self.style.offset
        goal = position + [-np.sin(yaw) * along, np.cos(yaw) * along, up]
        off_xy = float(np.linalg.norm((goal - gripper.position)[:2]))
        off_yaw = abs(wrap(yaw - yaw_of(gripper.rotation), 2 * np.pi))
        misaligned = max((off_xy - _SLACK_XY) / 0.04, (off_yaw - _SLACK_YAW) / 0.6)
        return goal, pointing_down(yaw), float(np.clip(misaligned, 0, 1))

    def _phase(self, gripper: Gripper, goal: np.ndarray, misaligned: float) -> tuple[float, bool]:
        """Finger command, and whether to lift.

        A grasp once begun is recognised by the fingers themselves, no longer fully open around
        the cube; it is given up when the cube has left them.
        """
        off = np.abs(goal - gripper.position)
        around = bool(np.linalg.norm(off[:2]) < 0.02 and off[2] < 0.015)
        begun = gripper.opening < 0.07 and around and gripper.closing_speed > -0.01
        if not begun and (misaligned > 0.1 or off[2] > 0.012):
            return OPEN, False
        airborne = self._cube()[0][2] > self._table_z + 0.03
        held = gripper.opening < 0.055 and gripper.closing_speed < 0.01
        return CLOSE, bool(begun and (held or airborne))
