"""A scripted expert for Transport: two arms, a lid, a piece of trash, a hammer handed over.

Arm 0 lays the lid aside, takes the hammer out of its bin and holds it out between the tables.
Arm 1 throws the trash away, takes the hammer at its other end and lays it into the target bin.
Each arm has phases of its own, told from poses as in `grasp`; they meet in what either holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from asd_policy.envs.experts.grasp import CLOSE, OPEN, Grasp, bent, let_go, nearest_turn
from asd_policy.envs.experts.servo import (
    Gripper,
    pointing_down,
    pose_of,
    position_command,
    rotation_command,
    yaw_of,
)

_LID, _HAMMER, _CUBE = 0.02, 0.03, 0.04  # metres between the fingers that hold them
_UP = 0.005  # metres above the middle of a grasp; lower, the fingers meet what it lies on
_LYING = 0.05  # metres above a table below which what lies in a bin has its middle
_MIDDLE = 0.015  # metres from the middle of the hammer's handle to its own, towards the head
_LENGTH = 0.23  # metres, of the hammer
_ASKEW = 0.3  # radians; turned in the fingers by more, it is grasped anew
_LID_PLACE = np.array([-0.2, -0.45])  # beside the start bin, on arm 0's table
_LID_LIES = 0.035  # metres above the table below which the lid's handle is let go
_LID_CLEAR = 0.06  # metres from the lid's handle at which the hand has left it
_TOGETHER, _MOVED = 0.06, 0.03  # metres past the middle: where both arms bring it, and one lets go
_APART = 0.09  # metres between arm 0's hand and its grasp from which on arm 1 may go
_WALL = 0.17  # metres above the tables at which the bins' walls are cleared
_RISE = 0.06  # metres, the most to ask for at once
# Metres from the middle of what an arm carries, held level, to its lowest point; of the hand, its
# fingertips.
_BELOW_HAND, _BELOW_LID, _BELOW_CUBE, _BELOW_HAMMER = 0.015, 0.025, 0.03, 0.02
# Metres above the table to the lowest point of what is let go in a bin: within its walls, while
# the hand, nearly as wide as a bin, stays above them.
_DROP_TRASH, _DROP_HAMMER = 0.11, 0.08
# Radians by which a hand leans away from its robot. Near the robot, and low, its forearm is
# upright: were the hand upright as well, two joints of the wrist would share an axis. Between
# the tables it is the other way round, for the hands to keep clear of each other.
_LEAN_LID, _LEAN_TRASH, _LEAN_HAMMER, _LEAN_MEETING, _LEAN_DROP = 0.2, 0.3, 0.2, -0.05, 0.12
_QUARTER = np.pi / 2

Pose = tuple[np.ndarray, np.ndarray]  # position (3,), rotation (3, 3)


class Aim(NamedTuple):
    """What a hand is to do: position (3,), heading and lean in radians, finger command."""

    position: np.ndarray
    yaw: float
    lean: float
    fingers: float


@dataclass(frozen=True)
class Style:
    """What differs between episodes, so that demonstrations show more than one way.

    Attributes:
        speed: largest component of a position command, of each arm.
        hover: metres above a grasp at which a hand stays while misaligned.
        lid: metres from the usual place to lay the lid.
        lid_along: metres from the middle of the lid's handle to the grasp, to the hand's left.
        trash_yaw: preferred heading of the fingers on the cube, from that of the resting hand;
            of its four grasps the nearest is taken.
        trash: metres from the middle of the trash bin to where the cube is dropped.
        meeting: where the hammer's middle is when it is handed over, metres in the world.
        ends: metres from the middle of its handle to the grasp of each arm, towards that arm.
        yaw: heading of arm 1's hand at the target bin, from that of the resting hand.
        over: metres above the walls at which each arm travels.
        bends: radians by which each arm's ways start out beside the straight ones, to the left.
    """

    speed: tuple[float, float]
    hover: float
    lid: tuple[float, float]
    lid_along: float
    trash_yaw: float
    trash: tuple[float, float]
    meeting: tuple[float, float, float]
    ends: tuple[float, float]
    yaw: float
    over: tuple[float, float]
    bends: tuple[float, float]

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """Draw one."""

        def pair(low: float, high: float) -> tuple[float, float]:
            return float(rng.uniform(low, high)), float(rng.uniform(low, high))

        return Style(
            speed=pair(0.75, 1.0),
            hover=float(rng.uniform(0.04, 0.07)),
            lid=pair(-0.02, 0.02),
            lid_along=float(rng.uniform(-0.018, 0.018)),
            trash_yaw=float(rng.uniform(-0.7, 1.5)),
            trash=pair(-0.04, 0.04),
            meeting=(
                float(rng.uniform(-0.05, 0.05)),
                float(rng.uniform(-0.03, 0.0)),
                float(rng.uniform(1.04, 1.1)),
            ),
            ends=(float(rng.uniform(0.03, 0.058)), float(rng.uniform(0.062, 0.088))),
            yaw=float(rng.uniform(-0.2, 0.2)),
            over=pair(0.01, 0.05),
            bends=pair(-0.4, 0.4),
        )


@dataclass(frozen=True)
class Scene:
    """What both arms look at.

    Attributes:
        hands: of both arms.
        hammer: its pose.
        middle: of the hammer, (3,) metres.
        below: metres from there to the hammer's lowest point.
        ends: each arm's grasp of it.
        offered: whether arm 0 holds it.
        taken: whether arm 1 holds it.
        given: whether arm 0 may let go: both have brought it on, or arm 0 has begun to.
    """

    hands: tuple[Gripper, Gripper]
    hammer: Pose
    middle: np.ndarray
    below: float
    ends: tuple[Grasp, Grasp]
    offered: bool
    taken: bool
    given: bool


def leaning(yaw: float, lean: float) -> np.ndarray:
    """Rotation (3, 3) of a hand that points down, and leans about the axis of its fingers."""
    c, s = np.cos(lean), np.sin(lean)
    return pointing_down(yaw) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


class TransportExpert:
    """Solves a robosuite TwoArmTransport from privileged state.

    The only state kept is the style drawn at the start, as in `LiftExpert`.

    Args:
        simulation: robosuite's TwoArmTransport, just reset.
        rng: draws the style.
    """

    def __init__(self, simulation: Any, rng: np.random.Generator) -> None:
        self._simulation = simulation
        self._table_z = float(simulation.table_offsets[0, 2])
        self._yaw = [yaw_of(Gripper.of(simulation, arm).rotation) for arm in (0, 1)]
        self.style = Style.draw(rng)

    def act(self) -> np.ndarray:
        """The action (14,) for the present state."""
        scene = self._look()
        commands = []
        for arm, aim in enumerate((self._first_arm(scene), self._second_arm(scene))):
            hand, speed = scene.hands[arm], self.style.speed[arm]
            move = position_command(hand, aim.position, speed=speed)
            rotate = rotation_command(hand, leaning(aim.yaw, aim.lean), speed=0.5 * speed)
            commands.append(np.concatenate([move, rotate, [aim.fingers]]))
        return np.concatenate(commands)

    # --- what there is --------------------------------------------------------------------------

    def _pose(self, name: str) -> Pose:
        """Pose of an object of the task."""
        root = self._simulation.transport.objects[name].root_body
        return pose_of(self._simulation, self._simulation.sim.model.body_name2id(root))

    def _look(self) -> Scene:
        hands = Gripper.of(self._simulation, 0), Gripper.of(self._simulation, 1)
        hammer = self._pose("payload")
        ends = self._end(hammer, 0), self._end(hammer, 1)
        airborne = bool(hammer[0][2] > self._table_z + _LYING)
        # Once arm 0 has begun to let go it goes on.
        alone = airborne and hands[0].opening > _HAMMER + 0.012
        middle = hammer[0] + _MIDDLE * hammer[1][:, 2]
        taken = ends[1].held(hands[1], airborne) and hands[1].opening > _HAMMER - 0.01
        return Scene(
            hands=hands,
            hammer=hammer,
            middle=middle,
            below=_BELOW_HAMMER + 0.5 * _LENGTH * abs(float(hammer[1][2, 2])),
            ends=ends,
            offered=ends[0].held(hands[0], airborne),
            taken=taken,
            # Not before it shows that the fingers hold it: a policy acts for several steps unseen.
            given=taken and (alone or bool(middle[1] > _MOVED)),
        )

    def _end(self, hammer: Pose, arm: int) -> Grasp:
        """Across the end of the hammer's handle that is towards the arm."""
        position, rotation = hammer
        side = -1.0 if arm == 0 else 1.0
        out = rotation[:, 2] * (1.0 if rotation[1, 2] * side > 0 else -1.0)
        yaw = nearest_turn(float(np.arctan2(out[0], -out[1])), np.pi, self._yaw[arm])
        low = position[2] < self._table_z + _LYING
        end = position + self.style.ends[arm] * out + [0, 0, _UP * low]
        return Grasp(end, yaw, _HAMMER, reach=0.025, slack=0.012, clearance=0.02, askew=_ASKEW)

    def _lid_grasp(self) -> Grasp:
        position = self._simulation.transport.lid_handle_pos
        rotation = self._pose("lid")[1]
        yaw = nearest_turn(yaw_of(rotation), np.pi, self._yaw[0])
        along = self.style.lid_along * np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        return Grasp(position + along + [0, 0, _UP], yaw, _LID, reach=0.025)

    # --- arm 0 ----------------------------------------------------------------------------------

    def _first_arm(self, scene: Scene) -> Aim:
        """Lid, hammer, meeting, and out of the way."""
        hand, hammer = scene.hands[0], scene.hammer[0]
        if scene.given or hammer[1] > 0.2:
            return self._withdraw(scene)
        if scene.offered:
            return self._offer(scene)
        lid = self._lid_grasp()
        height = lid.position[2] - self._table_z
        if lid.position[0] > _LID_PLACE[0] + 0.1 or height > _LID_LIES + _UP:
            return self._open(hand, lid)
        if np.linalg.norm(lid.position - hand.position) < _LID_CLEAR:
            return self._let_go(hand, _LEAN_LID)
        return self._approach(0, hand, scene.ends[0], _LEAN_HAMMER)

    def _open(self, hand: Gripper, lid: Grasp) -> Aim:
        """Lay the lid aside."""
        airborne = bool(lid.position[2] > self._table_z + 0.19)
        if not lid.held(hand, airborne):
            return self._approach(0, hand, lid, _LEAN_LID)
        place = np.array([*(_LID_PLACE + self.style.lid), self._table_z + _LID_LIES - 0.01])
        goal = self._way(0, hand, lid.position, place, _BELOW_LID)
        return Aim(goal, self._yaw[0], _LEAN_LID, CLOSE)

    def _offer(self, scene: Scene) -> Aim:
        """Hold the hammer out to arm 1, and bring it on together."""
        place = self._place(scene)
        goal = self._way(0, scene.hands[0], scene.middle, place, scene.below)
        far = float(np.clip(5 * np.linalg.norm(scene.middle - place) - 1, 0, 1))
        lean = _LEAN_MEETING + far * (_LEAN_HAMMER - _LEAN_MEETING)
        # Turned inside its bin, the hammer would meet a wall, and be turned in the fingers.
        inside = self._within("start_bin", scene.middle, 0.15, _WALL + scene.below)
        return Aim(goal, scene.ends[0].yaw if inside else self._yaw[0], lean, CLOSE)

    def _withdraw(self, scene: Scene) -> Aim:
        """Let go of the hammer, up, and back."""
        hand = scene.hands[0]
        if not self._apart(scene):
            return self._let_go(hand, _LEAN_MEETING)
        rest = np.array([0.0, -0.36, self._table_z + 0.25])
        return Aim(rest, self._yaw[0], 0.0, OPEN)

    def _apart(self, scene: Scene) -> bool:
        """Whether arm 0 has left the hammer."""
        return bool(np.linalg.norm(scene.ends[0].position - scene.hands[0].position) > _APART)

    def _place(self, scene: Scene) -> np.ndarray:
        """Where both arms hold the hammer, (3,) metres."""
        x, y, z = self.style.meeting
        return np.array([x, _TOGETHER if scene.taken else y, z])

    # --- arm 1 ----------------------------------------------------------------------------------

    def _second_arm(self, scene: Scene) -> Aim:
        """Trash, meeting, hammer."""
        hand, hammer = scene.hands[1], scene.hammer[0]
        if scene.taken:
            return self._deliver(scene)
        trash = self._pose("trash")
        if not self._within("trash_bin", trash[0], 0.13, _DROP_TRASH + _BELOW_CUBE):
            return self._clear(hand, trash)
        if np.linalg.norm(trash[0] - hand.position) < 0.08 or self._within(
            "target_bin", hammer, 0.13, _WALL
        ):
            return self._let_go(hand, _LEAN_DROP)
        if hammer[1] > 0.2:  # it fell
            return self._approach(1, hand, scene.ends[1], _LEAN_HAMMER)
        away = np.abs(scene.middle - self.style.meeting).max()
        if scene.ends[1].begun(hand) or (scene.offered and away < 0.03):
            return self._take(scene)
        goal = np.array(self.style.meeting) + [0, 0.2, 0.08]
        goal = self._way(1, hand, hand.position, goal, _BELOW_HAND)
        return Aim(goal, self._yaw[1], _LEAN_MEETING, OPEN)

    def _clear(self, hand: Gripper, trash: Pose) -> Aim:
        """Throw the trash away."""
        position, rotation = trash
        yaw = nearest_turn(yaw_of(rotation), _QUARTER, self._yaw[1] + self.style.trash_yaw)
        grasp = Grasp(position + [0, 0, _UP], yaw, _CUBE)
        if not grasp.held(hand, airborne=bool(position[2] > self._table_z + _LYING)):
            return self._approach(1, hand, grasp, _LEAN_TRASH)
        place = self._drop("trash_bin", _DROP_TRASH + _BELOW_CUBE) + [*self.style.trash, 0]
        goal = self._way(1, hand, position, place, _BELOW_CUBE)
        return Aim(goal, self._yaw[1], _LEAN_DROP, CLOSE)

    def _take(self, scene: Scene) -> Aim:
        """Grasp the hammer that arm 0 holds out."""
        end = scene.ends[1]
        goal, _, fingers = end.approach(scene.hands[1], self.style.hover + 0.03)
        return Aim(goal, end.yaw, _LEAN_MEETING, fingers)

    def _deliver(self, scene: Scene) -> Aim:
        """Bring the hammer on, and lay it into the target bin once arm 0 has left it."""
        hand = scene.hands[1]
        if not self._apart(scene):
            still = hand.position + self._place(scene) - scene.middle
            return Aim(still, yaw_of(hand.rotation), _LEAN_MEETING, CLOSE)
        height = _DROP_HAMMER + scene.below
        begun = 0.03 * (hand.opening > _HAMMER + 0.003)  # to let go: then it goes on
        if self._within("target_bin", scene.middle, 0.025 + begun, height + begun):
            return self._let_go(hand, _LEAN_DROP)
        place = self._drop("target_bin", height)
        goal = self._way(1, hand, scene.middle, place, scene.below)
        return Aim(goal, self._yaw[1] + self.style.yaw, _LEAN_DROP, CLOSE)

    def _within(self, name: str, position: np.ndarray, beside: float, height: float) -> bool:
        """Whether a position is that near to a bin's middle, and to the table."""
        off = np.abs(position[:2] - self._pose(name)[0][:2]).max()
        return bool(off < beside and position[2] < self._table_z + height)

    def _drop(self, name: str, height: float) -> np.ndarray:
        """The place (3,) just below that height above the table, over a bin's middle."""
        return np.array([*self._pose(name)[0][:2], self._table_z + height - 0.01])

    # --- ways -----------------------------------------------------------------------------------

    def _approach(self, arm: int, hand: Gripper, grasp: Grasp, lean: float) -> Aim:
        """To a grasp, over the walls."""
        goal, _, fingers = grasp.approach(hand, self.style.hover)
        goal = self._way(arm, hand, hand.position, goal, _BELOW_HAND)
        return Aim(goal, grasp.yaw, lean, fingers)

    def _let_go(self, hand: Gripper, lean: float) -> Aim:
        """Open, then up."""
        goal, _, fingers = let_go(hand, free=0.055)
        return Aim(goal, yaw_of(hand.rotation), lean, fingers)

    def _way(
        self, arm: int, hand: Gripper, thing: np.ndarray, place: np.ndarray, below: float
    ) -> np.ndarray:
        """Hand position that brings `thing`, which moves with the hand, to `place`: up over the
        walls, across on an arc, down. Inside a bin it keeps to the middle on its way up.
        """
        away = place[:2] - thing[:2]
        far = float(np.clip((np.linalg.norm(away) - 0.02) / 0.06, 0, 1))
        wall = self._table_z + _WALL + below
        height = place[2] + far * (max(wall + self.style.over[arm], place[2]) - place[2])
        clear = float(np.clip((thing[2] - min(height, wall)) / 0.02 + 1, 0, 1))
        across = clear * bent(away, self.style.bends[arm], near=0.1, far=0.5)
        for name in ("start_bin", "target_bin", "trash_bin"):
            if self._within(name, thing, 0.15, _WALL + below):
                across += (1 - clear) * (self._pose(name)[0] - thing)[:2]
        # Not all the way at once: speed is shared out among the axes by what they lack.
        rise = float(np.clip(height - thing[2], -_RISE, _RISE))
        return hand.position + [*across, rise]
