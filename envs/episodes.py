"""One scripted episode, as a pure function of (task, noise, pushed, learner, seed, index)."""

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
# The last moment at which a record begins that does not begin with the episode, as a share of the
# steps an attempt may have: about as long as an expert takes. A learner that has failed by then
# has mostly been standing beside what it dropped.
LEADS = 0.5
# Of a push: how many steps it lasts; its largest component, small ones as likely as large ones;
# and how often it also turns a gripper's command around.
PUSH_STEPS = (2, 12)
PUSH_STRENGTH = (0.2, 1.0)
PUSH_LETS_GO = 0.2


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
    learner: int


def episode_streams(seed: int, index: int) -> Streams:
    """Seeds of the world, the expert's style, the noise, the push, and of a learner's chunks."""
    world, style, noise, push, learner = np.random.SeedSequence([seed, index]).spawn(5)
    numbers = (int(sequence.generate_state(1)[0]) for sequence in (world, learner))
    return Streams(next(numbers), style, noise, push, next(numbers))


def run_episode(
    env: RobosuiteEnv,
    noise: float,
    seed: int,
    index: int,
    pushed: float = 0.0,
    learner: Learner | None = None,
) -> Episode:
    """Let the expert solve one episode while noise is added to what it commands.

    The recorded action is the expert's own, at the states that the noisy one leads to (DART,
    Laskey et al. 2017): the data shows how to come back, and its labels carry no noise.

    Noise shows small errors only: larger, it would fill each chunk of actions with corrections of
    pushes that are yet to come. A push shows large ones: unrecorded, the expert gets to some
    moment of the task and the arm is then driven off in a random direction, by 4 cm in the median
    and by 1 to 13 cm in eight of ten cases (measured on Lift). The record begins there, and its
    actions depend on what the first frame shows.
    A learner shows its own errors: unrecorded, it drives to some moment of the task, and the
    expert takes over (DAgger, Ross et al. 2011; from there to the end, because a chunk of actions
    is right only as a whole).

    Args:
        env: the task's environment.
        noise: standard deviation of the added noise, in action units, per arm component; first
            order autoregressive, see `NOISE_CORRELATION`. The gripper is left alone: it obeys
            the sign only.
        seed: of the collection.
        index: of the episode.
        pushed: probability that the record begins after a push.
        learner: drives, in place of the expert, until the record begins.
    """
    streams = episode_streams(seed, index)
    rng = np.random.default_rng(streams.push)
    push = rng.random() < pushed
    if push or learner is not None:
        observation, expert = _lead(env, streams, rng, learner)
    else:
        observation, expert = _start(env, streams)
    if push:
        observation = _push(env, expert, rng)
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


def _lead(
    env: RobosuiteEnv, streams: Streams, rng: np.random.Generator, learner: Learner | None
) -> tuple[Observation, Expert]:
    """From the start of an episode to some moment before it is solved, any as likely as another."""
    moment = int(rng.integers(int(LEADS * env.task.demonstration_limit)))
    while True:
        observation, expert = _start(env, streams)
        if learner is not None:
            learner.reset(streams.learner)
        for step in range(moment):
            action = expert.act() if learner is None else learner.act(observation)
            observation, _, solved, *_ = env.step(action)
            if solved:
                moment = int(rng.integers(step + 1))
                break
        else:
            return observation, expert


def _push(env: RobosuiteEnv, expert: Expert, rng: np.random.Generator) -> Observation:
    """Drive the arm off in a random direction; what is observed then."""
    strength = np.exp(rng.uniform(*np.log(PUSH_STRENGTH)))
    command = np.clip(0.4 * rng.standard_normal(env.task.action_dim), -1.0, 1.0)
    for arm in range(0, len(command), 7):
        way = rng.standard_normal(3)
        command[arm : arm + 3] = way / np.abs(way).max()
    command *= strength
    lets_go = rng.random(len(command) // 7) < PUSH_LETS_GO
    command[6::7] = expert.act()[6::7] * np.where(lets_go, -1, 1)
    for _ in range(int(rng.integers(*PUSH_STEPS, endpoint=True))):
        observation, *_ = env.step(command)
    return observation


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
