"""Every checkpoint that can be run here, whoever wrote it: one table of loaders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asd_policy.checkpoints import find_checkpoint
from asd_policy.errors import CheckpointError, IntegrationError
from asd_policy.integrations import diffusion_policy_checkpoint as chi
from asd_policy.integrations.robomimic_checkpoint import (
    RobomimicCheckpoint,
    read_checkpoint,
    to_checkpoint,
)
from asd_policy.policy import Checkpoint, DiffusionPolicy, SamplerConfig, load_checkpoint
from asd_policy.policy.checkpoint import CARD_FILE, MODEL_FILE

Place = Mapping[str, Any]  # device, engine, precision, compile and threads of ``DiffusionPolicy``
Make = Callable[[SamplerConfig], Any]  # a policy that draws with this sampler


def open_policies(checkpoint: str | Path, place: Place) -> Callable[[Mapping[str, Any]], Any]:
    """Read a checkpoint once: a folder of this package's, the name of one that ships, robomimic's
    .pth, diffusion_policy's .ckpt, a folder of LeRobot's.

    Returns:
        what makes its policy, a ``RecedingHorizon`` with its keys, from the settings of a sampler
        (as for ``SamplerConfig.named``). Such policies share the network.

    Raises:
        CheckpointError: none of them, or one that cannot be run here.
        IntegrationError: a library that is needed to run it is missing.
    """
    path = find_checkpoint(checkpoint)
    made = next(load for is_one, load in LOADERS if is_one(path))(path, place)
    return lambda settings: made(SamplerConfig.named(**settings))


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose policy needs no other library: a folder of this package's, robomimic's
    .pth that sees no pictures, diffusion_policy's .ckpt. Its card holds the digest of the file.

    Raises:
        CheckpointError: none of them, or damaged.
    """
    if is_lerobot(path):
        raise CheckpointError(
            f"{path} is a policy of LeRobot's, which runs with its own encoder and processors; "
            "expected a folder of this package's, robomimic's .pth or diffusion_policy's .ckpt"
        )
    if path.suffix == ".pth":
        return _of(path, to_checkpoint(read_checkpoint(path)))
    if path.suffix == chi.SUFFIX:
        return _of(path, chi.to_checkpoint(chi.read_checkpoint(path)))
    return load_checkpoint(path)  # says what is expected of a folder


def _of(path: Path, made: Checkpoint) -> Checkpoint:
    made.card["sha256"] = _digest(path)
    return made


def _plain(path: Path, place: Place) -> Make:
    return _policies(open_checkpoint(path), place)


def _policies(made: Checkpoint, place: Place) -> Make:
    return lambda config: DiffusionPolicy(made, config, **place)


def _robomimic(path: Path, place: Place) -> Make:
    file = read_checkpoint(path)
    if file.image_keys:
        return _of_file(_images(file, place), _digest(path))
    return _policies(_of(path, to_checkpoint(file)), place)


def is_lerobot(path: Path) -> bool:
    """A folder of LeRobot's: its config.json names the kind of policy."""
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "type" in values and not (path / CARD_FILE).exists()


def _lerobot(path: Path, place: Place) -> Make:
    try:
        from asd_policy.integrations.lerobot.source import open_folder
    except IntegrationError as error:
        raise IntegrationError(
            f"{path} is a policy of LeRobot's, whose encoder and processors it needs: {error}"
        ) from error
    return _of_file(open_folder(path, place), _digest(path / MODEL_FILE))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _images(file: RobomimicCheckpoint, place: Place) -> Make:
    try:
        from asd_policy.integrations.robomimic.evaluation import open_file
    except IntegrationError as error:
        raise IntegrationError(
            f"{file.path} sees {', '.join(file.image_keys)}, through an encoder that robomimic "
            f"has: {error}"
        ) from error
    return open_file(file, place)


def _of_file(make: Make, digest: str) -> Make:
    """Policies whose cards hold the file's digest."""

    def made(config: SamplerConfig) -> Any:
        policy = make(config)
        policy.card["sha256"] = digest
        return policy

    return made


# (is it one of these?, how it is read); the first that fits is taken.
LOADERS: tuple[tuple[Callable[[Path], bool], Callable[[Path, Place], Make]], ...] = (
    (lambda path: path.suffix == ".pth", _robomimic),
    (is_lerobot, _lerobot),
    (lambda path: True, _plain),
)
