"""The real policies and environments of an evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch

from asd_policy.checkpoints import shipped
from asd_policy.envs.registration import register_envs
from asd_policy.envs.tasks import Task, get_task
from asd_policy.eval.evaluator import Setup
from asd_policy.eval.options import EvalOptions
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
    policies = {
        name: DiffusionPolicy.load(checkpoint, device=device, **sampler_settings(name, options))
        for name in options.samplers
    }
    first = next(iter(policies.values()))
    first.check_observation_space(dict(task.observation_keys))
    envs = [_make_env(task, options) for _ in range(options.num_envs)]
    return Setup(
        policies=policies,
        envs=envs,
        fps=float(envs[0].metadata["render_fps"]),
        checkpoint_sha256=first.card["sha256"],
        resolved={
            "checkpoint": str(checkpoint),
            "device": device,
            "threads": torch.get_num_threads(),
            "precision": "fp32",
            "horizons": list(first.horizons),
        },
    )


def resolve_device(device: str) -> str:
    """ "auto" as cuda where there is one, else cpu; anything else must exist.

    Raises:
        ValueError: not a device that this machine's torch can use.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        known.insert(1, "cuda")
    if device not in known:
        raise ValueError(f"--device must be auto or one of {', '.join(known)}; got {device!r}")
    return device
