"""What is sampled: a network with its chain, its observations and the units of its actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.denoiser import Network, PreparedNetwork
from asd_policy.envs.tasks import agreed_task
from asd_policy.errors import InputError
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.eval.subject import checkpoint_of, with_its_task
from asd_policy.integrations import loaders
from asd_policy.integrations.robomimic_convert import task_name
from asd_policy.networks.prepare import prepare
from asd_policy.policy import Checkpoint
from asd_policy.schedule import Schedule

Array = np.ndarray


@dataclass(frozen=True)
class Exact:
    """A distribution that is known: at observation ``index`` chunks are normal, number by number.

    ``mean``, ``deviation``: (Tp, Da), of the chain's last point.
    """

    index: int
    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Subject:
    """A network with what it takes to sample chunks and to speak of them.

    Attributes:
        describe: for verify.json.
        network: chain → the network, ready for that chain's timesteps.
        schedule: that the network was trained for. shape: (Tp, Da) of a chunk.
        conditions: (M, C), one for each observation.
        action_scale: (Da,) action units in one unit of a chunk.
        gripper: column whose sign tells modes apart, or None.
        calibration: of the drafts, stored with the checkpoint; empty if there is none.
        exact: given a chain, a distribution that it is known to have; None for a trained network.
    """

    describe: dict[str, Any]
    network: Callable[[Schedule], Network | PreparedNetwork]
    schedule: Schedule
    shape: tuple[int, int]
    conditions: Tensor
    action_scale: Array
    gripper: int | None
    calibration: dict[str, Any] = field(default_factory=dict)
    exact: Callable[[Schedule], Exact] | None = None


def open_checkpoint(options: VerifyOptions) -> tuple[Checkpoint, Path, str | None]:
    """The checkpoint that the options name, its path, and its task where that is known.

    Raises:
        CheckpointError: it is missing, damaged, or sees pictures.
        ValueError: an unknown task, or another than the checkpoint's.
    """
    if options.checkpoint is None:
        options = with_its_task(options)
    path = checkpoint_of(options)
    made = loaders.open_checkpoint(path)
    own = made.card.get("task") or task_name(made.card.get("env_metadata"))
    return made, path, agreed_task(options.task, own, path)


def checkpoint_subject(
    options: VerifyOptions, made: Checkpoint, path: Path, windows: Array, origin: str
) -> Subject:
    """A checkpoint at given (M, To, Do) observations, in data units."""
    device = torch.device(options.device)
    double = options.precision == "fp64"
    network = made.network.to(device).eval().requires_grad_(False)
    network = network.double() if double else network
    precision = "fp32" if double else options.precision  # "fp32" is the network's own
    scale = (made.action_normalizer.high - made.action_normalizer.low) / 2
    normalized = made.observation_normalizer.normalize(torch.from_numpy(windows)).flatten(1)
    return Subject(
        describe={
            "kind": "checkpoint",
            "name": path.name,
            "checkpoint": str(path),
            "sha256": made.card["sha256"],
            "parameters": sum(p.numel() for p in network.parameters()),
            "observations": len(windows),
            "observations_from": origin,
        },
        network=lambda chain: prepare(network, chain.timesteps, precision, False),
        schedule=made.schedule,
        shape=made.config.chunk_shape,
        conditions=normalized.to(device, torch.float64 if double else torch.float32),
        action_scale=scale.numpy(),
        gripper=gripper_column(options.gripper, made.config.action_dim),
        calibration=made.card.get("calibration") or {},
    )


def moments_file(options: VerifyOptions) -> Path:
    """Where a verification keeps its observations."""
    assert options.out is not None
    return options.out / "moments.npz"


def gripper_column(asked: int | None, columns: int) -> int | None:
    """The column that --gripper means. Raises ValueError where there is none."""
    if asked is None:
        return None
    if not -columns <= asked < columns:
        raise InputError(
            f"--gripper must be a column of the action, {-columns} to {columns - 1}, or None; "
            f"got {asked}"
        )
    return asked % columns
