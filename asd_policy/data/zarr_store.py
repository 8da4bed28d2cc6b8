"""Zarr stores whose arrays are checked when they are read.

zarr reads a chunk that is missing as the array's fill value, zeros or False, and says nothing. So
a store that is written here carries the SHA-256 of each array, and what is read must have it. In
stores of other people, which carry none, missing chunks are judged by :mod:`asd_policy.data.gaps`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.data.gaps import Grid, missing_chunks, surely_lost
from asd_policy.errors import DatasetError, DatasetWarning

DIGESTS = "array_sha256"  # the attribute of the store: name of an array → SHA-256


def write_zarr(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> None:
    """Write a new store of format 2, which every version of zarr reads, with digests."""
    import zarr

    version = int(zarr.__version__.split(".")[0])
    root: Any = zarr.open_group(str(path), mode="w", **({"zarr_format": 2} if version >= 3 else {}))
    for name, values in arrays.items():
        root[name] = values
    digests = {name: array_digest(values) for name, values in sorted(arrays.items())}
    root.attrs.update({**attributes, DIGESTS: digests})


def array_digest(values: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and values, however they are chunked and compressed."""
    content = hashlib.sha256(f"{values.dtype.str} {list(values.shape)}\n".encode())
    content.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return content.hexdigest()


class ZarrStore:
    """A zarr group, to be read: a folder, or one zip file of it (`.zarr.zip`).

    Attributes:
        path: of it.
        attributes: all that it says of itself, but the digests.

    Raises:
        DatasetError: nothing is there, or something else.
    """

    def __init__(self, path: Path) -> None:
        import zarr  # an extra; the trainer itself runs without it

        if not path.exists():
            begun = path.with_name(path.name + ".partial").exists()
            makes = "is unfinished there, and goes on where it was" if begun else "makes one"
            raise DatasetError(f"no demonstration store at {path}; `asd-policy demos` {makes}")
        if not path.is_dir() and not zipfile.is_zipfile(path):
            raise DatasetError(
                f"{path} is not a zarr group: expected a folder, or a whole zip file of one, and "
                "it is neither"
            )
        self.path = path
        try:
            source = str(path) if path.is_dir() else zarr.storage.ZipStore(str(path), mode="r")
            self._root: Any = zarr.open_group(source, mode="r")
            self.attributes: dict[str, Any] = dict(self._root.attrs)
        except Exception as error:  # whatever zarr makes of files that are damaged
            raise DatasetError(f"{path} is not a zarr group: {_what_else(path, error)}") from error
        digests = self.attributes.pop(DIGESTS, None)
        self._digests: dict[str, Any] = digests if isinstance(digests, dict) else {}

    def __contains__(self, name: str) -> bool:
        """Whether an array is there, or was: one that is lost cannot be read."""
        try:
            return name in self._digests or name in self._root or bool(self._files(name))
        except Exception:  # it is there, damaged: reading says how
            return True

    def names(self, group: str) -> list[str]:
        """Names of the arrays in a group, without the group's."""
        if self._digests:
            prefix = f"{group}/"
            return [n.removeprefix(prefix) for n in self._digests if n.startswith(prefix)]
        try:
            return sorted(str(name) for name in self._root[group])
        except Exception as error:
            raise DatasetError(f"{self.path} lacks the group {group}") from error

    def read(self, name: str) -> np.ndarray:
        """An array, whole.

        Raises:
            DatasetError: it is missing, damaged, or chunks of it are lost.
        """
        array = self._array(name)
        try:
            values = np.asarray(array[...])
        except Exception as error:  # the codecs' own
            raise DatasetError(
                f"{self.path}: {name} is damaged and cannot be read: {reason(error)}"
            ) from error
        if values.dtype.kind not in "biuf":
            raise DatasetError(
                f"{self.path}: {name} holds values of type {values.dtype}, expected numbers"
            )
        expected = self._digests.get(name)
        if expected is None:
            self._judge(name, array, values)
        elif array_digest(values) != expected:
            raise DatasetError(f"{self.path}: {self._difference(name, array)}")
        return values

    def _array(self, name: str) -> Any:
        try:
            array = self._root[name]
        except KeyError as error:
            raise DatasetError(f"{self.path} lacks the array {name}") from error
        except Exception as error:
            raise DatasetError(f"{self.path}: {name} cannot be opened: {reason(error)}") from error
        if not hasattr(array, "chunks"):
            raise DatasetError(f"{self.path}: {name} is a group, expected an array")
        return array

    def _difference(self, name: str, array: Any) -> str:
        """How an array differs from what was written, and what to do."""
        grid = Grid.of(array)
        missing = missing_chunks(grid, self._files(name))
        if missing:
            return f"{_counted(missing, grid, name)} missing; copy or make the store again"
        return (
            f"{name} is not what was written (its SHA-256 is another); copy or make the store "
            f"again, or delete the attribute {DIGESTS} if it was changed on purpose"
        )

    def _judge(self, name: str, array: Any, values: np.ndarray) -> None:
        """Refuse an array without a digest whose missing chunks are lost; say so where that cannot
        be told."""
        grid = Grid.of(array)
        missing = missing_chunks(grid, self._files(name))
        if not missing:
            return
        what = f"{self.path}: {_counted(missing, grid, name)} missing"
        if self._keeps_every_chunk(name) or surely_lost(grid, missing, values):
            raise DatasetError(
                f"{what} and would be read as {grid.fill}: copy the store again, or write it with "
                "write_empty_chunks=True if its writer left out chunks that hold nothing else"
            )
        warnings.warn(
            f"{what} and read as {grid.fill}: left out for holding nothing else, or lost, which "
            "cannot be told, since the store carries no digests",
            DatasetWarning,
            stacklevel=4,
        )

    def _files(self, name: str) -> set[str]:
        """The files of an array, by their paths below it."""
        if self.path.is_dir():
            folder = self.path / name
            return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        with zipfile.ZipFile(self.path) as archive:
            prefix = f"{name}/"
            return {n.removeprefix(prefix) for n in archive.namelist() if n.startswith(prefix)}

    def _keeps_every_chunk(self, name: str) -> bool:
        """Whether zarr 2 wrote the array, which keeps chunks that hold nothing but the fill value:
        unlike zarr 3 and others, it does not name a separator that is a dot."""
        try:
            if self.path.is_dir():
                text = (self.path / name / ".zarray").read_bytes()
            else:
                with zipfile.ZipFile(self.path) as archive:
                    text = archive.read(f"{name}/.zarray")
        except (OSError, KeyError):  # format 3
            return False
        return "dimension_separator" not in json.loads(text)


def _counted(missing: list[tuple[int, ...]], grid: Grid, name: str) -> str:
    total = int(np.prod(grid.counts))
    return f"{len(missing)} of {total} chunks of {name} {'is' if len(missing) == 1 else 'are'}"


def _what_else(path: Path, error: Exception) -> str:
    """Why there is no group: a folder was zipped, perhaps, and not what is in it."""
    if path.is_dir():
        return reason(error)
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
    if names & {".zgroup", "zarr.json"}:
        return reason(error)
    return f"expected one at the top of the zip file, found there: {', '.join(sorted(names)[:5])}"


def reason(error: Exception) -> str:
    """What a library says, in a line."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return str(said).partition("\n")[0] or type(error).__name__
