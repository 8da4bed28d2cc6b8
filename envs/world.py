"""robosuite tasks as gymnasium environments."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from asd_policy.envs.simulator import (
    CONTROL_FREQUENCY_HZ,
    compose_observation,
    make_simulation,
    read_observables,
    reset_simulation,
)
from asd_policy.envs.tasks import Task, get_task
from asd_policy.errors import NonFiniteError

Observation = dict[str, np.ndarray]


class RobosuiteEnv(gym.Env[Observation, np.ndarray]):
    """A robosuite task under the published robomimic observations and controller.

    Observations: float32, the task's `observation_keys` in order; positions in metres in the
    world frame, quaternions (x, y, z, w), finger joints in metres. Actions: (7,) per arm in
    [-1, 1]: position delta (1 is 5 cm), axis-angle delta in the world frame (1 is 0.5 rad),
    gripper (positive closes). One step is 1/20 s.

    `terminated` means success, `truncated` means the horizon was reached; an episode may be
    stepped on after success, as demonstrations are. Each reset draws one episode seed from the
    environment's own stream, so `reset(seed=s)` gives the same episode, bitwise, whatever came
    before it and in whatever process.

    Args:
        task: name in `asd_policy.envs.tasks.TASKS`.
        horizon: control steps before truncation; the task's own when None.
        render_mode: None or "rgb_array".
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_FREQUENCY_HZ,
    }

    def __init__(
        self, task: str = "lift", horizon: int | None = None, render_mode: str | None = None
    ) -> None:
        self.task: Task = get_task(task)
        self.horizon = self.task.horizon if horizon is None else horizon
        if self.horizon < 1:
            raise ValueError(f"expected a horizon of at least 1 step, got {horizon}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"expected render_mode None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {
                key: spaces.Box(-np.inf, np.inf, (dim,), np.float32)
                for key, dim in self.task.observation_keys.items()
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (self.task.action_dim,), np.float32)
        self.simulation = make_simulation(self.task)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: that of `seed`, or the stream's next."""
        super().reset(seed=seed)
        raw = reset_simulation(self.simulation, int(self.np_random.integers(2**63)))
        self._steps = 0
        return self._observe(raw), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance 1/20 s.

        Raises:
            ValueError: an action of the wrong shape.
            NonFiniteError: a NaN or infinity in the action, or in what the simulation returned.
        """
        _, reward, _, _ = self.simulation.step(self._checked(action))
        self._steps += 1
        info = self._info()
        terminated = info["is_success"]
        truncated = self._steps >= self.horizon and not terminated
        return (
            self._observe(read_observables(self.simulation)),
            float(reward),
            terminated,
            truncated,
            info,
        )

    def close(self) -> None:
        """Release the simulation."""
        self.simulation.close()

    def _checked(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"expected an action of shape {self.action_space.shape}, got {action.shape}"
            )
        if not np.isfinite(action).all():
            raise NonFiniteError(f"expected a finite action, got {action}")
        return np.clip(action, -1.0, 1.0)

    def _observe(self, raw: dict[str, np.ndarray]) -> Observation:
        observation = compose_observation(self.task, raw)
        for key, value in observation.items():
            if not np.isfinite(value).all():
                raise NonFiniteError(f"expected finite observations, got {key} = {value}")
        return observation

    def _info(self) -> dict[str, Any]:
        success = bool(self.simulation._check_success())
        return {"is_success": success, "success": success}
