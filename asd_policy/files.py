"""Files that are written whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asd_policy.errors import AsdPolicyError, OutputError, OutputExistsError

try:
    import fcntl
except ImportError:  # Windows: two processes at work on one store at once are not told apart
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what the system refuses as an OutputError that names the path and the reason."""
    try:
        yield
    except AsdPolicyError:
        raise
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise OutputError(f"{path} could not be written: {reason}") from error


def check_writable(path: Path) -> None:
    """Raise OutputError unless a file or folder `path` can be made. Leaves nothing behind."""
    with writing(path):
        ancestor = path.absolute().parent
        while not os.path.lexists(ancestor):
            ancestor = ancestor.parent
        with tempfile.TemporaryFile(dir=ancestor):  # permissions alone do not tell: /proc
            pass


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other processes out of it until the block is left. What is inside may
    be removed in the block, and `folder` too.

    Raises:
        OutputExistsError: another process is at work in it.
        OutputError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK_FILE, "a")  # noqa: SIM115 - closed below
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another process may have finished, and removed the file, since it was opened.
                os.stat(folder / LOCK_FILE)
            except (BlockingIOError, FileNotFoundError) as error:
                raise OutputExistsError(
                    f"another process is at work in {folder}; wait for it, or choose another --out"
                ) from error
        yield


def sync_tree(folder: Path) -> None:
    """See to it that all files in `folder` are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        if os.name == "nt" and path.is_dir():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
