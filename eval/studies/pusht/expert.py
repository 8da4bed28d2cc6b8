"""A scripted expert for gym-pusht: it tries straight pushes in a copy of the simulator, takes the
one that leaves the T nearest to its goal, walks round the T to where that push begins, and pushes.

A push starts on a ring around the T and goes inwards, at one of a few angles. The T does not slide
on when it is not pushed (gym-pusht damps it fully), so that an outcome depends on the pusher's path
alone, and one run of the simulator gives those of every length. A push costs the mean distance of
the T's eight corners to their goals after it, and its steps.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from asd_policy.errors import IntegrationError

try:
    import pymunk
    import shapely
    from gym_pusht.envs.pusht import PushTEnv  # and registers it
except ModuleNotFoundError as error:
    raise IntegrationError(
        f"PushT needs {error.name}, which is not installed: pip install 'asd-policy[lerobot]' "
        "'lerobot[pusht]' (best in an environment of its own)"
    ) from error

DT = 0.01  # of the simulator, seconds
RADIUS, WALLS = 15.0, (23.0, 488.0)  # of the pusher, pixels; where its centre may be
GAP = 6.0  # between pusher and block where a push begins
ANGLES = (-0.5, 0.0, 0.5)  # of a push to the block's outline, radians
LENGTH, SLICE = 110, 22  # of the longest push, and of what is tried at once, pixels
HOPELESS = 8.0  # pixels of distance that a push may lose on the way
STRIDE, PUSH = 50.0, 20.0  # how far ahead the pusher's target is, walking and pushing, pixels
PACE = 0.15  # pixels of distance that a step may cost
T = np.array([[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]])


def turned(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points (N, 2) of the block's frame in the world, for poses (..., 3): (..., N, 2)."""
    cos, sin = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = points[:, 0], points[:, 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1) + pose[..., None, :2]


def distance(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Mean distance of the corners at poses (..., 3) to those at the goal's, pixels."""
    return np.linalg.norm(turned(T, pose) - turned(T, goal), axis=-1).mean(-1)


class Ring:
    """Where the pusher may walk: points around the T at `pose`, and ways between them."""

    def __init__(self, pose: np.ndarray) -> None:
        self.block = shapely.Polygon(turned(T, pose))
        line = self.block.buffer(RADIUS + GAP, quad_segs=4).exterior
        count = int(line.length / 8)
        self.points = shapely.get_coordinates(
            shapely.line_interpolate_point(line, np.arange(count) / count, normalized=True)
        )
        self.spacing = line.length / count
        self.free = ((self.points > WALLS[0]) & (self.points < WALLS[1])).all(1)
        self.core = self.block.buffer(RADIUS + 2, quad_segs=4)

    def inwards(self) -> np.ndarray:
        """Unit vectors (N, 2) from the points to the block."""
        near = shapely.shortest_line(shapely.points(self.points), self.block)
        ends = shapely.get_coordinates(near).reshape(-1, 2, 2)
        ways = ends[:, 1] - ends[:, 0]
        return ways / np.linalg.norm(ways, axis=1, keepdims=True)

    def sees(self, start: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether straight lines from a point to points (N, 2) leave the block alone: (N,)."""
        lines = shapely.linestrings(np.stack([np.broadcast_to(start, ends.shape), ends], 1))
        return ~shapely.intersects(lines, self.core)

    def path(self, start: np.ndarray, to: int) -> tuple[float, np.ndarray]:
        """(length, points) of the shorter way round from a point to the ring's point `to`."""
        count = len(self.points)
        at = int(np.linalg.norm(self.points - start, axis=1).argmin())
        ways = [(at + side * np.arange((side * (to - at)) % count + 1)) % count for side in (1, -1)]
        lengths = [len(w) * self.spacing if self.free[w].all() else np.inf for w in ways]
        best = int(np.argmin(lengths))
        return float(lengths[best]), self.points[ways[best]]


class Expert:
    """Actions for the state of an environment, step by step. `reset` before each episode."""

    def __init__(self) -> None:
        # As PushTEnv sets it up, without its count of contacts, which takes twice the time.
        self.space = pymunk.Space()
        self.space.damping = 0.0
        corners = [(5, 506), (5, 5), (506, 5), (506, 506), (5, 506)]
        for ends in itertools.pairwise(corners):
            self.space.add(PushTEnv.add_segment(self.space, *ends, 2))
        self.agent = PushTEnv.add_circle(self.space, (256, 400), RADIUS)
        self.block, _ = PushTEnv.add_tee(self.space, (256, 300), 0)
        self.reset()

    def reset(self) -> None:
        self.push: tuple[np.ndarray, np.ndarray] | None = None  # where it begins, where it ends
        self.walking = True

    def costs(
        self, start: np.ndarray, way: np.ndarray, pose: np.ndarray, goal: np.ndarray
    ) -> np.ndarray:
        """Distances (lengths,) of the block to its goal after a push of 1, 2, ... pixels, in a copy
        of the simulator. A push that makes it worse and worse is not gone on with."""
        agent, block = self.agent, self.block
        agent.position, block.position = (40, 40), (256, 256)
        self.space.step(DT)  # apart: what the solver had still to correct is gone
        block.velocity, block.angular_velocity = (0, 0), 0
        block.angle = float(pose[2])  # first: the angle turns about the centre of gravity
        block.position = tuple(pose[:2].tolist())
        agent.position, agent.velocity = tuple(start.tolist()), tuple((way / DT).tolist())
        self.space.reindex_shapes_for_body(block)
        self.space.reindex_shapes_for_body(agent)
        least, found = distance(pose, goal), []
        for _ in range(0, LENGTH, SLICE):
            poses = []
            for _ in range(SLICE):
                self.space.step(DT)
                x, y = block.position
                poses.append((x, y, block.angle))
            found.append(distance(np.array(poses), goal))
            least = min(least, found[-1].min())
            if found[-1][-1] > least + HOPELESS:
                break
        return np.concatenate(found)

    def plan(self, agent: np.ndarray, pose: np.ndarray, goal: np.ndarray) -> None:
        """Choose the next push."""
        ring = Ring(pose)
        inwards, seen = ring.inwards(), ring.sees(agent, ring.points)
        best = np.inf
        for i, start in enumerate(ring.points):
            if not ring.free[i]:
                continue
            way = np.linalg.norm(start - agent) if seen[i] else ring.path(agent, i)[0]
            if not np.isfinite(way) or PACE * way / 25 > best:
                continue
            for angle in ANGLES:
                cos, sin = np.cos(angle), np.sin(angle)
                push = np.array([[cos, -sin], [sin, cos]]) @ inwards[i]
                ends = start + push * np.arange(1, LENGTH + 1)[:, None]
                inside = ((ends > WALLS[0]) & (ends < WALLS[1])).all(1)
                costs = self.costs(start, push, pose, goal)
                lengths = np.arange(1, len(costs) + 1)
                costs = costs + PACE * (way / 25 + lengths / 10 + 3)
                costs[~inside[: len(costs)]] = np.inf
                k = int(costs.argmin())
                if costs[k] < best:
                    best, self.push = costs[k], (start, ends[k])
        self.walking, self.planned_at = True, pose

    def act(self, agent: np.ndarray, pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """The pusher's target (2,), pixels, for its position (2,) and the block's pose (3,)."""
        if self.push is None or (self.walking and distance(pose, self.planned_at) > 1):
            self.plan(agent, pose, goal)
        assert self.push is not None
        start, end = self.push
        if self.walking and np.linalg.norm(start - agent) < 4:
            self.walking = False
        if not self.walking:
            left = end - agent
            if np.linalg.norm(left) < 2.0 or left @ (end - start) < 0:
                self.push = None
                return self.act(agent, pose, goal)
            return _ahead(agent, end, PUSH)
        ring = Ring(pose)
        if ring.sees(agent, start[None])[0]:
            return _ahead(agent, start, STRIDE)
        to = int(np.linalg.norm(ring.points - start, axis=1).argmin())
        _, points = ring.path(agent, to)
        seen = np.flatnonzero(ring.sees(agent, points))
        return _ahead(agent, points[seen[-1] if len(seen) else 0], STRIDE)


def _ahead(agent: np.ndarray, to: np.ndarray, most: float) -> np.ndarray:
    """The point `to`, or one on the way there."""
    way = to - agent
    length = float(np.linalg.norm(way))
    return to if length <= most else agent + way * (most / length)


def state(env: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pusher's position, block's pose, goal's pose) of a gym-pusht environment."""
    base = env.unwrapped
    pose = np.array([*base.block.position, base.block.angle])
    return np.array(base.agent.position), pose, np.array(base.goal_pose)
