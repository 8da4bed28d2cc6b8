"""What a hand is about to do at a grasp, told from poses and finger motion alone.

The phases of the pick-and-place experts. Nothing is remembered: approach, grasp and hold are told
apart by where the hand is and how far the fingers are open, so that a policy that sees two frames
can tell them apart as well, and so that whatever slips is picked up again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asd_policy.envs.experts.servo import Gripper, pointing_down, wrap, yaw_of

OPEN, CLOSE = -1.0, 1.0
_RESTING = 0.01  # metres per second of finger motion that count as none


@dataclass(frozen=True)
class Grasp:
    """A grasp from above.

    Attributes:
        position: (3,) of the hand when the fingers close, metres.
        yaw: heading of the axis along which they close, radians.
        width: metres between the fingers when they hold the object.
        reach: metres beside `position`, and above or below it, at which an object still counts
            as between the fingers.
        slack: metres beside the grasp at which the hand may be all the way down.
        slack_yaw: radians from `yaw`, likewise.
        clearance: metres beside the grasp, beyond the slack, at which it must stay above.
        askew: radians from `yaw` at which fingers at rest on it let go, to grasp it anew.
    """

    position: np.ndarray
    yaw: float
    width: float
    reach: float = 0.02
    slack: float = 0.006
    slack_yaw: float = 0.1
    clearance: float = 0.03
    askew: float = np.inf

    def misalignment(self, gripper: Gripper) -> float:
        """How far off the hand is, from 0 (go down) to 1 (stay above)."""
        off_xy = float(np.linalg.norm((self.position - gripper.position)[:2]))
        turned = self._turned(gripper)
        misaligned = max((off_xy - self.slack) / self.clearance, (turned - self.slack_yaw) / 0.4)
        return float(np.clip(misaligned, 0, 1))

    def _turned(self, gripper: Gripper) -> float:
        """Radians between the hand's heading and that of the grasp."""
        return abs(wrap(self.yaw - yaw_of(gripper.rotation), 2 * np.pi))

    def around(self, gripper: Gripper) -> bool:
        """Whether the object is between the fingers."""
        off = np.abs(self.position - gripper.position)
        return bool(np.linalg.norm(off[:2]) < self.reach and off[2] < self.reach)

    def begun(self, gripper: Gripper) -> bool:
        """Whether the fingers are closing on the object, or have closed."""
        closing = gripper.opening < 0.07 and gripper.closing_speed > -_RESTING
        return closing and self.around(gripper) and self._turned(gripper) < self.askew

    def held(self, gripper: Gripper, airborne: bool) -> bool:
        """Whether the fingers have closed on the object, and on nothing thinner.

        At rest this waits for the fingers to come to rest as well; in the air, where the arm's
        motion shakes them, it does not.
        """
        if airborne:
            return gripper.opening < self.width + 0.012 and self.around(gripper)
        off = abs(gripper.opening - self.width)
        return self.begun(gripper) and off < 0.008 and gripper.closing_speed < _RESTING

    def approach(self, gripper: Gripper, hover: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Hand position (3,), rotation (3, 3) and finger command until the object is held.

        Down from `hover` metres as the hand comes into line, then still while the fingers close.
        """
        misaligned = self.misalignment(gripper)
        there = misaligned < 0.1 and abs(self.position[2] - gripper.position[2]) < 0.012
        fingers = CLOSE if there or self.begun(gripper) else OPEN
        above = 0.0 if fingers == CLOSE else hover * misaligned
        return self.position + [0, 0, above], pointing_down(self.yaw), fingers


def nearest_turn(angle: float, period: float, preferred: float) -> float:
    """The angle nearest to `preferred` that equals `angle` modulo `period`."""
    return preferred + wrap(angle - preferred, period)


def unwound(gripper: Gripper, yaw: float, middle: float) -> float:
    """The heading to command now on the way to `yaw`, so that the hand never turns the long way
    round: it passes `middle`, radians, where the wrist's joint has as much room on either side."""
    here = nearest_turn(yaw_of(gripper.rotation), 2 * np.pi, middle)
    there = nearest_turn(yaw, 2 * np.pi, middle)
    return here + float(np.clip(there - here, -2, 2))


def let_go(gripper: Gripper, free: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Hand position (3,), rotation (3, 3) and finger command that release an object.

    Up, but not before the fingers are `free` metres apart.
    """
    up = 0.1 * (gripper.opening > free)
    return gripper.position + [0, 0, up], pointing_down(yaw_of(gripper.rotation)), OPEN


def bent(away: np.ndarray, bend: float, near: float, far: float) -> np.ndarray:
    """The way `away` (2,), turned left by up to `bend` radians at `far` metres, straight at `near`.

    Steering by it at every step leads there on an arc, to the left or to the right.
    """
    distance = float(np.linalg.norm(away))
    turn = bend * float(np.clip((distance - near) / (far - near), 0, 1))
    c, s = np.cos(turn), np.sin(turn)
    return np.array([[c, -s], [s, c]]) @ away
