"""The real policies and environments of an evaluation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch

from asd_policy.checkpoints import shipped
from asd_policy.envs.registration import register_envs
from asd_policy.envs.tasks import Task, get_task
from asd_policy.eval.evaluator import Setup
from asd_policy.eval.machine import resolve_device
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.rollout import Env
from asd_policy.eval.samplers import sampler_settings
from asd_policy.policy import DiffusionPolicy


def prepare(options: EvalOptions) -> Setup:
    """Load one policy for each sampler and make the environments they share.

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
    policies: dict[str, DiffusionPolicy] = {
        name: DiffusionPolicy.load(checkpoint, **place, **sampler_settings(name, options))
        for name in options.samplers
    }
    policy = policies[options.samplers[0]]
    policy.check_observation_space(task.observation_keys)
    if policy.config.action_dim != task.action_dim:
        raise ValueError(
            f"task {task.name!r} takes actions of {task.action_dim} numbers, and the policy in "
            f"{checkpoint} makes actions of {policy.config.action_dim}"
        )
    return Setup(
        policies=policies,
        envs=[_make_env(task, options) for _ in range(min(options.num_envs, options.episodes))],
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
            "parameters": sum(p.numel() for p in policy.network.parameters()),
            "horizons": list(policy.horizons),
            "steps": {name: p.schedule.num_steps for name, p in policies.items()},
        },
    )


def _make_env(task: Task, options: EvalOptions) -> Env:
    register_envs()
    return gym.make(
        task.env_id,
        horizon=options.horizon,
        render_mode="rgb_array" if options.video else None,
        disable_env_checker=True,  # its checks at every step would be counted as simulation
    )
