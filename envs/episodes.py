"""One scripted episode, as a pure function of its task, recipe, seed and index."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from asd_policy.envs.tasks import Task
from asd_policy.envs.world import Observation, RobosuiteEnv, WorldState
from asd_policy.errors import InputError

# Correlation of the noise from one step to the next: pushes that last a few steps and must be
# corrected, where white noise would average out within the arm's own inertia.
NOISE_CORRELATION = 0.8
# Steps recorded after success, all of them upwards: the ends of the data are then well covered
# without the standing still that policies learn to stall from.
STEPS_AFTER_SUCCESS = 6
# Of a push: how many steps it lasts; its largest component, small ones as likely as large ones;
# and how often it also turns a gripper's command around.
PUSH_STEPS = (2, 12)
PUSH_STRENGTH = (0.2, 1.0)
PUSH_LETS_GO = 0.05
# How many steps a learner drives at a time: long enough for its errors to grow, short enough that
# most of them can still be mended.
LEARNER_STEPS = (8, 64)
# Below the table's top (0.8 m): what lies there is lost to a robot on it.
FLOOR_HEIGHT = 0.7


class Expert(Protocol):
    """What a scripted expert is: made for one episode, asked for one action a step."""

    def act(self) -> np.ndarray:
        """The action for the present state."""
        ...


class Learner(Protocol):
    """What a policy is, to whoever lets it drive: see `DiffusionPolicy`."""

    def reset(self, seeds: int) -> None:
        """Begin an episode."""
        ...

    def act(self, observation: Observation) -> np.ndarray:
        """The action for what is observed."""
        ...


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps; row t is what held before action t.

    Attributes:
        observations: key to (T, dim) float32.
        action: (T, action_dim) float32, the expert's own action for that observation.
        executed_action: (T, action_dim) float32, the same with the noise that was added, or what
            interrupted the expert.
        interrupted: (T,) bool, whether something else than the expert drove.
        reward: (T,) float32, of the step.
        state: (T, n) float64, MuJoCo time, qpos, qvel.
        success: whether the task was solved, and still was at the end.
    """

    observations: dict[str, np.ndarray]
    action: np.ndarray
    executed_action: np.ndarray
    interrupted: np.ndarray
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
            "interrupted": self.interrupted,
            "reward": self.reward,
            "state": self.state,
        }


def load_expert(task: Task) -> Callable[[Any, np.random.Generator], Expert]:
    """The class of the task's expert.

    Raises:
        ValueError: the task has none.
    """
    if task.expert is None:
        raise InputError(f"task {task.name!r} has no scripted expert")
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
    interruptions: np.random.SeedSequence


def episode_streams(seed: int, index: int) -> Streams:
    """Seeds of the world, the expert's style, the noise and the interruptions of an episode."""
    world, *others = np.random.SeedSequence([seed, index]).spawn(4)
    return Streams(int(world.generate_state(1)[0]), *others)


def run_episode(
    env: RobosuiteEnv,
    noise: float,
    seed: int,
    index: int,
    interrupt_every: int = 0,
    learner: Learner | None = None,
) -> Episode:
    """Let the expert solve one episode while it is disturbed.

    The recorded action is the expert's own, at the states that the disturbed one leads to (DART,
    Laskey et al. 2017): the data shows how to come back, and its labels carry no noise.

    Noise shows small errors only: larger, it would fill each chunk of actions with corrections of
    what is yet to come. Interruptions show large ones: for some steps the arm is pushed off in a
    random direction, by 4 cm in the median and by 1 to 13 cm in eight of ten cases (measured on
    Lift), or a learner drives, which shows its own errors (DAgger, Ross et al. 2011; by turns, as
    in HG-DAgger, Kelly et al. 2019). Those steps are marked: a chunk that runs into one is no
    example of anything. If something falls off the table, the last of them is undone.

    Args:
        env: the task's environment.
        noise: standard deviation of the added noise, in action units, per arm component; first
            order autoregressive, see `NOISE_CORRELATION`. The gripper is left alone: it obeys
            the sign only.
        seed: of the collection.
        index: of the episode.
        interrupt_every: steps that the expert drives between two interruptions, in the mean
            (geometrically distributed); 0 for none. There are none after success.
        learner: drives in every other interruption, in the mean; the rest are pushes.
    """
    streams = episode_streams(seed, index)
    observation, _ = env.reset(seed=streams.world)
    expert = load_expert(env.task)(env.simulation, np.random.default_rng(streams.style))
    rng = np.random.default_rng(streams.interruptions)
    interruptions = Interruptions(env, interrupt_every, learner, rng)
    disturbance = Disturbance(noise, env.task.action_dim, np.random.default_rng(streams.noise))
    rows: list[dict[str, Any]] = []
    left = STEPS_AFTER_SUCCESS
    for _ in range(env.task.demonstration_limit):
        action = expert.act().astype(np.float32)
        unsolved = left == STEPS_AFTER_SUCCESS
        other = interruptions.action(observation, action, len(rows)) if unsolved else None
        executed = disturbance.added_to(action) if other is None else other
        row: dict[str, Any] = {**observation, "action": action, "executed_action": executed}
        row |= {"interrupted": np.bool_(other is not None), "state": env.flat_state()}
        observation, reward, solved, _, info = env.step(executed)
        rows.append({**row, "reward": np.float32(reward)})
        left -= solved
        if left == 0:
            break
        if interruptions.began_at is not None and _fallen(env.task, observation):
            del rows[interruptions.began_at :]
            observation = interruptions.undo()
    stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return Episode(
        observations={key: stacked.pop(key) for key in env.task.observation_keys},
        success=bool(info["is_success"] and left == 0),
        **stacked,
    )


def _fallen(task: Task, observation: Observation) -> bool:
    return bool((observation["object"][list(task.height_columns)] < FLOOR_HEIGHT).any())


class Interruptions:
    """Says, step by step, whether something else than the expert drives, and what it does.

    Attributes:
        began_at: row at which the last interruption began that was not undone.
    """

    def __init__(
        self, env: RobosuiteEnv, every: int, learner: Learner | None, rng: np.random.Generator
    ) -> None:
        self._env, self._learner, self._rng = env, learner, rng
        self._chance = 1 / every if every else 0.0
        self._left = 0
        self._push: np.ndarray | None = None
        self._before: WorldState | None = None
        self.began_at: int | None = None

    def action(
        self, observation: Observation, expert_action: np.ndarray, row: int
    ) -> np.ndarray | None:
        """What is executed in place of the expert's action (and its noise); None: nothing is."""
        if self._left == 0 and self._rng.random() < self._chance:
            self._before, self.began_at = self._env.get_state(), row
            self._begin(expert_action)
        if self._left == 0:
            return None
        self._left -= 1
        if self._push is not None:
            return self._push
        assert self._learner is not None
        return self._learner.act(observation).astype(np.float32)

    def undo(self) -> Observation:
        """Return to the moment before the last interruption; what is observed then."""
        assert self._before is not None
        observation, _ = self._env.set_state(self._before)
        self._left, self._before, self.began_at = 0, None, None
        return observation

    def _begin(self, expert_action: np.ndarray) -> None:
        if self._learner is not None and self._rng.random() < 0.5:
            self._learner.reset(int(self._rng.integers(2**32)))
            self._push, steps = None, LEARNER_STEPS
        else:
            self._push, steps = _push(expert_action, self._rng), PUSH_STEPS
        self._left = int(self._rng.integers(*steps, endpoint=True))


def _push(expert_action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A command that drives every arm off in a random direction; the grippers mostly obey on."""
    command = np.clip(0.4 * rng.standard_normal(len(expert_action)), -1.0, 1.0)
    for arm in range(0, len(command), 7):
        way = rng.standard_normal(3)
        command[arm : arm + 3] = way / np.abs(way).max()
    command *= np.exp(rng.uniform(*np.log(PUSH_STRENGTH)))
    lets_go = rng.random(len(command) // 7) < PUSH_LETS_GO
    command[6::7] = expert_action[6::7] * np.where(lets_go, -1, 1)
    return command.astype(np.float32)


class Disturbance:
    """First-order autoregressive noise on the arm's components, stationary from the start."""

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
