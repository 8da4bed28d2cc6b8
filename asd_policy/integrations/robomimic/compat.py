"""Differences between library versions, one function for each; nothing is done where not needed.

Applied by importing ``asd_policy.integrations.robomimic``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from asd_policy.errors import IntegrationError

KNOWN_VERSIONS = ("0.3", "0.4", "0.5")


def robomimic_version() -> tuple[int, int]:
    """(major, minor) of the installed robomimic.

    Raises:
        IntegrationError: it is not installed, or of a release that is not known here.
    """
    known = ", ".join(f"{version}.x" for version in KNOWN_VERSIONS)
    try:
        text = importlib.metadata.version("robomimic")
    except importlib.metadata.PackageNotFoundError as error:
        raise IntegrationError(
            f"robomimic is not installed (known releases: {known}): "
            "pip install 'asd-policy[sim,robomimic]'"
        ) from error
    if ".".join(text.split(".")[:2]) not in KNOWN_VERSIONS:
        raise IntegrationError(f"expected robomimic {known}, got {text}")
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def stub_mujoco_py() -> None:
    """robomimic 0.3 imports ``mujoco_py`` for the name of one exception.

    That package was given up in 2022 and does not build on present Pythons; robosuite 1.4 and
    later use ``mujoco``. Where it is installed, it is left alone.
    """
    if "mujoco_py" in sys.modules or importlib.util.find_spec("mujoco_py"):
        return
    stub, builder = types.ModuleType("mujoco_py"), types.ModuleType("mujoco_py.builder")
    builder.MujocoException = type("MujocoException", (Exception,), {})  # type: ignore[attr-defined]
    stub.builder = builder  # type: ignore[attr-defined]
    sys.modules.update({"mujoco_py": stub, "mujoco_py.builder": builder})


def broadcast_normalization(obs_utils: Any) -> None:
    """robomimic 0.3's ``normalize_obs`` refuses stacked frames, and keys without statistics.

    A diffusion policy is given To frames, and an environment returns more than a policy needs
    (joint positions, time steps). robomimic 0.4 has another function, and needs nothing.
    """
    if not hasattr(obs_utils, "normalize_obs"):
        return

    def normalize_obs(obs_dict: dict[str, Any], obs_normalization_stats: Any) -> dict[str, Any]:
        for key in [k for k in obs_dict if k in obs_normalization_stats]:
            mean, std = (obs_normalization_stats[key][name] for name in ("mean", "std"))
            value = obs_dict[key]
            if not isinstance(value, np.ndarray):
                mean, std = (value.new_tensor(np.asarray(part)) for part in (mean, std))
            obs_dict[key] = (value - mean[0]) / std[0]
        return obs_dict

    obs_utils.normalize_obs = normalize_obs


def replace(module: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Put ``wrapper(function)`` in a function's place, once."""
    function = getattr(module, name)
    if not hasattr(function, "_asd_policy"):
        wrapped = wrapper(function)
        wrapped._asd_policy = True
        setattr(module, name, wrapped)


def apply(version: tuple[int, int]) -> None:
    """All fixes that this release of robomimic needs; a second call changes nothing."""
    if version < (0, 4):
        stub_mujoco_py()
        import robomimic.utils.obs_utils as obs_utils

        broadcast_normalization(obs_utils)
