"""The real policies and environments of an evaluation."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import torch

from asd_policy.checkpoints import shipped
from asd_policy.data.robomimic_hdf5 import has_published_layout
from asd_policy.envs.tasks import CONTROL_FREQUENCY_HZ, TASKS, get_task
from asd_policy.errors import CheckpointError, IntegrationError
from asd_policy.eval.evaluator import Setup
from asd_policy.eval.machine import resolve_device
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.samplers import sampler_settings
from asd_policy.eval.slots import OpenSlots, make_env, open_slots
from asd_policy.integrations.robomimic_checkpoint import (
    RobomimicCheckpoint,
    read_checkpoint,
    to_checkpoint,
)
from asd_policy.integrations.robomimic_convert import task_name
from asd_policy.integrations.robomimic_environment import check_environment
from asd_policy.integrations.robomimic_format import ddim_steps
from asd_policy.policy import DiffusionPolicy, SamplerConfig

ROBOMIMIC_SUFFIX = ".pth"


def prepare(options: EvalOptions, open_slots: OpenSlots = open_slots) -> Setup:
    """Load one policy for each sampler and make the environments they share.

    Args:
        open_slots: makes so many places for environments, given how one is made.

    Raises:
        ValueError: an unknown task or device, or a setting that the sampler refuses.
        CheckpointError: a checkpoint that is missing, damaged, or not for this task.
    """
    task = get_task(options.task)
    device = resolve_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    checkpoint = options.checkpoint or shipped(task.name)
    place: dict[str, Any] = {
        "device": device,
        "engine": options.engine,
        "precision": options.precision,
        "compile": options.compile,
    }
    policies: dict[str, Any] = {
        name: load_policy(checkpoint, place, sampler_settings(name, options))
        for name in options.samplers
    }
    policy = policies[options.samplers[0]]
    policy.check_observation_space(task.observation_keys)
    if policy.action_dim != task.action_dim:
        raise ValueError(
            f"task {task.name!r} takes actions of {task.action_dim} numbers, and the policy in "
            f"{checkpoint} makes actions of {policy.action_dim}"
        )
    check_environment(policy.card.get("env_metadata"), task, checkpoint)
    cameras = _cameras(policy, checkpoint)
    return Setup(
        policies=policies,
        slots=open_slots(
            functools.partial(make_env, task.env_id, options.horizon, bool(options.video), cameras),
            min(options.num_envs, options.episodes * len(options.samplers)),
        ),
        render_fps=CONTROL_FREQUENCY_HZ,
        checkpoint_sha256=policy.card["sha256"],
        resolved={
            "checkpoint": str(checkpoint),
            "device": device,
            "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
            "threads": torch.get_num_threads(),
            "engine": policy.engine.name,
            "kernels": policy.engine.kernels,
            "precision": options.precision,
            "compile": options.compile,
            "parameters": policy.parameters,
            "horizons": list(policy.horizons),
            "control_hz": CONTROL_FREQUENCY_HZ,
            "steps": {name: p.schedule.num_steps for name, p in policies.items()},
        },
        held_components=task.gripper_components,
    )


def _cameras(policy: Any, checkpoint: Path) -> dict[str, tuple[int, int]]:
    """Pictures that a policy sees, key → (height, width), and that can be drawn here."""
    pictures: dict[str, tuple[int, int]] = getattr(policy, "pictures", {})
    if pictures:
        from gymnasium.error import DependencyNotInstalled

        from asd_policy.envs import rendering

        try:
            rendering.choose_backend()
        except DependencyNotInstalled as error:
            raise CheckpointError(
                f"{checkpoint} sees {', '.join(pictures)}, which cannot be drawn here: {error}"
            ) from error
    return pictures


def load_policy(checkpoint: Path, place: dict[str, Any], settings: dict[str, Any]) -> Any:
    """The policy of a checkpoint folder, or of a file of robomimic's.

    Raises:
        CheckpointError: neither of them.
        IntegrationError: a policy that sees pictures, and no robomimic, which has its encoder.
    """
    if checkpoint.suffix != ROBOMIMIC_SUFFIX:
        return DiffusionPolicy.load(checkpoint, **place, **settings)
    file, sampler = read_checkpoint(checkpoint), SamplerConfig(**_named(settings))
    policy: Any
    if file.image_keys:
        policy = _image_policy(file, sampler, place)
    else:
        policy = DiffusionPolicy(to_checkpoint(file), sampler, **place)
    policy.card["sha256"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return policy


def _image_policy(file: RobomimicCheckpoint, sampler: SamplerConfig, place: dict[str, Any]) -> Any:
    try:
        from asd_policy.integrations.robomimic.evaluation import ImagePolicy
    except IntegrationError as error:
        raise IntegrationError(
            f"{file.path} sees {', '.join(file.image_keys)}, through an encoder that robomimic "
            f"has: {error}"
        ) from error
    return ImagePolicy(file, sampler, place)


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    return {"name" if key == "sampler" else key: value for key, value in settings.items()}


def with_its_task(options: EvalOptions) -> EvalOptions:
    """The options, with the task of a robomimic file's environment; others as they are.

    Raises:
        CheckpointError: the file cannot be read, or was trained in an environment that is not
            among the tasks.
        ValueError: the options ask for another task.
    """
    if options.checkpoint is None or options.checkpoint.suffix != ROBOMIMIC_SUFFIX:
        return options
    file = read_checkpoint(options.checkpoint)
    metadata = file.content["env_metadata"]
    task = task_name(metadata)
    if task is None:
        name = metadata.get("env_name") if isinstance(metadata, dict) else metadata
        raise CheckpointError(
            f"{options.checkpoint} was trained in {name!r}; expected one of: "
            f"{', '.join(task.robosuite_name for task in TASKS.values())}"
        )
    if file.image_keys and "object" in file.shapes and not has_published_layout(metadata):
        raise CheckpointError(
            f"{options.checkpoint} sees pictures, and 'object' in the order of robosuite "
            f"{metadata.get('env_version')}, which is another than that of the tasks here "
            "(robosuite 1.4.1, as in published data); robomimic's own run_trained_agent can roll "
            "it out"
        )
    if options.task not in (task, EvalOptions.task):
        raise ValueError(f"--task {options.task}: {options.checkpoint} was trained for {task}")
    try:
        steps = ddim_steps(file.config["algo"])
    except CheckpointError as error:
        raise CheckpointError(f"{options.checkpoint}: {error}") from error
    if steps is not None and options.ddim_steps == EvalOptions.ddim_steps:
        options = dataclasses.replace(options, ddim_steps=steps)  # those of the file
    return dataclasses.replace(options, task=task)
