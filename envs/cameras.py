"""Pictures among an environment's observations, as policies that were trained on them expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

# isort: off
import asd_policy.envs.load_order  # noqa: F401 - before MuJoCo
import mujoco

# isort: on
import numpy as np

from asd_policy.envs.rendering import OffscreenCamera, choose_backend
from asd_policy.errors import InputError

SUFFIX = "_image"  # robosuite's name of a picture: <camera>_image


class CameraObservations(gym.ObservationWrapper[dict[str, np.ndarray], Any, Any]):
    """Adds `<camera>_image`, (height, width, 3) uint8, first row at the top.

    Args:
        env: a `RobosuiteEnv`, or a wrapper of one.
        sizes: key → (height, width).

    Raises:
        ValueError: a key of no camera that the scene has.
        gymnasium.error.DependencyNotInstalled: there is no working OpenGL.
    """

    def __init__(self, env: gym.Env[Any, Any], sizes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(env)
        cameras = self._cameras()
        unknown = [key for key in sizes if key.removesuffix(SUFFIX) not in cameras]
        if unknown or not all(key.endswith(SUFFIX) for key in sizes):
            raise InputError(
                f"expected pictures named {', '.join(name + SUFFIX for name in cameras)}; got "
                f"{', '.join(sizes)}"
            )
        choose_backend()
        self._sizes = dict(sizes)
        self._drawers: dict[tuple[int, int], OffscreenCamera] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without OpenGL contexts: a copy opens its own, at its first picture."""
        return vars(self) | {"_drawers": {}}

    def _cameras(self) -> list[str]:
        model = self._simulation.model._model
        kind = mujoco.mjtObj.mjOBJ_CAMERA
        return [mujoco.mj_id2name(model, kind, i) for i in range(model.ncam)]

    @property
    def _simulation(self) -> Any:
        return self.env.unwrapped.simulation.sim  # type: ignore[attr-defined]

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sim, made = self._simulation, dict(observation)
        for key, size in self._sizes.items():
            if size not in self._drawers:
                self._drawers[size] = OffscreenCamera(*size)
            drawer = self._drawers[size]
            made[key] = drawer.render(sim.model._model, sim.data._data, key.removesuffix(SUFFIX))
        return made

    def close(self) -> None:
        """Give the OpenGL contexts back, and close the environment."""
        for drawer in self._drawers.values():
            drawer.close()
        self._drawers.clear()
        super().close()
