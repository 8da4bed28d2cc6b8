"""The real policies and environments of an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asd_policy.device import resolve_device
from asd_policy.envs.described import check_environment
from asd_policy.envs.opengl import before_mujoco
from asd_policy.envs.tasks import CONTROL_FREQUENCY_HZ, get_task
from asd_policy.errors import CheckpointError, counted
from asd_policy.eval.plan import Parts
from asd_policy.eval.rollout.loop import Setup
from asd_policy.eval.rollout.remote import remote_policies
from asd_policy.eval.slots import make_env, open_slots
from asd_policy.eval.subject import checkpoint_of
from asd_policy.integrations.loaders import open_policies
from asd_policy.progress import Stage


def prepare(parts: Parts) -> Setup:
    """Load one policy for each sampler and make the environments they share.

    Raises:
        ValueError: an unknown task or device, or a setting that the sampler refuses.
        CheckpointError: a checkpoint that is missing, damaged, or not for this task.
    """
    before_mujoco()  # environments in processes of their own would say it later
    task = get_task(parts.task)
    policies, where = remote_policies(parts) if parts.remote else _policies_here(parts)
    policy, checkpoint = next(iter(policies.values())), where["checkpoint"]
    policy.check_observation_space(task.observation_keys)
    task.check_action_dim(policy.action_dim, checkpoint)
    check_environment(policy.card.get("env_metadata"), task, Path(checkpoint))
    cameras = _cameras(policy, checkpoint)
    robots = parts.robots
    for each in policies.values():
        each.reset([0] * robots)  # "auto" chooses the window for so many
    if not parts.remote:
        torch.set_num_threads(policy.threads)
    made = functools.partial(make_env, task.env_id, parts.horizon, bool(parts.video), cameras)
    with Stage(f"building {counted(robots, 'simulated robot')}"):
        slots = open_slots(made, robots)
    return Setup(
        policies=policies,
        slots=slots,
        render_fps=CONTROL_FREQUENCY_HZ,
        checkpoint_sha256=policy.card["sha256"],
        resolved=where
        | {
            "threads": policy.threads,
            "engine": policy.engine.name,
            "kernels": policy.engine.kernels,
            "layers": getattr(getattr(policy.engine, "source", None), "layers", None),
            "parameters": policy.parameters,
            "horizons": list(policy.horizons),
            "control_hz": CONTROL_FREQUENCY_HZ,
            "steps": {name: p.schedule.num_steps for name, p in policies.items()},
            "windows": {name: p.window for name, p in policies.items() if p.window is not None},
            "etas": {name: s["eta"] for name, s in parts.samplers.items() if s.get("eta")},
        },
        held_components=task.gripper_components,
    )


def _policies_here(parts: Parts) -> tuple[dict[str, Any], dict[str, Any]]:
    """One for each sampler, and where they are."""
    device, checkpoint = resolve_device(parts.device), checkpoint_of(parts)
    policies = _load_policies(checkpoint, parts.place | {"device": device}, parts)
    return policies, {
        "checkpoint": str(checkpoint),
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
        "precision": parts.precision,
        "compile": parts.compile,
    }


def _load_policies(checkpoint: Path, place: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """One for each sampler."""
    policies: dict[str, Any] = {}
    make: Callable[[dict[str, Any]], Any] | None = None
    for name, settings in parts.samplers.items():
        with Stage(f"loading the policy, {name} (a network that is new here is timed)"):
            make = make or open_policies(checkpoint, place)
            policies[name] = make(settings)
            if parts.measure:
                policies[name].measure()
    return policies


def _cameras(policy: Any, checkpoint: str) -> dict[str, tuple[int, int]]:
    """Pictures that a policy sees, key → (height, width), and that can be rendered here."""
    pictures = dict(policy.pictures)
    if pictures:
        from gymnasium.error import DependencyNotInstalled

        from asd_policy.envs import rendering

        try:
            rendering.choose_backend()
        except DependencyNotInstalled as error:
            raise CheckpointError(
                f"{checkpoint} sees {', '.join(pictures)}, which cannot be rendered here: {error}"
            ) from error
    return pictures
