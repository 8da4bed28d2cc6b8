"""Places in which episodes are run, one after another: in this process, or in one of their own.

A slot is asked for the next moment of its episode (`start`, then `send` for each action) and told
it later (`receive`), so that many worker processes simulate at once. A worker that dies is known by
`WorkerDied`, and `restart` puts another in its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any, NoReturn, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv

from asd_policy.envs.registration import register_envs
from asd_policy.envs.workers import follow_parent
from asd_policy.errors import AsdPolicyError, MissingExtraError, missing_extra

Observation = Mapping[str, np.ndarray]


class Env(Protocol):
    """What is asked of an environment (gymnasium's interface)."""

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Start the episode of this seed."""

    def step(self, action: np.ndarray) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """One control step."""

    def render(self) -> Any:
        """The scene as a (height, width, 3) uint8 frame."""

    def close(self) -> None:
        """Let go of the simulator."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """What an environment tells after a reset or a step.

    `frame`: a picture, where the episode is filmed. `simulation_s`, `rendering_s`: what it took,
    measured where the environment is.
    """

    observation: Observation
    reward: float
    success: bool
    over: bool
    frame: np.ndarray | None
    simulation_s: float
    rendering_s: float


class WorkerDied(AsdPolicyError):
    """The process of an environment ended without being asked to."""


class Slot(Protocol):
    """A place for one episode at a time. `start` or `send`, then `receive`, in turn."""

    def ready(self) -> bool:
        """Whether the next call would not wait: a `start` for the environment to have a place, a
        `receive` for what was asked. (True where that is not worth asking.)"""

    def start(self, seed: int, film: bool) -> None:
        """Ask for the first moment of the episode of this seed, with pictures or without."""

    def send(self, action: np.ndarray, coming: Sequence[np.ndarray] = ()) -> None:
        """Ask for the moment after this action. `coming`: the actions that will follow it until
        the episode ends, for an environment far away to run ahead with."""

    def receive(self) -> Moment:
        """The moment that was asked for.

        Raises:
            WorkerDied: the environment's process has ended.
        """

    def restart(self) -> None:
        """A new environment in the place of one that died. Where there is no room for it now, it
        is not `ready` until there is."""

    def close(self) -> None:
        """Let go of the environment."""


class Stage:
    """An environment and its camera: one call, one moment."""

    def __init__(self, make: Callable[[], Env]):
        self.env = make()
        self._film = False

    def start(self, seed: int, film: bool) -> Moment:
        self._film = film
        start = time.perf_counter()
        observation, _ = self.env.reset(seed=seed)
        return self._moment(start, observation, 0.0, False, False)

    def step(self, action: np.ndarray) -> Moment:
        start = time.perf_counter()
        observation, reward, terminated, truncated, info = self.env.step(action)
        success, over = bool(info["is_success"]), bool(terminated or truncated)
        return self._moment(start, observation, float(reward), success, over)

    def _moment(
        self, start: float, observation: Observation, reward: float, success: bool, over: bool
    ) -> Moment:
        simulated = time.perf_counter()
        frame = np.asarray(self.env.render()) if self._film else None
        rendered = simulated if frame is None else time.perf_counter()
        return Moment(
            observation, reward, success, over, frame, simulated - start, rendered - simulated
        )


class LocalSlot:
    """An environment in this process; the moment is made when it is received."""

    def __init__(self, make: Callable[[], Env]):
        self._stage = Stage(make)
        self._asked: Callable[[], Moment] | None = None

    def ready(self) -> bool:
        return True

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
    """An environment in a process of its own, a vector environment of gymnasium's with one row:
    one that dies can be replaced without the others.

    Args:
        make: makes the environment; a function that can be pickled and needs no torch. Called in
            the worker at the first `start`, so that many workers load their simulators at once.
    """

    def __init__(self, make: Callable[[], Env]):
        self._make = make
        self._open()

    def _open(self) -> None:
        self._asked = self._lost = False
        try:
            with _interrupts_wait():
                self._vector = AsyncVectorEnv(
                    [_Host(self._make)],
                    shared_memory=False,
                    copy=False,
                    context="spawn",  # torch's threads and fork do not mix
                )
        except (EOFError, OSError) as error:
            raise AsdPolicyError(
                "an environment's process ended while it started, and has said why above; a "
                "program that evaluates in several environments must be importable, its own work "
                "under `if __name__ == '__main__':`"
            ) from error

    def ready(self) -> bool:
        return True

    def start(self, seed: int, film: bool) -> None:
        self._ask(
            lambda: self._vector.reset_async(seed=[seed], options={"film": film}),
            lambda: self._vector.reset_wait()[0],
        )

    def send(self, action: np.ndarray, coming: Sequence[np.ndarray] = ()) -> None:
        self._ask(lambda: self._vector.step_async((action,)), lambda: self._vector.step_wait()[0])

    def _ask(self, question: Callable[[], None], answer: Callable[[], Any]) -> None:
        assert not self._asked, "the last moment was not received"
        self._asked, self._answer = True, answer
        try:
            question()
        except OSError:  # the pipe has no other end: `receive` will say so
            self._lost = True

    def receive(self) -> Moment:
        assert self._asked, "nothing was asked for"
        self._asked = False
        process = self._vector.processes[0]
        try:
            if self._lost:
                raise EOFError
            (told,) = self._answer()
        except (EOFError, OSError) as error:
            self._lost = True
            process.join()
            raise WorkerDied(
                f"an environment's process ended by itself (exit code {process.exitcode})"
            ) from error
        if isinstance(told, Failure):
            told.throw()
        return told

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        # A simulator has nothing to save. Asking it to end would wait for what it is doing now.
        for process in self._vector.processes:
            process.kill()
            process.join()
        for pipe in self._vector.parent_pipes:
            pipe.close()
        self._vector.closed = True


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


OpenSlots = Callable[[Callable[[], Env], int], Sequence[Slot]]


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


class _Anything(gym.Space[Any]):
    """A space that holds every object: gymnasium hands those through as they are, and the parent
    need not make an environment to know its spaces."""

    def contains(self, x: Any) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Anything)

    __hash__ = None  # type: ignore[assignment]


class _Host(gym.Env[Any, Any]):
    """What gymnasium's worker runs: a `Stage`, made in the worker, that tells moments and failures
    alike as observations. (Gymnasium itself passes an exception on without its traceback.)

    Called, as the function that makes an environment, it gives itself: the parent's copy makes
    nothing and closes nothing.
    """

    observation_space = action_space = _Anything()

    def __init__(self, make: Callable[[], Env]):
        self._make, self._parent = make, os.getpid()
        self._stage: Stage | None = None

    def __call__(self) -> _Host:
        if os.getpid() != self._parent:
            follow_parent()
        return self

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        assert seed is not None
        assert options is not None
        return self._tell(lambda stage: stage.start(seed, options["film"])), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._tell(lambda stage: stage.step(action)), 0.0, False, False, {}

    def _tell(self, ask: Callable[[Stage], Moment]) -> Moment | Failure:
        try:
            if self._stage is None:
                self._stage = Stage(self._make)
            return ask(self._stage)
        except Exception as error:
            return Failure.of(error)


class _InWorker(Exception):
    """The traceback of a worker, as text, in the place of a cause."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """An exception on its way from a worker."""

    pickled: bytes
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        if isinstance(error, ModuleNotFoundError):  # while its traceback is here
            message = missing_extra(error, "the simulator")
            error = error if message is None else MissingExtraError(message)
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
        except Exception:  # one that holds what cannot be pickled
            pickled = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
        return cls(pickled, trace)

    def throw(self, place: str = "an environment failed in its process") -> NoReturn:
        """Raise it: the package's own and gymnasium's as they are, which say what is wrong, and
        others as a fault."""
        error, cause = pickle.loads(self.pickled), _InWorker(f"in the worker:\n{self.trace}")
        if isinstance(error, (AsdPolicyError, gym.error.Error)):
            raise error from cause
        raise RuntimeError(f"{place}: {error!r}") from cause


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts, which inherits that: it is the parent's to answer,
    and a half-started worker would answer with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its own start would let signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
