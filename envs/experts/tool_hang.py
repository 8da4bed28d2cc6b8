"""A scripted expert for Tool Hang: the frame upright into the stand, then the tool onto its hook.

The hook is a bar with a prong up at its end, too tall together for the tool's ring: the ring goes
flat over the prong, tilts around the corner below, and then slides along the bar.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from asd_policy.envs.experts.grasp import CLOSE, OPEN, Grasp, bent
from asd_policy.envs.experts.servo import (
    Gripper,
    pose_of,
    position_command,
    rotation_command,
    yaw_of,
)

# Points of the objects in their own coordinates, metres. The frame's rod is along z, its bar points
# to -x and the prong to z; the tool's ring is at its -x end, around z.
_TIP = np.array([0.04375, 0.0, -0.13445])
_FRAME_GRIP = np.array([0.04375, 0.0, 0.0525])
_CORNER = np.array([-0.04375, 0.0, 0.08625])  # where the middles of bar and prong meet
_RING = np.array([-0.0935, 0.0, 0.0])
_MOUTH = np.array([0.0, 0.045, 0.08])  # of the stand's tube
_FRAME_WIDTH, _FRAME_GRIP_HALF = 0.0254, 0.032  # metres: thickness, half the length
_TOOL_WIDTH, _TOOL_GRIP_HALF = 0.03, 0.04
_DEPTH = 0.13  # metres below the mouth, of the tip of a frame that stands in the tube
# Metres of the tip above the mouth, and metres below the hand of the goal that lowers it there. A
# policy executes several actions of a chunk unseen: lowered fast around the mouth, the frame would
# be beside the tube before it looks again.
_LOWERING = np.array([[-0.03, -0.015, 0.012, 0.03], [0.015, 0.004, 0.004, 0.015]])
_FREE = 0.06  # metres between fingers that touch neither grip

# The ring's way onto the bar: metres outwards, sideways and up from the corner, and radians by
# which its far side dips. The search for it is over clearances in the plane of the hook, which are
# 1.2 mm or more; beyond 1.1 rad the hand would meet the forearm.
_WAY = np.array(
    [
        [0.0, 0.0, 0.045, 0.0],
        [0.0, 0.0, 0.024, 0.0],
        [0.0, 0.0, 0.012, 0.2],
        [0.0, 0.0, 0.005, 0.55],
        [-0.001, 0.0, 0.002, 0.7],
        [-0.003, 0.0, 0.001, 0.84],
        [-0.006, 0.0, 0.0, 0.87],
        [-0.022, 0.0, 0.0, 1.0],
        [-0.05, 0.0, 0.0, 1.0],
    ]
)
_METRES_PER_RADIAN = 0.03  # by which a tilt is compared with a distance on that way


class Command(NamedTuple):
    """Where to bring the hand: position (3,), rotation (3, 3), finger command, largest speed."""

    goal: np.ndarray
    turn: np.ndarray
    fingers: float
    speed: float


@dataclass(frozen=True)
class Pose:
    """Position (3,) and rotation (3, 3) of an object in the world."""

    position: np.ndarray
    rotation: np.ndarray

    def at(self, point: np.ndarray) -> np.ndarray:
        """A point (3,) of the object, in the world."""
        return np.asarray(self.position + self.rotation @ point)


@dataclass(frozen=True)
class Style:
    """What differs between episodes, so that demonstrations show more than one way.

    The grasps differ by more than a policy errs: what is then held as no demonstration held it
    would be brought to the stand as no demonstration did.

    Attributes:
        speed: largest component of a position command.
        hover: metres above a grasp at which the hand stays while misaligned.
        frame_along: metres from the middle of the frame's grip to the grasp, upwards.
        tool_along: metres from the middle of the tool's grip to the grasp, away from the ring.
        lift: metres above the table to which to lift the lying frame.
        upright_from: metres above the table at which to start turning it upright.
        heading: of the bar in the stand, radians from straight away from the robot.
        bends: radians by which the ways to the stand and to the tool start out beside the
            straight ones, to the left.
        over: metres above the table at which to pass over the frame on the way to the tool.
        inwards: metres along the bar at which to let go of the tool.
    """

    speed: float
    hover: float
    frame_along: float
    tool_along: float
    lift: float
    upright_from: float
    heading: float
    bends: tuple[float, float]
    over: float
    inwards: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """Draw one."""
        sides = rng.choice([-0.3, 0.3], size=2) + rng.uniform(-0.15, 0.15, size=2)
        return Style(
            speed=float(rng.uniform(0.75, 1.0)),
            hover=float(rng.uniform(0.05, 0.09)),
            frame_along=float(rng.uniform(-0.024, 0.024)),
            tool_along=float(rng.uniform(-0.024, 0.024)),
            lift=float(rng.uniform(0.35, 0.38)),
            upright_from=float(rng.uniform(0.06, 0.14)),
            heading=float(rng.uniform(-0.06, 0.06)),
            bends=(float(sides[0]), float(sides[1])),
            over=float(rng.uniform(0.32, 0.36)),
            inwards=float(rng.uniform(0.022, 0.034)),
        )


class ToolHangExpert:
    """Solves a robosuite ToolHang environment, from privileged state.

    The only state kept is the style drawn at the start, as in `LiftExpert`.

    Args:
        simulation: robosuite's ToolHang, just reset.
        rng: draws the style.
    """

    def __init__(self, simulation: Any, rng: np.random.Generator) -> None:
        self._simulation = simulation
        self._table_z = float(simulation.table_offset[2])
        self.style = Style.draw(rng)

    def act(self) -> np.ndarray:
        """The action (7,) for the present state."""
        hand, frame = Gripper.of(self._simulation), self._pose("frame")
        if self._stands(frame):
            command = self._tool_half(hand, frame, self._pose("tool"))
        else:
            command = self._frame_half(hand, frame)
        move = position_command(hand, command.goal, speed=command.speed)
        turn = rotation_command(hand, command.turn, gain=1.5, speed=0.6 * self.style.speed)
        return np.concatenate([move, turn, [command.fingers]])

    def _pose(self, name: str) -> Pose:
        return Pose(*pose_of(self._simulation, self._simulation.obj_body_id[name]))

    def _above_table(self, position: np.ndarray) -> float:
        return float(position[2] - self._table_z)

    def _withdraw(self, hand: Gripper) -> Command:
        """Open, then back off the way the hand came."""
        back = -0.1 * hand.rotation[:, 2] * (hand.opening > _FREE)
        return Command(hand.position + back, hand.rotation, OPEN, self.style.speed)

    # --- the frame ------------------------------------------------------------------------------

    def _stands(self, frame: Pose) -> bool:
        """Whether the frame is as deep in the stand as need be; let go of, it falls the rest."""
        off = frame.at(_TIP) - self._pose("stand").at(_MOUTH)
        deep = off[2] < -_DEPTH and np.linalg.norm(off[:2]) < 0.012
        return bool(deep and frame.rotation[2, 2] > 0.95)

    def _frame_half(self, hand: Gripper, frame: Pose) -> Command:
        aim = frame.at(_FRAME_GRIP + [0, 0, self.style.frame_along])
        grasp = Grasp(aim, yaw_of(frame.rotation), _FRAME_WIDTH, clearance=0.02)
        grip = _nearest(hand, frame, _FRAME_GRIP, np.array([0, 0, _FRAME_GRIP_HALF]))
        if replace(grasp, position=grip).held(hand, airborne=self._above_table(aim) > 0.03):
            return self._stand_up(hand, frame)
        return Command(*grasp.approach(hand, self.style.hover), self.style.speed)

    def _stand_up(self, hand: Gripper, frame: Pose) -> Command:
        """Up, turn upright, across above the stand, down into it."""
        mouth, tip, rod = self._pose("stand").at(_MOUTH), frame.at(_TIP), frame.rotation[:, 2]
        upright = Rotation.from_euler("z", np.pi + self.style.heading).as_matrix()
        left = _rotation_vector(frame.rotation, upright)
        height = float(tip[2] - mouth[2])
        threaded = height < -0.002 and np.linalg.norm((tip - mouth)[:2]) < 0.008
        # what must be above the mouth: the tip, or the part of the rod that is in it
        away = (mouth - tip - rod * np.clip(-height, 0.0, 0.1))[:2]
        distance = float(np.linalg.norm(away))
        raised = self._above_table(hand.position)
        angle = float(np.linalg.norm(left))
        speed, lowering = self.style.speed, float(np.interp(height, *_LOWERING))
        if threaded:  # upwards where it would jam
            off = max((distance - 0.003) / 0.003, (angle - 0.07) / 0.06)
            across, rise = away, -lowering + 0.02 * float(np.clip(off, 0, 1))
        elif rod[2] < 0.8:
            across, rise = np.zeros(2), self.style.lift - raised
        else:
            off = max((distance - 0.003) / 0.003, (angle - 0.05) / 0.05)
            misaligned = float(np.clip(off, 0, 1))
            rise = misaligned * (0.012 - height) - lowering * (1 - misaligned)
            clear = float(np.clip(height / 0.02 + 1, 0, 1))
            across = clear * bent(away, self.style.bends[0], near=0.1, far=0.4)
            speed *= float(np.clip(distance / 0.06, 0.3, 1))
        turning = float(np.clip((raised - self.style.upright_from) / 0.08, 0, 1))
        turn = Rotation.from_rotvec(turning * left).as_matrix() @ hand.rotation
        return Command(hand.position + [*across, rise], turn, CLOSE, speed)

    # --- the tool -------------------------------------------------------------------------------

    def _tool_half(self, hand: Gripper, frame: Pose, tool: Pose) -> Command:
        if self._at_frame(hand, frame):
            return self._withdraw(hand)
        ring = _hook_axes(frame) @ (tool.at(_RING) - frame.at(_CORNER))
        arrived = -ring[0] > self.style.inwards or hand.opening > _TOOL_WIDTH + 0.015
        if _on_bar(ring) and arrived:
            return self._withdraw(hand)
        aim = tool.at(np.array([self.style.tool_along, 0, 0]))
        grasp = Grasp(aim, self._across(tool), _TOOL_WIDTH, clearance=0.02)
        grip = _nearest(hand, tool, np.zeros(3), np.array([_TOOL_GRIP_HALF, 0, 0]))
        if replace(grasp, position=grip).held(hand, airborne=self._above_table(aim) > 0.035):
            return self._hang(hand, frame, tool, ring)
        return self._fetch(hand, grasp)

    def _at_frame(self, hand: Gripper, frame: Pose) -> bool:
        """Whether the fingers, level, are around the frame's grip or not yet clear of it."""
        ahead = hand.rotation.T @ (frame.at(_FRAME_GRIP) - hand.position)
        level = abs(hand.rotation[2, 2]) < 0.5
        return bool(level and np.abs(ahead[:2]).max() < 0.04 and abs(ahead[2]) < 0.11)

    def _across(self, tool: Pose) -> float:
        """Heading of the fingers across the tool's grip, from which the wrist can go on."""
        side = -_upper_face(tool) * tool.rotation[:, 1]
        return float(np.arctan2(side[1], side[0]))

    def _fetch(self, hand: Gripper, grasp: Grasp) -> Command:
        """Over the standing frame to the tool, and down to it."""
        goal, turn, fingers = grasp.approach(hand, self.style.hover)
        away = (goal - hand.position)[:2]
        distance = float(np.linalg.norm(away))
        if distance > 0.05:
            height = self._above_table(hand.position)
            clear = float(np.clip((height - 0.24) / 0.05, 0, 1)) if distance > 0.15 else 1.0
            goal[:2] = hand.position[:2] + clear * bent(away, self.style.bends[1], 0.1, 0.3)
            over = self._table_z + self.style.over - goal[2]
            goal[2] += over * float(np.clip((distance - 0.05) / 0.1, 0, 1))
        return Command(goal, turn, fingers, self.style.speed)

    def _hang(self, hand: Gripper, frame: Pose, tool: Pose, ring: np.ndarray) -> Command:
        """Up, flat over the prong, and along the way onto the bar."""
        axes = _hook_axes(frame)
        normal = _upper_face(tool) * tool.rotation[:, 2]
        tilt = float(np.arctan2(normal @ axes[0], normal @ axes[2]))
        if np.linalg.norm(ring[:2]) < 0.02 or _on_bar(ring):
            wanted, across, speed = _ahead(_WAY, np.array([*ring, tilt])), 1.0, 0.5
        else:
            across = float(np.clip((ring[2] - 0.02) / 0.015, 0, 1))
            wanted, speed = _WAY[0], 1.0
        left = _rotation_vector(tool.rotation, _hanging(axes, wanted[3], tool))
        turning = float(np.clip((self._above_table(hand.position) - 0.05) / 0.05, 0, 1))
        turn = Rotation.from_rotvec(turning * left).as_matrix() @ hand.rotation
        error = (wanted[:3] - ring) * [across, across, 1.0]
        return Command(hand.position + axes.T @ error, turn, CLOSE, speed * self.style.speed)


def _nearest(hand: Gripper, pose: Pose, middle: np.ndarray, half: np.ndarray) -> np.ndarray:
    """The point (3,) nearest to the hand on a grip, from `middle` - `half` to `middle` + `half`."""
    along = (pose.rotation @ half) @ (hand.position - pose.at(middle)) / (half @ half)
    return pose.at(middle + half * np.clip(along, -1, 1))


def _rotation_vector(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Axis-angle (3,) in the world that turns `start` (3, 3) to `end` (3, 3)."""
    return np.asarray(Rotation.from_matrix(end @ start.T).as_rotvec())


def _upper_face(tool: Pose) -> float:
    """1 where the tool's z axis points up, -1 where it lies on the other side."""
    return 1.0 if tool.rotation[2, 2] >= 0 else -1.0


def _hook_axes(frame: Pose) -> np.ndarray:
    """Rows (3, 3): outwards along the bar, sideways to where the tool's handle shall be, up."""
    out, up = -frame.rotation[:, 0], frame.rotation[:, 2]
    return np.stack([out, np.cross(out, up), up])


def _on_bar(ring: np.ndarray) -> bool:
    """Whether the ring (outwards, sideways, up from the hook's corner) is around the bar."""
    return bool(-0.08 < ring[0] < -0.002 and np.hypot(ring[1], ring[2]) < 0.012)


def _hanging(axes: np.ndarray, tilt: float, tool: Pose) -> np.ndarray:
    """Rotation (3, 3) of a tool whose handle points sideways and whose ring is tilted."""
    normal = _upper_face(tool) * (np.sin(tilt) * axes[0] + np.cos(tilt) * axes[2])
    return np.stack([axes[1], np.cross(normal, axes[1]), normal], axis=1)


def _ahead(way: np.ndarray, here: np.ndarray) -> np.ndarray:
    """What to go for next on a way (rows (4,): three metres, one radian): a little beyond the
    point nearest to `here` (4,), or that point itself where `here` is far off."""
    scale = np.array([1.0, 1.0, 1.0, _METRES_PER_RADIAN])
    points = way * scale
    legs = np.diff(points, axis=0)
    lengths = np.linalg.norm(legs, axis=1)
    shares = np.sum((here * scale - points[:-1]) * legs, axis=1) / lengths**2
    shares = np.clip(shares, 0.0, 1.0)
    off = np.linalg.norm(points[:-1] + shares[:, None] * legs - here * scale, axis=1)
    leg = int(np.argmin(off))
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    ahead = 0.006 * np.clip((0.012 - off[leg]) / 0.006, 0.0, 1.0)
    target = ends[leg] + shares[leg] * lengths[leg] + ahead
    return np.array([np.interp(target, ends, column) for column in points.T]) / scale
