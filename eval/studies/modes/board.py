"""A board of posts on robosuite's table: the hand of a Panda passes every row to the left or right.

After D3IL's Avoiding (Jia et al., ICLR 2024), and Galton's board: wherever the hand has passed a
row, a post of the next one stands straight ahead. A way is a sequence of sides; there are 2^rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from asd_policy.envs.experts.servo import (
    Gripper,
    pointing_down,
    position_command,
    rotation_command,
)
from asd_policy.envs.world import Observation, RobosuiteEnv
from asd_policy.eval.runs.modes import Side

ROWS = (-0.14, -0.02, 0.10)  # metres along y
START, FINISH = -0.26, 0.15  # where the hand is at first, and where it has passed all, along y
MIDDLE = -0.05  # of the board, along x; the hand comes from smaller x
HALF = 0.03  # metres between a post and the ways on either side of it
RADIUS, TALL = 0.005, 0.028  # of a post: the palm passes over it, the fingers do not
HEIGHT = 0.015  # of the hand's tip above the table
TABLE = 0.8
CROSSED = 0.01  # metres behind a row at which the hand has passed it
# Where the expert leaves the way past a row (or the start) for a side of the next, along y, and
# where it has come there.
LEAVES = tuple(y + 0.025 for y in (START, *ROWS[:-1]))
COMES = tuple(y + 0.055 for y in LEAVES)
NEAR = 0.008  # metres from the middle at which the hand has come before the board

# Joints of the arm with the hand at the start, pointing down: found by its own servo.
_JOINTS = (-0.47822026, 0.82831212, -0.03275008, -2.23577009, 0.30269266, 3.05933367, -0.01668502)
_JITTER = 0.003  # radians, standard deviation, of each joint at the start: 3 mm of the hand


def posts(row: int) -> np.ndarray:
    """Where the posts of a row stand along x, metres, (row + 1,)."""
    return MIDDLE + HALF * np.arange(-row, row + 1, 2)


class Board(RobosuiteEnv):
    """robosuite's Lift with posts in place of its task; the cube stands aside.

    `terminated` means that the hand passed all rows, or that something touched a post. Success is
    the first without the second.
    """

    def __init__(self) -> None:
        super().__init__("lift", horizon=120)
        expert = "asd_policy.eval.studies.modes.board:Walker"
        self.task = replace(self.task, name="board", expert=expert, demonstration_limit=120)
        self.simulation.set_xml_processor(_with_posts)
        noise = {"magnitude": _JITTER, "type": "gaussian"}
        self.simulation.robot_configs[0] |= {"initial_qpos": _JOINTS, "initialization_noise": noise}
        placement = self.simulation.placement_initializer
        placement.x_range, placement.y_range, placement.rotation = (0.3, 0.3), (0.3, 0.3), 0.0
        self.sides: list[Side] = []
        self.touched = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, with the hand before the first row."""
        self.sides, self.touched = [], False
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance 1/20 s."""
        observation, reward, passed, truncated, info = super().step(action)
        return observation, reward, passed or self.touched, truncated and not self.touched, info

    def _info(self) -> dict[str, Any]:
        x, y, _ = Gripper.of(self.simulation).position
        self.touched = self.touched or _touching(self.simulation)
        if len(self.sides) < len(ROWS) and y > ROWS[len(self.sides)] + CROSSED:
            self.sides.append(side(self.sides, x))
        success = y > FINISH and not self.touched
        return {"is_success": success, "success": success}


def side(before: Sequence[int], x: float) -> Side:
    """On which side of the post that was straight ahead the hand is, 1 or -1; `before`: the sides
    of the rows that it had passed."""
    return 1 if x > MIDDLE + HALF * sum(before) else -1


def _touching(simulation: Any) -> bool:
    data, model = simulation.sim.data, simulation.sim.model
    pairs = (data.contact[i] for i in range(data.ncon))
    names = (model.geom_id2name(geom) for pair in pairs for geom in (pair.geom1, pair.geom2))
    return any(name is not None and name.startswith("post") for name in names)


def _with_posts(xml: str) -> str:
    geoms = [
        f'<geom name="post{row}_{i}" type="cylinder" size="{RADIUS} {TALL / 2}" '
        f'pos="{x} {y} {TABLE + TALL / 2}" rgba="0.2 0.2 0.2 1" group="1"/>'
        for row, y in enumerate(ROWS)
        for i, x in enumerate(posts(row))
    ]
    head, tail, rest = xml.rpartition("</worldbody>")
    return "".join((head, *geoms, tail, rest))


class Walker:
    """Comes before the board at full speed, then passes the rows, each on a side that was drawn
    beforehand, with even chances. It steers for a point a little ahead."""

    def __init__(self, simulation: Any, rng: np.random.Generator) -> None:
        self._simulation = simulation
        self.sides = np.where(rng.random(len(ROWS)) < 0.5, 1, -1)
        self.speed = float(rng.uniform(0.55, 0.6))

    def act(self) -> np.ndarray:
        """The action (7,) for the present state."""
        gripper = Gripper.of(self._simulation)
        x, y, _ = gripper.position
        coming = y < START + CROSSED and x < MIDDLE - NEAR
        ahead = START if coming else y + 0.025
        goal = np.array([MIDDLE if coming else way(self.sides, ahead), ahead, TABLE + HEIGHT])
        move = position_command(gripper, goal, speed=1.0 if coming else self.speed)
        turn = rotation_command(gripper, pointing_down(np.pi / 2), speed=self.speed)
        return np.concatenate([move, turn, [1.0]])


def way(sides: np.ndarray, y: float) -> float:
    """x of the way past the rows on these sides, at y: aslant behind each row, soon enough that the
    side is plain half way to the next, then level."""
    shares = np.clip((y - np.array(LEAVES)) / np.subtract(COMES, LEAVES), 0, 1)
    return float(MIDDLE + HALF * (sides * shares).sum())
