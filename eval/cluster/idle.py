"""An environment and a policy that only take their time: what is left is what the cluster costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from asd_policy.envs.tasks import CONTROL_FREQUENCY_HZ, get_task
from asd_policy.eval.evaluator import Setup
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.slots import OpenSlots
from asd_policy.policy import Chunks, ChunkSource, RecedingHorizon
from asd_policy.samplers.result import PHASES, sequential_stats

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


class IdleSource(ChunkSource):
    """Chunks of zeros, a batch of which takes `chunk_s` seconds of sleep."""

    horizons = 1, ACTIONS, ACTIONS

    def __init__(self, action_dim: int, chunk_s: float):
        self._action_dim, self._chunk_s = action_dim, chunk_s

    def frames(self, observations: Mapping[str, Any], batch: int) -> Sequence[Sequence[None]]:
        return [[None]] * batch

    def draw(
        self, histories: Sequence[Sequence[None]], streams: Sequence[torch.Generator]
    ) -> Chunks:
        time.sleep(self._chunk_s)
        stats = sequential_stats("ddpm", len(streams), 0, dict.fromkeys(PHASES, 0.0))
        return Chunks(np.zeros((len(streams), ACTIONS, self._action_dim), np.float32), stats)


class IdlePolicy(RecedingHorizon):
    """The loop of a policy, over chunks that only take their time."""

    def __init__(self, task: str, chunk_s: float):
        self.observation_keys = dict(get_task(task).observation_keys)
        super().__init__(IdleSource(get_task(task).action_dim, chunk_s))


def prepare_idle(
    options: EvalOptions, *, step_s: float, chunk_s: float, open_slots: OpenSlots
) -> Setup:
    """As `asd_policy.eval.setup.prepare`, of these."""
    task = str(options.task)
    make = functools.partial(IdleEnv, task, options.horizon or ACTIONS, step_s)
    return Setup(
        policies={name: IdlePolicy(task, chunk_s) for name in options.samplers},
        slots=open_slots(make, options.num_envs),
        render_fps=CONTROL_FREQUENCY_HZ,
        checkpoint_sha256="",
        resolved={"device": "cpu", "gpu": None, "threads": 1},
    )
