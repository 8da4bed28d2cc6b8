"""Chunks that a zarr array lacks: were they left out, or lost?

zarr reads both as the array's fill value. Writers may leave out a chunk that holds nothing else
(zarr 3 does, zarr 2 does not), and a copy that was cut short has lost chunks. Without a digest,
four things tell: a writer that kept one such chunk leaves out none; what was measured is not the
same everywhere; a run of fill values over whole chunks hardly ever begins and ends where they do;
and without a fill value nothing can stand in. Where all marks are missing, or the run goes on
beside the gap, it cannot be told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Chunk = tuple[int, ...]  # its place in the grid
# A run that goes on beside a gap does so over this share of a chunk, or more: one that was lost has
# a few such rows beside it where values are often the fill value (marks: False).
_BESIDE = 0.01


@dataclass(frozen=True)
class Grid:
    """How an array is cut into chunks that are files.

    Attributes:
        size: of a chunk.
        counts: of chunks along each dimension.
        fill: what is read where one is missing; None where anything may be.
        keys: file of each chunk, by its place.
    """

    size: tuple[int, ...]
    counts: tuple[int, ...]
    fill: Any
    keys: dict[Chunk, str]

    @classmethod
    def of(cls, array: Any) -> Grid:
        """Of an array of zarr 2 or 3, in either format."""
        size = tuple(getattr(array, "shards", None) or array.chunks)
        counts = tuple(-(-rows // part) for rows, part in zip(array.shape, size, strict=True))
        places = product(*map(range, counts))
        if hasattr(array, "metadata"):  # zarr 3
            keys = {place: array.metadata.encode_chunk_key(place) for place in places}
        else:
            prefix = f"{array.path}/" if array.path else ""
            keys = {p: array._chunk_key(p).removeprefix(prefix) for p in places}
        return cls(size, counts, array.fill_value, keys)

    def region(self, first: Chunk, last: Chunk) -> tuple[slice, ...]:
        """The rows and columns from one chunk to another."""
        return tuple(
            slice(a * part, (b + 1) * part)
            for a, b, part in zip(first, last, self.size, strict=True)
        )


def missing_chunks(grid: Grid, files: Collection[str]) -> list[Chunk]:
    """Places of the chunks that are not among the files of the array."""
    return [place for place, key in grid.keys.items() if key not in files]


def surely_lost(grid: Grid, missing: Collection[Chunk], values: np.ndarray) -> bool:
    """Whether chunks that are missing were not left out for holding nothing but the fill value.

    Args:
        missing: their places, at least one.
        values: the array as zarr reads it.
    """
    everything = len(missing) == len(grid.keys)
    if grid.fill is None or (everything and values.dtype.kind == "f"):
        return True
    fill = _equals(values, grid.fill)
    there = set(grid.keys) - set(missing)
    if any(fill[grid.region(place, place)].all() for place in there):
        return True
    return any(not _goes_on(grid, gap, fill) for gap in _gaps(set(missing)))


def _equals(values: np.ndarray, fill: Any) -> np.ndarray:
    return np.isnan(values) if fill != fill else values == fill


def _gaps(missing: set[Chunk]) -> Iterator[tuple[Chunk, Chunk]]:
    """First and last chunk of each run of missing ones along the rows."""
    for first in missing:
        if not first or (first[0] - 1, *first[1:]) in missing:
            continue
        last = first
        while (last[0] + 1, *last[1:]) in missing:
            last = (last[0] + 1, *last[1:])
        yield first, last


def _goes_on(grid: Grid, gap: tuple[Chunk, Chunk], fill: np.ndarray) -> bool:
    """Whether rows before or after a gap hold the fill value too, or there are none."""
    rows, *columns = grid.region(*gap)
    margin = max(1, int(_BESIDE * grid.size[0]))
    beside = (
        fill[(slice(max(0, rows.start - margin), rows.start), *columns)],
        fill[(slice(rows.stop, rows.stop + margin), *columns)],
    )
    there = [part for part in beside if part.size]
    return not there or any(bool(part.all()) for part in there)
