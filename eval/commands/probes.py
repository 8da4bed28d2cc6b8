"""What is installed here and whether it works, for `asd-policy doctor`.

Anything that may be missing, broken, or take its process down is tried in a process of its own.
Needs nothing but Python.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asd_policy
from asd_policy.envs.opengl import BACKENDS, preferred_backends, works
from asd_policy.envs.requirements import installed_version
from asd_policy.eval.runs.machine import git_commit

Facts = dict[str, Any]
# Distribution → module. Triton comes before what may load OpenGL, see `envs.opengl`.
CORE = {"torch": "torch", "numpy": "numpy", "safetensors": "safetensors"}
OPTIONAL = {
    "triton": "triton",
    "openvino": "openvino",
    "robomimic": "robomimic",
    "egl_probe": "egl_probe",
}
SERVE = {"msgpack": "msgpack", "websockets": "websockets"}
SIM = {
    "annotated-types": "annotated_types",
    "gymnasium": "gymnasium",
    "h5py": "h5py",
    "imageio": "imageio",
    "imageio-ffmpeg": "imageio_ffmpeg",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "mujoco": "mujoco",
    "pillow": "PIL",
    "pydantic": "pydantic",
    "rich": "rich",
    "robosuite": "robosuite",
    "scipy": "scipy",
    "tyro": "tyro",
    "zarr": "zarr",
}
NATIVE = "asd_policy.engine._native"
UNKNOWN = "version unknown"
_ABOUT_S = 300.0

# Says of each module, on a line of its own as soon as it is known, what came of importing it.
_IMPORTS = """
import importlib, json, sys
sys.modules["openvino_telemetry"] = None  # OpenVINO would tell its makers that it was imported
def about(name, module):
    if name == "torch":
        gpus = [module.cuda.get_device_name(i) for i in range(module.cuda.device_count())]
        return {"cuda": module.version.cuda, "gpus": gpus}
    if name == "imageio_ffmpeg":
        return {"program": module.get_ffmpeg_exe()}
for name in sys.argv[1:]:
    error = known = None
    print("@begin " + name, flush=True)
    try:
        known = about(name, importlib.import_module(name))
    except BaseException as e:
        error = (type(e).__name__ + ": " + str(e)).strip().splitlines()[0][:300]
    print("@end " + json.dumps([name, error, known]), flush=True)
"""


def gather() -> Facts:
    """All facts. A probe that fails is a fact as well: it is under "failed"."""
    failed: dict[str, str] = {}

    def attempt(name: str, probe: Any, *arguments: Any) -> Any:
        try:
            return probe(*arguments)
        except Exception as error:  # whatever is broken here must not keep the rest from view
            failed[name] = f"{type(error).__name__}: {error}"
            return None

    names = {**CORE, **OPTIONAL, **SERVE, **SIM}
    versions = {name: attempt(name, version_of, name, module) for name, module in names.items()}
    versions["asd-policy"] = attempt("asd-policy", installed_version, "asd-policy")
    there = [module for name, module in names.items() if versions[name] is not None]
    built = attempt("native", native_is_built)
    tried = attempt("imports", try_imports, there + [NATIVE] * bool(built))
    imports, known = tried if tried is not None else (dict[str, Any](), dict[str, Any]())
    mujoco = versions["mujoco"] is not None and imports.get("mujoco") is None
    drawing = (attempt("backends", try_backends) or {}) if mujoco else {}
    software = drawing.get("osmesa") and imports.get("triton", "missing") is None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "mink": attempt("mink", installed_version, "mink"),
        "git_commit": attempt("git", git_commit, Path(asd_policy.__file__).parent),
        "imports": imports,
        "known": known,
        "native_built": built,
        "nvidia": attempt("nvidia", nvidia_gpus),
        "mujoco_gl": os.environ.get("MUJOCO_GL"),
        "backends": drawing,
        "triton_after_opengl": attempt("opengl", works, "osmesa", "triton") if software else None,
        "cmake": attempt("cmake", cmake_version),
        "failed": failed,
    }


def version_of(name: str, module: str) -> str | None:
    """Of what is installed; `UNKNOWN` of a module that can be found without saying its version."""
    found = importlib.util.find_spec(module) is not None
    return installed_version(name) or (UNKNOWN if found else None)


def native_is_built() -> bool:
    """Whether the compiled kernels' file is there."""
    folder = Path(asd_policy.__file__).parent / "engine"
    return any(path.suffix in (".so", ".pyd") for path in folder.glob("_native.*"))


def try_imports(modules: Sequence[str]) -> tuple[dict[str, str | None], Facts]:
    """Module → None, or why it cannot be imported; and what the modules say of themselves.

    All in one process. Where a module takes it down, the next one goes on with the rest.
    """
    errors: dict[str, str | None] = {}
    known: Facts = {}
    left = list(modules)
    while left:
        output, end = _import_in_child(left)
        for line in output.splitlines():
            if line.startswith("@end "):
                name, error, about = json.loads(line.removeprefix("@end "))
                errors[name] = error
                known |= {name: about} if about else {}
        rest = [name for name in left if name not in errors]
        if len(rest) == len(left) or end:  # the first of the rest ended the process
            errors |= dict.fromkeys(rest[:1], end or "Python could not be started")
        left = [name for name in left if name not in errors]
    return errors, known


def _import_in_child(modules: Sequence[str]) -> tuple[str, str | None]:
    """Output, and how the process ended if not by itself."""
    # What MUJOCO_GL says is judged apart: here it would be blamed on MuJoCo.
    env = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    words = [sys.executable, "-c", _IMPORTS, *modules]
    try:
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, errors="replace", timeout=_ABOUT_S
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return text, f"importing it does not end within {_ABOUT_S:.0f} s"
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return done.stdout, f"importing it ends the process ({how})" if done.returncode else None


def try_backends() -> dict[str, bool]:
    """Rendering back end → whether it draws, each in a process of its own."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    names = dict.fromkeys((*preferred_backends(), *([asked] if asked in BACKENDS else [])))
    return {name: works(name) for name in names}


def nvidia_gpus() -> list[str]:
    """The GPUs that NVIDIA's driver knows of; none without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    lines = [] if done.returncode else done.stdout.splitlines()
    return [line.strip() for line in lines if line.strip()]


def cmake_version() -> str | None:
    """Of the CMake that a build would find; None without one."""
    if shutil.which("cmake") is None:
        return None
    done = subprocess.run(["cmake", "--version"], capture_output=True, text=True, timeout=60)
    found = re.search(r"version (\d[\w.]*)", done.stdout)
    return found.group(1) if found else None
