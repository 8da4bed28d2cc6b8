"""Places for output, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asd_policy.errors import OutputExistsError
from asd_policy.files import claimed, replacing, writing


def default_folder(name: str, root: Path = Path("outputs/eval")) -> Path:
    """outputs/eval/<date>-<time>-<name>, numbered where that second already has one."""
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
    candidates = (root / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 1000))
    return next(path for path in candidates if not path.exists())


def now() -> str:
    """When a run starts, as it is kept: local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def check_is_folder(path: Path) -> None:
    """Raise OutputExistsError where a file has the name of an output folder."""
    if path.exists() and not path.is_dir():
        raise OutputExistsError(f"the output must be a folder, but {path} is a file")


@contextlib.contextmanager
def reserved(path: Path) -> Iterator[None]:
    """An output folder that is there and can be written to, before anything is loaded. What was
    made for it and is still empty at the end is removed.

    Raises:
        OutputError: it cannot be made, or nothing can be written in it.
        OutputExistsError: a file has its name.
    """
    with writing(path):
        check_is_folder(path)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    try:
        with writing(path), tempfile.TemporaryFile(dir=path):
            pass
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: so are those above it
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def alone_in(path: Path | None) -> Iterator[None]:
    """`reserved`, and no other process may be at work there until the block is left. None: the
    folder will be a new one, which no other knows.

    Raises:
        OutputError, OutputExistsError: as `reserved`, or another process is at work there.
    """
    with contextlib.ExitStack() as stack:
        if path is not None:
            stack.enter_context(reserved(path))
            stack.enter_context(claimed(path))
        yield


def check_output_folder(path: Path) -> None:
    """Raise what `reserved` raises, and leave everything as it is."""
    with reserved(path):
        pass


def write_json(path: Path, value: Any) -> None:
    """Write a value as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one; the folder is
    made where there is none.

    Raises:
        OutputError: the disk is full, or the like; the old one is left.
    """
    # A part of each process's own: parts of a study may end at the same moment.
    with replacing(path, f".{os.getpid()}.part") as file:
        file.write(text.encode())
