"""Which OpenGL works here, tried in a process of its own, and what must happen before it is loaded.
Imports nothing of the simulator."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import subprocess
import sys

from asd_policy.errors import EnvironmentVariableError

BACKENDS = ("egl", "osmesa", "glfw", "cgl")
_PREFERRED = {"Linux": ("egl", "osmesa"), "Darwin": ("cgl",), "Windows": ("glfw",)}

# A context may be created and still draw nothing, and a driver may take the process down with
# it: so each backend is tried once, to the last pixel, in a process of its own.
_TRIAL = """
import importlib, sys, mujoco, numpy
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(8, 8)
context.make_current()
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><geom size='.5'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
scene = mujoco.MjvScene(model, 10)
mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, mujoco.MjvCamera(), 7, scene)
draw = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, draw)
box, pixels = mujoco.MjrRect(0, 0, 8, 8), numpy.zeros((8, 8, 3), numpy.uint8)
mujoco.mjr_render(box, scene, draw)
mujoco.mjr_readPixels(pixels, None, box, draw)
for name in sys.argv[2:]:
    importlib.import_module(name)
import os; os._exit(0 if pixels.max() > 0 else 3)
"""


def load_triton_first() -> None:
    """Import Triton, where it is installed, before OpenGL is loaded.

    Software OpenGL (Mesa) and Triton each bring an LLVM. Loading Triton's second takes the process
    down, and PyTorch loads it on its own as soon as an optimizer is made or a network compiled.
    """
    if importlib.util.find_spec("triton") is not None:
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")


def before_mujoco() -> None:
    """With MUJOCO_GL set, importing MuJoCo loads OpenGL at once.

    Raises:
        EnvironmentVariableError: MuJoCo cannot be imported with what MUJOCO_GL says.
    """
    asked = os.environ.get("MUJOCO_GL")
    if not asked:
        return
    load_triton_first()
    try:
        importlib.import_module("mujoco")
    except ModuleNotFoundError:  # MuJoCo itself, which its importers say better
        return
    except Exception as error:  # whatever a missing or broken OpenGL makes of it
        raise EnvironmentVariableError(
            f"MUJOCO_GL={asked} cannot be used here ({error}); expected one of "
            f"{', '.join(BACKENDS)} that works, or unset it: only pictures and videos need OpenGL"
        ) from error


def preferred_backends() -> tuple[str, ...]:
    """Those to try on this system, in order."""
    return _PREFERRED.get(platform.system(), ("glfw",))


def works(backend: str, *then_import: str) -> bool:
    """Whether the backend draws, and modules can be loaded after it."""
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL, backend, *then_import],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:  # a driver that waits for a display that is not there
        return False
    return trial.returncode == 0
