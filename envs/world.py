"""robosuite tasks as gymnasium environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from asd_policy.envs.simulator import (
    compose_observation,
    diverged,
    load_model,
    load_physics,
    make_simulation,
    read_observables,
    reset_simulation,
    save_model,
    save_physics,
)
from asd_policy.envs.stages import STAGES
from asd_policy.envs.tasks import CONTROL_FREQUENCY_HZ, Task, get_task
from asd_policy.errors import InputError, NonFiniteError, check_kind
from asd_policy.interrupts import unwrapped

if TYPE_CHECKING:
    from asd_policy.envs.rendering import OffscreenCamera

Observation = dict[str, np.ndarray]


@dataclass(frozen=True)
class WorldState:
    """A moment of an episode, for `RobosuiteEnv.set_state`.

    Attributes:
        episode_seed: which episode; objects may differ in size between episodes.
        steps: taken so far.
        physics: MuJoCo's integration state.
        gripper_commands: of each gripper.
    """

    episode_seed: int
    steps: int
    physics: np.ndarray
    gripper_commands: tuple[np.ndarray, ...]


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

    A copy (`copy.deepcopy`, `pickle`) has a simulation of its own, which takes a second to make, in
    the same moment of the same episode, and a stream that goes on as this one's. To look ahead
    often, make one and use `get_state` and `set_state`, which take a millisecond.

    Args:
        task: name in `asd_policy.envs.tasks.TASKS`.
        horizon: control steps before truncation; the task's own when None.
        render_mode: None or "rgb_array".
        render_size: height and width of the pictures, in pixels.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - declared so by gymnasium
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_FREQUENCY_HZ,
    }

    def __init__(
        self,
        task: str = "lift",
        horizon: int | None = None,
        render_mode: str | None = None,
        render_size: tuple[int, int] = (480, 480),
    ) -> None:
        self.task: Task = get_task(task)
        self.horizon = self.task.horizon if horizon is None else horizon
        if self.horizon < 1:
            raise InputError(f"expected a horizon of at least 1 step, got {horizon}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InputError(f"expected render_mode None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {
                key: spaces.Box(-np.inf, np.inf, (dim,), np.float32)
                for key, dim in self.task.observation_keys.items()
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (self.task.action_dim,), np.float32)
        self.simulation = make_simulation(self.task)
        self._render_size = render_size
        self._camera: OffscreenCamera | None = None
        self._episode_seed: int | None = None
        self._steps = 0

    def __getstate__(self) -> dict[str, Any]:
        """All but robosuite and OpenGL, which a copy makes anew, and what brings it to here."""
        state = {k: v for k, v in vars(self).items() if k not in ("simulation", "_camera")}
        if self._episode_seed is not None:
            state["moment"] = self.get_state(), save_model(self.simulation)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        moment = state.pop("moment", None)
        vars(self).update(state, simulation=make_simulation(state["task"]), _camera=None)
        if moment is not None:
            world, model = moment
            self._begin(world.episode_seed)
            load_model(self.simulation, model)
            self.set_state(world)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: that of `seed`, or the stream's next."""
        super().reset(seed=seed)
        return self._observe(self._begin(int(self.np_random.integers(2**63)))), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance 1/20 s. Components outside [-1, 1] count as the bound.

        Raises:
            gymnasium.error.ResetNeeded: there has been no reset yet.
            ValueError: an action of the wrong shape.
            NonFiniteError: a NaN or infinity in the action, or in what the simulation returned.
        """
        self._need_reset()
        action = self._checked(action)
        with unwrapped():
            self.simulation.step(action)
        self._steps += 1
        self._need_finite()
        # Observation, reward and success of one and the same state: robosuite's own reward is of
        # poses that are one integration step old, see read_observables.
        observation = self._observe(read_observables(self.simulation))
        reward, info = float(self.simulation.reward(action)), self._info()
        terminated = info["is_success"]
        truncated = self._steps >= self.horizon and not terminated
        return observation, reward, terminated, truncated, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The picture of the task's camera, (height, width, 3) uint8; None without a mode.

        Raises:
            gymnasium.error.DependencyNotInstalled: there is no working OpenGL.
        """
        if self.render_mode is None:
            return None
        self._need_reset()
        if self._camera is None:
            from asd_policy.envs.rendering import OffscreenCamera

            self._camera = OffscreenCamera(*self._render_size)
        sim = self.simulation.sim
        return self._camera.render(sim.model._model, sim.data._data, self.task.camera)

    def get_state(self) -> WorldState:
        """This moment, to return to with `set_state`, here or in another environment.

        Raises:
            gymnasium.error.ResetNeeded: there has been no reset yet.
            NonFiniteError: the simulation has diverged.
        """
        self._need_reset()
        self._need_finite()
        assert self._episode_seed is not None
        return WorldState(self._episode_seed, self._steps, *save_physics(self.simulation))

    def flat_state(self) -> np.ndarray:
        """MuJoCo's time, qpos and qvel, (n,) float64: the `states` of robomimic's datasets.

        Raises:
            gymnasium.error.ResetNeeded: there has been no reset yet.
        """
        self._need_reset()
        return np.asarray(self.simulation.sim.get_state().flatten())

    def set_state(self, state: WorldState) -> tuple[Observation, dict[str, Any]]:
        """Return to a moment; what follows is what followed then, bitwise.

        Raises:
            ValueError: what is no moment of this task's; nothing has changed then.
        """
        check_kind("state", state, WorldState, "a WorldState, of get_state()")
        if self._episode_seed is not None:  # there is an episode to be lost
            here = save_physics(self.simulation)[0].shape
            if (got := np.shape(state.physics)) != here:
                raise InputError(f"a moment of {self.task.name} has physics {here}; got {got}")
        first = state.steps == 0
        if state.episode_seed != self._episode_seed:
            self._begin(state.episode_seed)
        elif first and self._steps:
            model = save_model(self.simulation)
            self._begin(state.episode_seed)
            load_model(self.simulation, model)
        load_physics(self.simulation, state.physics, state.gripper_commands, first)
        self._steps = state.steps
        return self._observe(read_observables(self.simulation)), self._info()

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the task's stages, in order (`asd_policy.envs.stages`)."""
        return tuple(STAGES[self.task.name])

    def has_reached(self, stage: str) -> bool:
        """Whether a stage holds at this moment.

        Raises:
            gymnasium.error.ResetNeeded: there has been no reset yet.
        """
        self._need_reset()
        return bool(STAGES[self.task.name][stage](self.simulation))

    def close(self) -> None:
        """Release the simulation, and the OpenGL context if there is one. A reset makes another."""
        self._episode_seed = None
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        self.simulation.close()

    def _begin(self, episode_seed: int) -> dict[str, np.ndarray]:
        self._episode_seed, self._steps = episode_seed, 0
        with unwrapped():
            return reset_simulation(self.simulation, episode_seed)

    def _need_reset(self) -> None:
        if self._episode_seed is None:
            raise ResetNeeded("expected a reset() before this")

    def _need_finite(self) -> None:
        if (what := diverged(self.simulation)) is not None:
            raise NonFiniteError(f"expected finite {what} in the simulation, which diverged")

    def _checked(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action)
        if action.dtype.kind not in "biuf":
            raise InputError(f"expected an action of numbers, got {action.dtype}")
        action = action.astype(np.float64)
        if action.shape != self.action_space.shape:
            raise InputError(
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
