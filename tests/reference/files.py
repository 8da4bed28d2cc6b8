"""Of the files that a test leaves."""

from pathlib import Path


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, and what is in them."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
