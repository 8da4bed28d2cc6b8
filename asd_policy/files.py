"""Files that are written whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from asd_policy.errors import AsdPolicyError, CheckpointError, OutputError, OutputExistsError

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
    except (OSError, RuntimeError) as error:
        refused = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refused, OSError):  # torch.save raises an error of its own over that
            raise
        reason = refused.strerror or str(refused).partition("\n")[0]
        raise OutputError(f"{path} could not be written: {reason}") from error


@contextmanager
def replacing(path: Path, part: str = ".part") -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the block is left. A kill leaves the
    old one or the new one, an error the old one alone. Its folder is made where there is none.

    Args:
        part: what the name of the unfinished file ends in.

    Raises:
        OutputError: the disk is full, or the like.
    """
    unfinished = path.with_name(path.name + part)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(unfinished, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def has_lock(file: IO[Any], path: Path, shared: bool = False) -> bool:
    """Whether this process has the file's lock now, and keeps it until the file is closed; False
    where another process has it. Always true on Windows.

    Args:
        path: what the file keeps others out of. shared: with others who look, not write; a file
            that was opened for reading alone can have no other lock on a network's file system.

    Raises:
        OutputError: the file system has no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OutputError(
            f"{path} is on a file system without locks ({error.strerror}), which keep two "
            "processes from writing there at once; choose an output folder on another one"
        ) from error
    return True


def check_writable(path: Path) -> None:
    """Raise OutputError unless a file or folder `path` can be made. Leaves nothing behind."""
    with writing(path):
        ancestor = path.absolute().parent
        while not os.path.lexists(ancestor):
            ancestor = ancestor.parent
        with tempfile.TemporaryFile(dir=ancestor):  # permissions alone do not tell: /proc
            pass


def check_only_ours(folder: Path, what: str, own: Sequence[str]) -> None:
    """Raise OutputExistsError where a folder for output holds files of something else. (Folders in
    it, and a desktop's own hidden files, are left alone.)

    Args:
        what: of ours may be in it, for the message. own: names of its files.
    """
    there = folder.iterdir() if folder.is_dir() else ()
    files = {path.name for path in there if path.is_file() and path.name[0] != "."}
    if others := sorted(files - {*own, LOCK_FILE}):
        raise OutputExistsError(
            f"the output folder must be new, empty, or hold {what}; {folder} holds other files "
            f"({', '.join(others):.200})"
        )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other processes out of it until the block is left. What is inside may
    be removed in the block, and `folder` too. Its lock file is removed at the end.

    Raises:
        OutputExistsError: another process is at work in it.
        OutputError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK_FILE, "a")  # noqa: SIM115 - closed below
    with lock:
        if os.fstat(lock.fileno()).st_size:  # a lock of ours is empty, and is removed at the end
            raise OutputExistsError(
                f"{folder / LOCK_FILE} is a file with something in it, and no lock of this "
                "package; move it, or choose another output folder"
            )
        if not has_lock(lock, folder) or not _is_at(lock, folder / LOCK_FILE):
            raise OutputExistsError(
                f"another process is at work in {folder}; wait for it, or choose another --out"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(folder / LOCK_FILE)


def _is_at(file: IO[Any], path: Path) -> bool:
    """Another process may have finished, and removed the file, since it was opened."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


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


def check_archive(path: Path) -> None:
    """Raise a CheckpointError unless every byte is as it was written: PyTorch does not compare the
    archive's checksums, and reads tensors that were changed."""
    if path.is_dir():
        raise CheckpointError(f"expected one file, and {path} is a folder")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # the zip reader may raise anything
        raise CheckpointError(
            f"{path} is no whole PyTorch file (a zip archive): {error}"
        ) from error
    if bad is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {bad} is another")
