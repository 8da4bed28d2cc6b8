"""Off-screen pictures of a simulation. OpenGL is looked for when the first one is asked for."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

# isort: off
import asd_policy.envs.load_order  # noqa: F401 - before MuJoCo
import mujoco

# isort: on
import numpy as np
from gymnasium.error import DependencyNotInstalled

from asd_policy.envs.opengl import BACKENDS, load_triton_first, preferred_backends, works
from asd_policy.errors import EnvironmentVariableError


@functools.cache
def choose_backend() -> str:
    """The OpenGL backend to use: that of the variable MUJOCO_GL, or the first that works.

    Raises:
        EnvironmentVariableError: MUJOCO_GL names none of `BACKENDS`.
        gymnasium.error.DependencyNotInstalled: none works here.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked and asked not in BACKENDS:
        raise EnvironmentVariableError(
            f"MUJOCO_GL={asked!r}; expected one of: {', '.join(BACKENDS)}"
        )
    candidates = (asked,) if asked else preferred_backends()
    for backend in candidates:
        if works(backend):
            return backend
    raise DependencyNotInstalled(
        f"rendering needs OpenGL, and none works here (tried: {', '.join(candidates)}). "
        "On Debian or Ubuntu, either `apt-get install libosmesa6` (software rendering) or, "
        "with a GPU driver, `apt-get install libegl1`; MUJOCO_GL=osmesa or MUJOCO_GL=egl picks "
        "one. Nothing but pictures and videos needs it."
    )


class OffscreenCamera:
    """Renders (height, width, 3) uint8 pictures; holds an OpenGL context until closed.

    Raises:
        gymnasium.error.DependencyNotInstalled: there is no working OpenGL.
    """

    def __init__(self, height: int, width: int) -> None:
        backend = choose_backend()
        load_triton_first()
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # robosuite's collision shapes
        self._option.geomgroup[1] = 1  # robosuite's visible shapes
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._model: Any = None

    def render(self, model: Any, data: Any, camera: str) -> np.ndarray:
        """The picture that the named camera sees."""
        self._context.make_current()
        if model is not self._model:  # every episode has a model of its own
            self._prepare(model)
        self._camera.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        assert self._camera.fixedcamid >= 0, f"no camera called {camera}"
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        pixels = np.empty((self._rectangle.height, self._rectangle.width, 3), np.uint8)
        mujoco.mjr_render(self._rectangle, self._scene, self._draw)
        mujoco.mjr_readPixels(pixels, None, self._rectangle, self._draw)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the lowest

    def _prepare(self, model: Any) -> None:
        model.vis.global_.offheight = self._rectangle.height
        model.vis.global_.offwidth = self._rectangle.width
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._draw = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._draw)
        self._model = model

    def close(self) -> None:
        """Give the OpenGL context back."""
        if self._model is not None:
            self._context.make_current()
            self._draw.free()
            self._model = None
        self._context.free()
