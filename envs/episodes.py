"""One scripted episode, as a pure function of (task, noise, pushed, seed, index)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from asd_policy.envs.tasks import Task
from asd_policy.envs.world import Observation, RobosuiteEnv

# Correlation of the noise from one step to the next: pushes that last a few steps and must be
# corrected, where white noise would average out within the arm's own inertia.
NOISE_CORRELATION = 0.8
# Steps recorded after success, all of them upwards: the ends of the data are then well covered
# without the standing still that policies learn to stall from.
STEPS_AFTER_SUCCESS = 6
# Of a push: how many steps it lasts, and how often it also turns a gripper's command around.
PUSH_STEPS = (4, 12)
PUSH_LETS_GO = 0.2


class Expert(Protocol):
    """What a scripted expert is: made for one episode, asked for one action a step."""

    def act(self) -> np.ndarray:
        """The action for the present state."""
        ...


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps; row t is what held before action t.

    Attributes:
        observations: key to (T, dim) float32.
        action: (T, action_dim) float32, the expert's own action for that observation.
        executed_action: (T, action_dim) float32, the same with the noise that was added.
        reward: (T,) float32, of the step.
        state: (T, n) float64, MuJoCo time, qpos, qvel.
        success: whether the task was solved, and still was at the end.
    """

    observations: dict[str, np.ndarray]
    action: np.ndarray
    executed_action: np.ndarray
    reward: np.ndarray
    state: np.ndarray
    success: bool

    def __len__(self) -> int:
        return len(self.action)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by its name in the store."""
        return {
            **self.observations,
            "action": self.action,
            "executed_action": self.executed_action,
            "reward": self.reward,
            "state": self.state,
        }


def load_expert(task: Task) -> Callable[[Any, np.random.Generator], Expert]:
    """The class of the task's expert.

    Raises:
        ValueError: the task has none.
    """
    if task.expert is None:
        raise ValueError(f"task {task.name!r} has no scripted expert")
    module, name = task.expert.split(":")
    expert: Callable[[Any, np.random.Generator], Expert] = getattr(
        importlib.import_module(module), name
    )
    return expert


class Streams(NamedTuple):
    """Where the chance in an episode comes from."""

    world: int
    style: np.random.SeedSequence
    noise: np.random.SeedSequence
    push: np.random.SeedSequence


def episode_streams(seed: int, index: int) -> Streams:
    """Seed of the world, and those of the expert's style, of the noise and of the push."""
    world, style, noise, push = np.random.SeedSequence([seed, index]).spawn(4)
    return Streams(int(world.generate_state(1)[0]), style, noise, push)


def run_episode(
    env: RobosuiteEnv, noise: float, seed: int, index: int, pushed: float = 0.0
) -> Episode:
    """Let the expert solve one episode while noise is added to what it commands.

    The recorded action is the expert's own, at the states that the noisy one leads to (DART,
    Laskey et al. 2017): the data shows how to come back, and its labels carry no noise.

    Noise shows small errors only: larger, it would fill each chunk of actions with corrections of
    pushes that are yet to come. A push shows large ones: unrecorded, the expert gets to some
    moment of the task and the arm is then driven off in a random direction, by up to 15 cm. The
    record begins there, and its actions depend on what the first frame shows.

    Args:
        env: the task's environment.
        noise: standard deviation of the added noise, in action units, per arm component; first
            order autoregressive, see `NOISE_CORRELATION`. The gripper is left alone: it obeys
            the sign only.
        seed: of the collection.
        index: of the episode.
        pushed: probability that the record begins after a push.
    """
    streams = episode_streams(seed, index)
    push_rng = np.random.default_rng(streams.push)
    if push_rng.random() < pushed:
        observation, expert = _push(env, streams, push_rng)
    else:
        observation, expert = _start(env, streams)
    disturbance = Disturbance(noise, env.task.action_dim, np.random.default_rng(streams.noise))
    rows: list[dict[str, Any]] = []
    left = STEPS_AFTER_SUCCESS
    while len(rows) < env.task.demonstration_limit and left > 0:
        action = expert.act().astype(np.float32)
        executed = disturbance.added_to(action)
        row = {**observation, "action": action, "executed_action": executed}
        row["state"] = env.flat_state()
        observation, reward, solved, _, info = env.step(executed)
        rows.append({**row, "reward": np.float32(reward)})
        left -= solved
    stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return Episode(
        observations={key: stacked.pop(key) for key in env.task.observation_keys},
        success=bool(info["is_success"] and left == 0),
        **stacked,
    )


def _start(env: RobosuiteEnv, streams: Streams) -> tuple[Observation, Expert]:
    observation, _ = env.reset(seed=streams.world)
    style = np.random.default_rng(streams.style)
    return observation, load_expert(env.task)(env.simulation, style)


def _push(
    env: RobosuiteEnv, streams: Streams, rng: np.random.Generator
) -> tuple[Observation, Expert]:
    """From the start of an episode to just after a push; drawn again where it comes too late."""
    observation, expert = _start(env, streams)
    steps, solved = int(rng.integers(2 * env.task.demonstration_limit // 5)), False
    for _ in range(steps):
        observation, _, solved, *_ = env.step(expert.act())
        if solved:
            return _push(env, streams, rng)
    command = np.clip(0.4 * rng.standard_normal(env.task.action_dim), -1.0, 1.0)
    for arm in range(0, len(command), 7):
        way = rng.standard_normal(3)
        command[arm : arm + 3] = rng.uniform(0.4, 1.0) * way / np.abs(way).max()
    lets_go = rng.random(len(command) // 7) < PUSH_LETS_GO
    command[6::7] = expert.act()[6::7] * np.where(lets_go, -1, 1)
    for _ in range(int(rng.integers(*PUSH_STEPS, endpoint=True))):
        observation, *_ = env.step(command)
    return observation, expert


class Disturbance:
    """First-order autoregressive noise on the arm's components, started in its stationary law."""

    def __init__(self, scale: float, action_dim: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self._scale = np.full(action_dim, scale)
        self._scale[6::7] = 0.0
        self._value = self._scale * rng.standard_normal(action_dim)

    def added_to(self, action: np.ndarray) -> np.ndarray:
        noisy = np.clip(action + self._value, -1.0, 1.0).astype(np.float32)
        fresh = self._scale * self._rng.standard_normal(len(action))
        self._value = NOISE_CORRELATION * self._value + np.sqrt(1 - NOISE_CORRELATION**2) * fresh
        return noisy
