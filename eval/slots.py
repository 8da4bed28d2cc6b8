"""Places in which episodes are run, one after another: in this process, or in one of their own.

A slot is asked for the next moment of its episode (`start`, then `send` for each action) and told
it later (`receive`), so that many worker processes simulate at once. A worker that dies is known by
`WorkerDied`, and `restart` puts another in its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from asd_policy.envs.registration import register_envs
from asd_policy.envs.workers import follow_parent, interrupts_held
from asd_policy.errors import AsdPolicyError, MissingExtraError, missing_extra

Observation = Mapping[str, np.ndarray]
Env = gym.Env[Any, Any]


@dataclasses.dataclass(frozen=True)
class Moment:
    """What an environment tells after a reset or a step.

    `frame`: a picture, where the episode is filmed. `simulation_s`, `rendering_s`: what it took,
    measured where the environment is. `stages`: of an environment that tells them, each with the
    control step after which it was first reached, None until then.
    """

    observation: Observation
    reward: float
    success: bool
    over: bool
    frame: np.ndarray | None
    simulation_s: float
    rendering_s: float
    stages: Mapping[str, int | None] = dataclasses.field(default_factory=dict)


class WorkerDied(AsdPolicyError):
    """The process of an environment ended without being asked to."""


class Slot(Protocol):
    """A place for one episode at a time. `start` or `send`, then `receive`, in turn."""

    def start(self, seed: int, film: bool) -> None:
        """Ask for the first moment of the episode of this seed, with pictures or without."""

    def send(self, action: np.ndarray, coming: Sequence[np.ndarray] = ()) -> None:
        """Ask for the moment after this action. `coming`: the actions that will follow it unless
        the episode ends, for an environment in another process to run ahead with."""

    def receive(self) -> Moment:
        """The moment that was asked for.

        Raises:
            WorkerDied: the environment's process has ended.
        """

    def restart(self) -> None:
        """Put a new environment in the place of one that died."""

    def close(self) -> None:
        """Let go of the environment."""


class Stage:
    """An environment and its camera: one call, one moment."""

    def __init__(self, make: Callable[[], Env]):
        self.env = make()
        self._film = False
        # Of stages, which not every environment has; gymnasium's wrappers hide them.
        self._told: Any = getattr(self.env, "unwrapped", self.env)
        self._stages: dict[str, int | None] = {}
        self._steps = 0

    def start(self, seed: int, film: bool) -> Moment:
        self._film = film
        self._stages, self._steps = dict.fromkeys(getattr(self._told, "stages", ())), 0
        start = time.perf_counter()
        observation, _ = self.env.reset(seed=seed)
        return self._moment(start, observation, 0.0, False, False)

    def step(self, action: np.ndarray) -> Moment:
        start = time.perf_counter()
        observation, reward, terminated, truncated, info = self.env.step(action)
        success, over = bool(info["is_success"]), bool(terminated or truncated)
        self._steps += 1
        return self._moment(start, observation, float(reward), success, over)

    def _moment(
        self, start: float, observation: Observation, reward: float, success: bool, over: bool
    ) -> Moment:
        simulated = time.perf_counter()
        for name, reached in self._stages.items():
            if reached is None and self._told.has_reached(name):
                self._stages[name] = self._steps
        looked = time.perf_counter()
        frame = np.asarray(self.env.render()) if self._film else None
        rendered = looked if frame is None else time.perf_counter()
        took = simulated - start, rendered - looked
        return Moment(observation, reward, success, over, frame, *took, {**self._stages})


class LocalSlot:
    """An environment in this process; the moment is made when it is received."""

    def __init__(self, make: Callable[[], Env]):
        self._stage = Stage(make)
        self._asked: Callable[[], Moment] | None = None

    def start(self, seed: int, film: bool) -> None:
        self._asked = lambda: self._stage.start(seed, film)

    def send(self, action: np.ndarray, coming: Sequence[np.ndarray] = ()) -> None:
        self._asked = lambda: self._stage.step(action)

    def receive(self) -> Moment:
        asked, self._asked = self._asked, None
        assert asked is not None, "nothing was asked for"
        return asked()

    def restart(self) -> None:
        raise AssertionError("an environment in this process cannot die alone")

    def close(self) -> None:
        self._stage.env.close()


class WorkerSlot:
    """An environment in a process of its own, a pool of one: one that dies can be replaced without
    the others.

    A message carries all actions that are certain, and its answer all their moments: one round trip
    for each chunk, not for each step. The rollout takes the moments one by one, as from any slot.

    Args:
        make: makes the environment; a function that can be pickled and needs no torch. Called in
            the worker at the first `start`, so that many workers load their simulators at once.
    """

    def __init__(self, make: Callable[[], Env]):
        self._make = make
        self._open()

    def _open(self) -> None:
        self._answer: Future[list[Moment]] | None = None
        self._planned: deque[np.ndarray] = deque()  # sent, not yet asked for by the rollout
        self._told: deque[Moment] = deque()
        # Spawned, since torch's threads and fork do not mix.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _begin, (self._make,))
        others = set(multiprocessing.active_children())
        with interrupts_held():
            self._up = self._pool.submit(os.getpid)
        (self.process,) = set(multiprocessing.active_children()) - others

    def start(self, seed: int, film: bool) -> None:
        self._planned.clear()
        self._told.clear()
        self._ask(_start, seed, film)

    def send(self, action: np.ndarray, coming: Sequence[np.ndarray] = ()) -> None:
        if self._planned:
            planned = self._planned.popleft()
            assert np.array_equal(action, planned), "the environment ran ahead with another action"
            return
        assert not self._told, "the last moment was not received"
        self._planned.extend(coming)
        self._ask(_run, [action, *coming])

    def _ask(self, task: Callable[..., list[Moment]], *given: Any) -> None:
        assert self._answer is None, "the last moment was not received"
        try:
            self._answer = self._pool.submit(task, *given)
        except BrokenProcessPool as error:  # `receive` will say so
            self._answer = Future()
            self._answer.set_exception(error)

    def receive(self) -> Moment:
        if not self._told:
            assert self._answer is not None, "nothing was asked for"
            answer, self._answer = self._answer, None
            self._told.extend(self._result(answer))
        return self._told.popleft()

    def _result(self, answer: Future[list[Moment]]) -> list[Moment]:
        try:
            return answer.result()
        except BrokenProcessPool as error:
            if self._up.exception() is not None:
                raise AsdPolicyError(
                    "an environment's process ended while it started, and has said why above; a "
                    "program that evaluates in several environments must be importable, its own "
                    "work under `if __name__ == '__main__':`"
                ) from error
            # The pool's own thread waits for the process as well. Only one of two threads is told
            # how it ended, so that thread has to be through before the exit code is known.
            self._pool.shutdown()
            self.process.join()
            raise WorkerDied(
                f"an environment's process ended by itself (exit code {self.process.exitcode})"
            ) from error
        except (AsdPolicyError, gym.error.Error):  # they say what is wrong
            raise
        except Exception as error:
            raise RuntimeError(
                f"an environment failed in its process: {error!r}"
            ) from error.__cause__

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        # A simulator has nothing to save. Asking it to end would wait for what it is doing now.
        with interrupts_held():
            self.process.kill()
            self.process.join()
            self._pool.shutdown(cancel_futures=True)


def make_env(
    env_id: str,
    horizon: int | None,
    pictures: bool,
    cameras: Mapping[str, tuple[int, int]] | None = None,
) -> Env:
    """An environment that is registered with gymnasium, in this process or a worker; `cameras`:
    pictures among its observations, key → (height, width)."""
    register_envs()
    env = gym.make(
        env_id,
        horizon=horizon,
        render_mode="rgb_array" if pictures else None,
        disable_env_checker=True,  # its checks at every step would be counted as simulation
    )
    if not cameras:
        return env
    from asd_policy.envs.cameras import CameraObservations  # loads OpenGL

    return CameraObservations(env, cameras)


def open_slots(make: Callable[[], Env], count: int) -> list[Slot]:
    """One environment in this process, which costs no start, or several in one worker each."""
    if count == 1:
        return [LocalSlot(make)]
    slots: list[Slot] = []
    try:
        for _ in range(count):
            slots.append(WorkerSlot(make))
    except BaseException:
        for slot in slots:
            slot.close()
        raise
    return slots


# --- the worker's side --------------------------------------------------------------------------

_make: Callable[[], Env]
_stage: Stage | None = None


def _begin(make: Callable[[], Env]) -> None:
    global _make
    follow_parent()
    _make = make


def _start(seed: int, film: bool) -> list[Moment]:
    """The first moment of an episode."""
    global _stage
    with picklable_errors():
        if _stage is None:
            _stage = Stage(_make)
        return [_stage.start(seed, film)]


def _run(actions: Sequence[np.ndarray]) -> list[Moment]:
    """The moments after each of these actions, to the episode's end at most."""
    assert _stage is not None, "no episode was started"
    told: list[Moment] = []
    with picklable_errors():
        for action in actions:
            told.append(_stage.step(action))
            if told[-1].over:
                break
    return told


@contextlib.contextmanager
def picklable_errors() -> Iterator[None]:
    """Turn an exception that would not survive the way to another process into one that does, and
    a missing module into the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = missing_extra(error, "the simulator")
        if message is None:
            raise
        raise MissingExtraError(message) from error
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # one that holds what cannot be pickled, or is made of other arguments
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
