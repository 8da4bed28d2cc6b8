"""An environment and a policy that only take their time: what is left is what the cluster costs."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from asd_policy.envs.tasks import CONTROL_FREQUENCY_HZ, get_task
from asd_policy.eval.plan import Parts
from asd_policy.eval.rollout import Setup
from asd_policy.eval.slots import OpenSlots

ACTIONS = 8  # of a chunk that are executed (Ta of the shipped policies)


class IdleEnv:
    """Observations of the task's shapes; a step sleeps, and none succeeds."""

    def __init__(self, task: str, horizon: int, step_s: float):
        self._sizes = get_task(task).observation_keys
        self._horizon, self._step_s = horizon, step_s

    def reset(self, *, seed: int) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
        self._steps = 0
        return self._observation(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[Mapping[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        if self._step_s:
            time.sleep(self._step_s)
        self._steps += 1
        over = self._steps >= self._horizon
        return self._observation(), 0.0, False, over, {"is_success": False}

    def _observation(self) -> dict[str, np.ndarray]:
        return {key: np.zeros(size, np.float32) for key, size in self._sizes.items()}

    def render(self) -> Any:
        """A black frame: there is nothing to see."""
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None:
        """Nothing to let go of."""


class IdlePolicy:
    """Chunks of zeros, a batch of which takes `chunk_s` seconds of sleep."""

    def __init__(self, task: str, chunk_s: float):
        self._task, self._chunk_s = get_task(task), chunk_s
        self.last_chunks: list[Any] = []

    @property
    def observation_keys(self) -> dict[str, int]:
        return dict(self._task.observation_keys)

    def reset(self, seeds: Sequence[int]) -> None:
        self._queues: list[deque[np.ndarray]] = [deque() for _ in seeds]

    def reset_env(self, index: int, seed: int) -> None:
        self._queues[index].clear()

    def queued(self, index: int) -> int:
        return len(self._queues[index])

    def coming(self, index: int) -> list[np.ndarray]:
        return list(self._queues[index])

    def act_batch(
        self, observations: Mapping[str, np.ndarray], indices: Sequence[int]
    ) -> np.ndarray:
        empty = [index for index in indices if not self._queues[index]]
        if empty:
            time.sleep(self._chunk_s)
        for index in empty:
            self._queues[index].extend(np.zeros((ACTIONS, self._task.action_dim), np.float32))
        cost = _chunk(len(empty), self._chunk_s)
        self.last_chunks = [cost if index in empty else None for index in indices]
        return np.stack([self._queues[index].popleft() for index in indices])


def _chunk(batch: int, chunk_s: float) -> SimpleNamespace:
    none = np.zeros(0, int)
    return SimpleNamespace(
        latency_s=chunk_s, batch=batch, sampler="ddpm", window=1, calls=0, evaluations=0,
        rejections=0, accepted=none, decided=none, draft_s=0.0, network_s=0.0, verify_s=0.0,
        other_s=chunk_s,
    )  # fmt: skip


def prepare_idle(parts: Parts, *, step_s: float, chunk_s: float, open_slots: OpenSlots) -> Setup:
    """As `asd_policy.eval.setup.prepare`, of these."""
    task = str(parts.task)
    make = functools.partial(IdleEnv, task, parts.horizon or ACTIONS, step_s)
    return Setup(
        policies={name: IdlePolicy(task, chunk_s) for name in parts.samplers},
        slots=open_slots(make, parts.num_envs),
        render_fps=CONTROL_FREQUENCY_HZ,
        checkpoint_sha256="",
        resolved={"device": "cpu", "gpu": None, "threads": 1},
    )
