"""A servo from pose errors to the robot's commands, shared by the experts.

It keeps no state: a command depends on the present pose alone, so that a policy which sees two
frames can imitate it. An integral term would be simpler, and hidden from the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

POSITION_UNIT = 0.05  # metres commanded by an action of 1
ROTATION_UNIT = 0.5  # radians commanded by an action of 1
LOOKAHEAD = 0.06  # seconds; about the time the arm takes to stop
_GAIN = 2.0  # command a metre, in metres
_STICTION, _STICTION_FADE = 0.006, 0.002  # metres


@dataclass(frozen=True)
class Gripper:
    """The grip site in the world.

    Attributes:
        position: (3,) metres.
        velocity: (3,) metres per second.
        rotation: (3, 3); its x axis is the one along which the fingers close.
        opening: metres between the fingers.
        closing_speed: metres per second at which the opening shrinks.
    """

    position: np.ndarray
    velocity: np.ndarray
    rotation: np.ndarray
    opening: float
    closing_speed: float

    @staticmethod
    def of(simulation: Any, arm: int = 0) -> Gripper:
        """Read it from a robosuite environment."""
        robot, data = simulation.robots[arm], simulation.sim.data
        site = robot.eef_site_id["right"]
        name = robot.gripper["right"].important_sites["grip_site"]
        joints = robot.gripper["right"].joints
        finger, other = (data.get_joint_qpos(joint) for joint in joints)
        finger_speed, other_speed = (data.get_joint_qvel(joint) for joint in joints)
        return Gripper(
            position=data.site_xpos[site].copy(),
            velocity=np.array(data.get_site_xvelp(name)),
            rotation=data.site_xmat[site].reshape(3, 3).copy(),
            opening=float(finger - other),
            closing_speed=float(other_speed - finger_speed),
        )


def pose_of(simulation: Any, body: int) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and rotation (3, 3) of a body in the world, in a robosuite environment."""
    data = simulation.sim.data
    return data.body_xpos[body].copy(), data.body_xmat[body].reshape(3, 3).copy()


def position_command(gripper: Gripper, target: np.ndarray, speed: float = 1.0) -> np.ndarray:
    """Command (3,) that brings the gripper to `target` (3,) and stops it there.

    The controller's goal is the achieved position plus the command, and joint friction swallows
    the last millimetres of a proportional command; `_STICTION` metres are therefore added along
    the error, fading near the goal so that the command stays continuous. The error is that of
    `LOOKAHEAD` ahead, which is what keeps it from overshooting.
    The command is scaled, not clipped, to a largest component of `speed`: clipping would bend
    the direction of travel.
    """
    error = target - gripper.position - LOOKAHEAD * gripper.velocity
    size = float(np.linalg.norm(error))
    command = error * (_GAIN + _STICTION / (size + _STICTION_FADE)) / POSITION_UNIT
    return limited(command, speed)


def limited(command: np.ndarray, largest: float) -> np.ndarray:
    """The command, scaled down where a component exceeds `largest`."""
    return command * min(1.0, largest / max(float(np.abs(command).max()), 1e-9))


def rotation_command(
    gripper: Gripper, target: np.ndarray, gain: float = 1.0, speed: float = 1.0
) -> np.ndarray:
    """Command (3,), axis-angle in the world frame, that turns the gripper to `target` (3, 3)."""
    error = Rotation.from_matrix(target @ gripper.rotation.T).as_rotvec()
    return limited(gain * np.asarray(error) / ROTATION_UNIT, speed)


def pointing_down(yaw: float) -> np.ndarray:
    """Rotation (3, 3) of a gripper that points down, its finger axis (x) at `yaw` in the world."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def yaw_of(rotation: np.ndarray) -> float:
    """Heading of the x axis of a rotation (3, 3), in radians."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def wrap(angle: float, period: float) -> float:
    """The angle in [-period/2, period/2) that equals `angle` modulo `period`."""
    return float((angle + period / 2) % period - period / 2)
