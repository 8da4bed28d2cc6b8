"""Trained policies that ship with the package, one folder each."""

import json
from os import PathLike
from pathlib import Path

from asd_policy.errors import CheckpointError, InputError, did_you_mean, plain

# robosuite's names of the tasks, where they are not the folder's in another spelling.
_ROBOSUITE = {
    "NutAssemblySquare": "square",
    "PickPlaceCan": "can",
    "TwoArmTransport": "transport",
}


def shipped(name: str) -> Path:
    """Folder of a shipped checkpoint: "lift", "Tool-Hang", or its task as robosuite names it.

    Raises:
        CheckpointError: there is none; the message lists those there are.
    """
    folder = shipped_or_none(name)
    if folder is None:
        raise CheckpointError(
            f"no checkpoint named {name!r} ships with this package; {_listed(name)}"
        )
    return folder


def shipped_or_none(name: str) -> Path | None:
    """As `shipped`; None where there is none."""
    folders = {plain(folder): folder for folder in shipped_names()}
    aliases = {plain(other): folder for other, folder in _ROBOSUITE.items()}
    spelling = plain(name)
    found = folders.get(plain(aliases.get(spelling, spelling)))
    return None if found is None else _here() / found


def shipped_names() -> list[str]:
    """Names of the policies that ship."""
    return sorted(path.parent.name for path in _here().glob("*/card.json"))


def find_checkpoint(folder: str | Path) -> Path:
    """The folder where it holds a checkpoint; else the shipped one of that name ("lift", or
    "checkpoints/lift" as in the README), from wherever this runs; else the folder as it is.
    Raises CheckpointError for what is no path."""
    if not isinstance(folder, (str, PathLike)):
        raise CheckpointError(
            "expected the folder of a checkpoint, or the name of one that ships with this package; "
            f"got {folder!r:.80}"
        )
    path = Path(folder)
    there = any((path / name).is_file() for name in ("card.json", "model.safetensors"))
    if there or path.is_file() or not _is_a_name(path):
        return path
    return shipped_or_none(path.name) or path


def check_steps(sampler: str, steps: int | None, checkpoint: Path) -> None:
    """Raise ValueError where more denoising steps are asked for than the network of a checkpoint
    was trained for, if its card says how many. Read here, as `read_card` would be only after
    seconds of loading PyTorch."""
    try:
        card = json.loads((find_checkpoint(checkpoint) / "card.json").read_text(encoding="utf-8"))
        trained = int(card["schedule"]["num_steps"])
    except (OSError, ValueError, LookupError, TypeError):  # said when it is loaded
        return
    if steps is not None and steps > trained:
        raise InputError(
            f"{sampler} takes 1 to {trained} denoising steps of a policy that was trained for "
            f"{trained}; got {steps}"
        )


def no_checkpoint(folder: Path) -> str:
    """A message about a folder that is not there, with the names that ship."""
    return (
        f"no checkpoint at {folder}: it has no card.json, and none of that name ships with this "
        f"package; {_listed(folder.name)}"
    )


def _is_a_name(path: Path) -> bool:
    return path.parent in (Path(), Path(_here().name)) and path.name != ""


def _listed(name: str) -> str:
    near = did_you_mean(name, (*shipped_names(), *_ROBOSUITE))
    return f"there is {', '.join(shipped_names()) or 'none'}{near}"


def _here() -> Path:
    return Path(__file__).parent
