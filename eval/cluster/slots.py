"""Environments as Ray actors, one CPU each, as the slots of a rollout.

A message carries a whole queue of actions, and its answer all their moments: one round trip for
each chunk, not for each step. The rollout takes the moments one by one, as from any other slot.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from asd_policy.errors import AsdPolicyError
from asd_policy.eval.slots import Env, Failure, Moment, Stage, WorkerDied


class EnvironmentHost:
    """The environment's side: what the actor runs. Failures are told like moments."""

    def __init__(self, make: Callable[[], Env], environ: Mapping[str, str]):
        for name, value in environ.items():
            os.environ.setdefault(name, value)
        self._make = make
        self._stage: Stage | None = None

    def up(self) -> None:
        """Answers when the actor has its place."""

    def start(self, seed: int, film: bool) -> list[Moment | Failure]:
        """The first moment of an episode."""
        try:
            if self._stage is None:
                self._stage = Stage(self._make)
            return [self._stage.start(seed, film)]
        except Exception as error:
            return [Failure.of(error)]

    def run(self, actions: np.ndarray) -> list[Moment | Failure]:
        """The moments after each of these actions (n, action_dim), to the episode's end at most."""
        assert self._stage is not None, "no episode was started"
        told: list[Moment | Failure] = []
        for action in np.array(actions):  # a copy: what Ray hands over is read-only
            try:
                moment = self._stage.step(action)
            except Exception as error:
                return [*told, Failure.of(error)]
            told.append(moment)
            if moment.over:
                break
        return told


class RaySlot:
    """A slot (`asd_policy.eval.slots.Slot`) whose environment is in a Ray actor, anywhere."""

    def __init__(self, make: Callable[[], Env], environ: Mapping[str, str]):
        self._make, self._environ = make, dict(environ)
        self._open()

    def _open(self) -> None:
        actor = ray.remote(EnvironmentHost).options(num_cpus=1, max_restarts=0)
        self._actor = actor.remote(self._make, self._environ)
        self.placed = self._actor.up.remote()
        self._asked = self.placed
        self._planned: deque[np.ndarray] = deque()  # sent, not yet asked for by the rollout
        self._told: deque[Moment | Failure] = deque()

    def ready(self) -> bool:
        return bool(self._told or ray.wait([self._asked], timeout=0)[0])

    def start(self, seed: int, film: bool) -> None:
        self._planned.clear()
        self._told.clear()
        self._asked = self._actor.start.remote(seed, film)

    def send(self, action: np.ndarray, coming: Sequence[np.ndarray] = ()) -> None:
        if self._planned:
            planned = self._planned.popleft()
            assert np.array_equal(action, planned), "the environment ran ahead with another action"
            return
        assert not self._told, "the last moment was not received"
        self._planned.extend(coming)
        self._asked = self._actor.run.remote(np.stack([action, *coming]))

    def receive(self) -> Moment:
        if not self._told:
            self._told.extend(self._answer())
        told = self._told.popleft()
        if isinstance(told, Failure):
            told.throw("an environment failed in its actor")
        return told

    def _answer(self) -> list[Moment | Failure]:
        try:
            return ray.get(self._asked)
        except RayTaskError:  # a fault of this module's: nothing has died
            raise
        except RayError as error:
            reason = str(error).partition("\n")[0]
            raise WorkerDied(f"an environment's actor was lost ({reason})") from error

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it, or the whole cluster, may be gone
            ray.kill(self._actor)


def open_ray_slots(
    make: Callable[[], Env], count: int, *, environ: Mapping[str, str], patience_s: float
) -> list[RaySlot]:
    """`count` environments on the cluster's CPUs. Returns when the first has its place; the others
    join the rollout when they have theirs.

    Raises:
        AsdPolicyError: none had its place in so many seconds.
    """
    slots = [RaySlot(make, environ) for _ in range(count)]
    if ray.wait([slot.placed for slot in slots], timeout=patience_s)[0]:
        return slots
    for slot in slots:
        slot.close()
    raise AsdPolicyError(
        f"the cluster placed no environment in {patience_s:g} seconds; each needs 1 CPU, and of "
        f"{_cpus(ray.cluster_resources())} CPUs {_cpus(ray.available_resources())} are free"
    )


def _cpus(resources: Mapping[str, Any]) -> str:
    return f"{resources.get('CPU', 0):g}"
