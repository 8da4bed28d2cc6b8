"""Checkpoints: a folder with ``model.safetensors`` and ``card.json``. Loading never unpickles."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from asd_policy.checkpoints import find_checkpoint, no_checkpoint
from asd_policy.errors import CheckpointError, InputError
from asd_policy.files import writing
from asd_policy.networks import OthersUnet1D
from asd_policy.networks.described import bare_names, untold_by_weights
from asd_policy.policy.config import PolicyConfig
from asd_policy.policy.normalizer import Normalizer
from asd_policy.samplers.calibration import Calibration
from asd_policy.schedule import Schedule

Made = TypeVar("Made")

FORMAT_VERSION = 1
MODEL_FILE, CARD_FILE = "model.safetensors", "card.json"
# What the entries of a malformed card make the constructors raise.
_MALFORMED = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError,
)  # fmt: skip
_PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".pkl", ".bin"}


@dataclass
class Checkpoint:
    """A trained policy: weights and everything needed to run them.

    ``card`` holds what is only reported: task, training data and recipe, measured success,
    calibration of the drafts.
    """

    network: nn.Module
    config: PolicyConfig
    schedule: Schedule
    observation_normalizer: Normalizer
    action_normalizer: Normalizer
    card: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> Path:
    """Write the folder, or replace the checkpoint in it: as a whole, or not at all.

    NumPy's numbers and paths in the card are written as JSON's; a network that was wrapped
    (``DataParallel``, ``torch.compile``) is saved as what was wrapped.

    Raises:
        CheckpointError: a card that cannot be written as JSON, or a network, normalizer or
            calibration that is not of what ``checkpoint.config`` and ``checkpoint.schedule``
            describe; the folder is left as it was.
    """
    folder = Path(folder)
    weights = _unwrapped(checkpoint)
    blob = save(weights)
    card = {
        "format": "asd-policy checkpoint",
        "format_version": FORMAT_VERSION,
        **{k: v for k, v in checkpoint.card.items() if k not in _STRUCTURE},
        "policy": checkpoint.config.to_dict(),
        "schedule": checkpoint.schedule.to_dict(),
        "normalizer": {
            "observation": checkpoint.observation_normalizer.to_dict(),
            "action": checkpoint.action_normalizer.to_dict(),
        },
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    _check_dims(
        folder, checkpoint.config, checkpoint.observation_normalizer, checkpoint.action_normalizer
    )
    _check_known(folder, card, checkpoint.schedule)
    text = _as_json(card)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder, {MODEL_FILE: blob, CARD_FILE: text})
    return folder


_STRUCTURE = ("format", "format_version", "policy", "schedule", "normalizer", "sha256")


def update_card(folder: str | Path, **entries: Any) -> None:
    """Add or replace reported entries (success, calibration …) of a card on disk.

    Raises:
        CheckpointError: as :func:`read_card`, or entries that cannot be written as JSON; the card
            is left as it was.
    """
    folder = Path(folder)
    card = read_card(folder)
    card.update({k: v for k, v in entries.items() if k not in _STRUCTURE})
    chain = _entry(folder, card, "schedule", dict)
    _check_known(folder, card, _made(folder, "schedule", Schedule.from_dict, chain))
    text = _as_json(card)
    with writing(folder):
        _replace(folder, {CARD_FILE: text})


def _unwrapped(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights by the names that the network has when it is built from the configuration."""
    network = checkpoint.network
    if isinstance(network, OthersUnet1D):
        network = network.as_unet()
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in bare_names(network.state_dict()).items()
    }
    expected = checkpoint.config.build_network("meta")
    table = difference_table(
        {name: tuple(value.shape) for name, value in expected.state_dict().items()}
        | untold_by_weights(expected),
        {name: tuple(value.shape) for name, value in weights.items()} | untold_by_weights(network),
    )
    if table:
        raise CheckpointError(f"the network is not the one that the config describes:\n{table}")
    return weights


def _as_json(card: Mapping[str, Any]) -> bytes:
    for entry, value in card.items():
        try:
            json.dumps(value, default=_plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the card cannot be written as JSON: {entry}: {error}"
            ) from error
    return (json.dumps(card, indent=1, default=_plain) + "\n").encode()


def _plain(value: Any) -> Any:
    """Of NumPy's, PyTorch's and paths, what JSON knows."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is no number, text, list or mapping")


def _part(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".part")


def _replace(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Put files in place. All are on the disk before the first is; where one cannot be written,
    none are, and what was written of them does not stay in the way on a disk that is full.

    Killed between the two, the weights are the new ones, and so is the card that waits beside the
    old one (`_card_file`).
    """
    _settle(folder)
    try:
        for name, content in contents.items():
            with _part(folder / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        for name in contents:
            _part(folder / name).unlink(missing_ok=True)
        raise
    for name in contents:
        _part(folder / name).replace(folder / name)


def _card_file(folder: Path) -> Path:
    """The card: the one that waits to be put in place, where the weights are its own already."""
    part = _part(folder / CARD_FILE)
    try:
        card = json.loads(part.read_text(encoding="utf-8"))
        digest = hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return folder / CARD_FILE
    same = isinstance(card, dict) and card.get("sha256") == digest
    return part if same else folder / CARD_FILE


def _settle(folder: Path) -> None:
    """Finish a replacement that was killed half-way."""
    card = _card_file(folder)
    if card != folder / CARD_FILE:
        card.replace(folder / CARD_FILE)


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a checkpoint folder, its format checked.

    Raises:
        CheckpointError: no such folder, a pickle instead of a folder, an unreadable card, or a
            format this version does not know.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.suffix in _PICKLE_SUFFIXES and not folder.is_dir()):
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: expected a folder with {MODEL_FILE} and "
            f"{CARD_FILE}; pickled files are never opened, because unpickling runs their code "
            "(`asd-policy convert` reads those of robomimic and diffusion_policy, and runs nothing)"
        )
    if not folder.exists():
        raise CheckpointError(no_checkpoint(folder))
    file = _card_file(folder)
    for path in (file, folder / MODEL_FILE):
        if not path.is_file():
            name = path.name.removesuffix(".part")
            raise CheckpointError(f"no checkpoint at {folder}: it has no {name}")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / CARD_FILE} is not valid JSON: {error}") from error
    if not isinstance(card, dict) or "format_version" not in card:
        raise CheckpointError(
            f"{folder / CARD_FILE} is no card of an asd-policy checkpoint: expected a mapping with "
            f"format_version {FORMAT_VERSION}, got {card!r:.80}"
        )
    version = card["format_version"]
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / CARD_FILE}: expected format_version {FORMAT_VERSION}, got {version!r}"
        )
    return card


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Load and verify a checkpoint: its folder, or the name of one that ships ("lift").

    Raises:
        CheckpointError: besides the cases of :func:`read_card`: weights whose SHA-256 is not the
            card's, a truncated file, weights that do not fit the architecture (all differences
            in one table), or a card with missing or invalid entries.
    """
    return _load(find_checkpoint(folder))


def _load(folder: Path) -> Checkpoint:
    card, weights = _card_and_weights(folder)
    task = card.get("task")
    if not isinstance(task, str | None):
        raise CheckpointError(f"{folder / CARD_FILE}: task must be text, got {task!r:.80}")

    def made(entry: str, make: Callable[[Any], Made]) -> Made:
        return _made(folder, entry, make, _entry(folder, card, entry, dict))

    config, network = made("policy", _config_and_network)
    schedule = made("schedule", Schedule.from_dict)
    observation = made(
        "normalizer", lambda each: Normalizer.from_dict(each["observation"], config.quaternions)
    )
    action = made("normalizer", lambda each: Normalizer.from_dict(each["action"]))
    _check_known(folder, card, schedule)
    _check_dims(folder, config, observation, action)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    table = difference_table(expected, {k: tuple(v.shape) for k, v in weights.items()})
    if table:
        raise CheckpointError(f"{folder / MODEL_FILE} does not fit its card:\n{table}")
    network.load_state_dict(weights)
    return Checkpoint(network.eval(), config, schedule, observation, action, card)


def _card_and_weights(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Both of one save, though another process may be saving here now."""
    while True:
        before = _stamps(folder)
        try:
            card = read_card(folder)
            return card, _weights(folder / MODEL_FILE, _entry(folder, card, "sha256", str))
        except (CheckpointError, FileNotFoundError):
            if _stamps(folder) == before:
                raise


def _stamps(folder: Path) -> list[tuple[int, int] | None]:
    """By which a save between two looks is noticed."""
    found: list[tuple[int, int] | None] = []
    for path in (folder / MODEL_FILE, folder / CARD_FILE, _part(folder / CARD_FILE)):
        try:
            stat = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_mtime_ns))
    return found


def _weights(path: Path, expected: str) -> dict[str, Tensor]:
    blob = path.read_bytes()
    digest = hashlib.sha256(blob).hexdigest()
    if digest != expected:
        raise CheckpointError(
            f"{path} was changed or cut short: expected SHA-256 {expected:.80}, got {digest}"
        )
    try:
        return load(blob)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _entry(folder: Path, card: Mapping[str, Any], entry: str, kind: type[Made]) -> Made:
    if entry not in card:
        raise CheckpointError(f"{folder / CARD_FILE}: missing entry {entry!r}")
    value = card[entry]
    if not isinstance(value, kind):
        wanted = "text" if kind is str else "a mapping"
        raise CheckpointError(f"{folder / CARD_FILE}: {entry} must be {wanted}, got {value!r:.80}")
    return value


def _made(folder: Path, entry: str, make: Callable[[Any], Made], value: Any) -> Made:
    """What an entry of the card describes; it is named where it describes nothing."""
    try:
        return make(value)
    except _MALFORMED as error:
        reason = f"missing entry {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{folder / CARD_FILE}: {entry}: {reason}") from error


def _config_and_network(values: Mapping[str, Any]) -> tuple[PolicyConfig, nn.Module]:
    config = PolicyConfig.from_dict(values)
    return config, config.build_network()


def _check_known(folder: Path, card: Mapping[str, Any], schedule: Schedule) -> None:
    """That the card's calibration, if there is one, is of this chain."""

    def check(values: Mapping[str, Any]) -> None:
        if not bool(Calibration.from_dict(values).slopes(schedule.num_steps).isfinite().all()):
            raise InputError("it holds a NaN or infinite slope")

    if card.get("calibration") is not None:
        _made(folder, "calibration", check, _entry(folder, card, "calibration", dict))


def _check_dims(folder: Path, config: PolicyConfig, obs: Normalizer, action: Normalizer) -> None:
    for what, got, expected in (
        ("observation", obs.dim, config.observation_dim),
        ("action", action.dim, config.action_dim),
    ):
        if got != expected:
            raise CheckpointError(
                f"{folder / CARD_FILE}: expected {expected} {what} normalizer columns, got {got}"
            )
    rotated = (tuple(obs.quaternions), tuple(action.quaternions))
    if rotated != (tuple(config.quaternions), ()):
        raise CheckpointError(
            f"{folder / CARD_FILE}: expected normalizers with quaternions at {config.quaternions} "
            f"of an observation and none of an action, got {rotated[0]} and {rotated[1]}"
        )


def check_rows(
    wanted: Mapping[str, int], pictures: Collection[str], got: Mapping[str, int]
) -> None:
    """Raise a CheckpointError with one table unless all that is wanted, but for pictures, is there.

    Args:
        wanted, got: key → numbers in a row of it.
    """
    rows = {k: (n,) for k, n in wanted.items() if k not in pictures}
    table = difference_table(rows, {k: (n,) for k, n in got.items() if k in rows})
    if table:
        raise CheckpointError(f"the policy was made for other observations:\n{table}")


def difference_table(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]
) -> str:
    """One table of missing, unexpected and wrongly shaped names; empty if there is none."""
    rows = [(k, "missing", str(v), "-") for k, v in expected.items() if k not in got]
    rows += [(k, "unexpected", "-", str(v)) for k, v in got.items() if k not in expected]
    rows += [
        (k, "wrong shape", str(v), str(got[k]))
        for k, v in expected.items()
        if k in got and got[k] != v
    ]
    if not rows:
        return ""
    rows.insert(0, ("name", "problem", "expected", "got"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join("  " + line.rstrip() for line in lines)
