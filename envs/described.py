"""What a robomimic file says of its environment, against the tasks here. Needs no robomimic, and no
simulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.envs.tasks import Task, environment_options
from asd_policy.errors import CheckpointError

ROBOSUITE = 1  # robomimic's number of the kind
_RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}


def migrated(env_meta: Mapping[str, Any]) -> dict[str, Any]:
    """``env_meta`` of a robosuite before 1.5, as 1.5 takes it; any other, as it is.

    From 1.5 on a controller belongs to a body part of a robot; its commands are in the frame of
    the robot's base unless said otherwise, where before they were in the world's (Transport's
    bases are turned by 90 degrees); two options have other names; ``lite_physics`` came, on; and
    "single-arm-opposed" is called "opposed".
    """
    made = {**env_meta, "env_kwargs": dict(env_meta["env_kwargs"])}
    kwargs = made["env_kwargs"]
    if env_meta.get("type") != ROBOSUITE or not _is_old(kwargs.get("controller_configs")):
        return made
    robots = kwargs.get("robots", ["Panda"])
    robots = [robots] if isinstance(robots, str) else list(robots)
    configs = kwargs["controller_configs"]
    configs = [configs] * len(robots) if isinstance(configs, Mapping) else list(configs)
    kwargs["controller_configs"] = [
        {"type": "BASIC", "body_parts": {"right": _arm_controller(config)}} for config in configs
    ]
    kwargs["robots"] = robots
    kwargs["lite_physics"] = False
    if kwargs.get("env_configuration") == "single-arm-opposed":
        kwargs["env_configuration"] = "opposed"
    return made


def _is_old(configs: Any) -> bool:
    first = configs[0] if isinstance(configs, list) and configs else configs
    return isinstance(first, Mapping) and "type" in first and "body_parts" not in first


def _arm_controller(config: Mapping[str, Any]) -> dict[str, Any]:
    made = {_RENAMED.get(name, name): value for name, value in config.items()}
    delta = made.pop("control_delta", True)
    return {
        **made,
        "input_type": "delta" if delta else "absolute",
        "input_ref_frame": "world",
        "gripper": {"type": "GRIP"},
    }


# ---- against a task -----------------------------------------------------------------------------

# What neither moves the robot nor is observed by a policy.
_IDLE = (
    "env_name", "has_renderer", "has_offscreen_renderer", "renderer", "renderer_config", "horizon",
    "reward_scale", "reward_shaping", "ignore_done", "lite_physics", "hard_reset", "seed",
    "use_object_obs", "use_camera_obs",
)  # fmt: skip
_IDLE_PREFIXES = ("camera_", "render_")
_DEFAULTS = (None, "default", ["default"], [None])
# Of a controller that does not interpolate and whose gains are fixed, as those here.
_IDLE_IN_CONTROLLER = ("gripper", "ramp_ratio", "kp_limits", "damping_ratio_limits")


def check_environment(env_meta: Any, task: Task, checkpoint: Path) -> None:
    """Raise a CheckpointError with one table unless a policy's environment is that of the task."""
    if table := differences(env_meta, task):
        raise CheckpointError(
            f"{checkpoint} was trained in another environment than that of the task "
            f"{task.name!r}:\n{table}\n"
            "robomimic's own run_trained_agent can roll it out: "
            "python -m asd_policy.integrations.robomimic run_trained_agent --agent FILE"
        )


def differences(env_meta: Any, task: Task) -> str:
    """A table of what differs from the task's environment; empty where nothing does.

    Only what ``env_kwargs`` says is compared; what it leaves out is robosuite's default, as here.
    """
    if not isinstance(env_meta, Mapping) or not isinstance(env_meta.get("env_kwargs"), Mapping):
        return ""
    theirs = dict(_settings(migrated(env_meta)["env_kwargs"], len(task.robots)))
    ours = dict(_settings(environment_options(task), len(task.robots)))
    rows = [
        (name, value, ours.get(name, "default"))
        for name, value in theirs.items()
        if not _alike(value, ours.get(name, "default"))
    ]
    if not rows:
        return ""
    wide = max(len(name) for name, *_ in rows)
    table = "\n".join(f"  {name:<{wide}}  {value!s:<24}  {here}" for name, value, here in rows)
    return f"  {'setting':<{wide}}  {'of the file':<24}  here\n{table}"


def _settings(kwargs: Mapping[str, Any], arms: int) -> Iterator[tuple[str, Any]]:
    """Name → value of what matters."""
    for name, value in kwargs.items():
        if name == "controller_configs":
            yield from _controllers(value, arms)
        elif name not in _IDLE and not name.startswith(_IDLE_PREFIXES):
            yield name, [value] if name == "robots" and isinstance(value, str) else value


def _controllers(configs: Any, arms: int) -> Iterator[tuple[str, Any]]:
    if configs is None:
        return
    configs = list(configs) if isinstance(configs, list | tuple) else [configs] * arms
    for i, config in enumerate(configs):
        if not isinstance(config, Mapping):
            yield f"controller {i}", config
            continue
        yield f"controller {i}: type", config.get("type")
        parts = config.get("body_parts", {})
        for name, value in parts.get("arms", parts).get("right", {}).items():
            frame = name == "input_ref_frame"
            if name in _IDLE_IN_CONTROLLER or (frame and arms == 1):
                continue  # one arm's base is not turned: the frames of base and world are parallel
            yield f"controller {i}: {'kind' if name == 'type' else name}", value


def _alike(one: Any, other: Any) -> bool:
    if one in _DEFAULTS and other in _DEFAULTS:
        return True
    try:
        a, b = np.broadcast_arrays(np.asarray(one, float), np.asarray(other, float))
        return bool(np.allclose(a, b))
    except (TypeError, ValueError):
        return bool(one == other)
