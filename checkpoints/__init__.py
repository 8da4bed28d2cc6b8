"""Trained policies that ship with the package, one folder each."""

from pathlib import Path

from asd_policy.errors import CheckpointError


def shipped(name: str) -> Path:
    """Folder of a shipped checkpoint. Raises CheckpointError that lists those there are."""
    folder = Path(__file__).parent / name
    if not (folder / "card.json").is_file():
        raise CheckpointError(
            f"no checkpoint named {name!r} ships with this package; there is "
            + (", ".join(shipped_names()) or "none")
        )
    return folder


def shipped_names() -> list[str]:
    """Names of the policies that ship."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/card.json"))
