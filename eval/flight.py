"""The flight recorder: what every chunk was drawn from, and what came out, in the run's folder.

flight/<sampler>_seed<seed>.zarr.zip, one for each finished episode, written whole under another
name and put in place in one step, before the episode's line in episodes.jsonl: a kill leaves an
episode's flight or none, and one that is run again replaces it. Each is a zarr group (format 2):

action       (C, Tp, action_dim) float32: C chunks, whole, in the order they were drawn
accepted     (C, K) bool: the drafts of these steps were accepted …
decided      (C, K) bool: … of those that were decided upon
chunk        (C, 7) int64, its columns named in the attributes: the window it was drawn with, what
             it cost, and which rows of the arrays below it was drawn from
observation  (R, To, Do) float32: raw histories, the newest last
stream       (R, 2) int64: the seed of a row's random stream, and the chunks that it had given
slopes       (S, K) float64: that ASD drafted with

A chunk that was drawn in a batch depends, in its last bits, on the whole batch: so its companions'
rows are kept beside its own, and no flight needs another. Noise is kept as its seed. Attributes:
sampler and its settings, checkpoint, engine, versions and machine.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asd_policy.errors import AsdPolicyError
from asd_policy.eval.records import Episode
from asd_policy.eval.zarr_zip import pack, unpack
from asd_policy.files import writing

if TYPE_CHECKING:
    from asd_policy.eval.rollout import Policy
    from asd_policy.policy import Draw

FOLDER, SUFFIX = "flight", ".zarr.zip"
FORMAT = "asd-policy flight 1"
COLUMNS = ("window", "calls", "evaluations", "first_row", "rows", "row", "slopes")


class FlightDamagedError(AsdPolicyError, ValueError):
    """A flight that cannot be read."""


def flight_path(run: Path, sampler: str, seed: int) -> Path:
    """Where the flight of an episode is."""
    return run / FOLDER / f"{sampler}_seed{seed}{SUFFIX}"


@dataclasses.dataclass(frozen=True)
class Flight:
    """One episode's chunks, as they were recorded. Arrays: see the module."""

    header: Mapping[str, Any]
    action: np.ndarray
    accepted: np.ndarray
    decided: np.ndarray
    chunk: np.ndarray
    observation: np.ndarray
    stream: np.ndarray
    slopes: np.ndarray

    def column(self, number: int, name: str) -> int:
        """One number about a chunk, by the column's name."""
        return int(self.chunk[number, COLUMNS.index(name)])

    def rows(self, number: int) -> slice:
        """The rows of `observation` and `stream` from which a chunk's batch was drawn."""
        first = self.column(number, "first_row")
        return slice(first, first + self.column(number, "rows"))


class FlightRecorder:
    """Gathers the chunks of the episodes that run now, and keeps those of each that ends.

    Args:
        run: the run's folder.
        header: what is the same for every chunk: checkpoint, resolved settings, machine.
    """

    def __init__(self, run: Path, header: Mapping[str, Any]):
        self._run, self._header = run, header
        self._chunks: dict[tuple[str, int], list[tuple[Draw, int]]] = {}

    def attach(self, policies: Mapping[str, Policy]) -> None:
        """Have the policies, by sampler, tell what they draw.

        Raises:
            AsdPolicyError: one sees pictures, which are not kept.
        """
        for sampler, policy in policies.items():
            if policy.pictures:
                raise AsdPolicyError(
                    f"--record keeps low-dimensional observations; this policy sees "
                    f"{', '.join(policy.pictures)}"
                )
            policy.on_draw = functools.partial(self.drawn, sampler)

    def drawn(self, sampler: str, draw: Draw) -> None:
        """Take in a batch of chunks. Quick: this happens in the control loop."""
        for row, (seed, number) in enumerate(zip(draw.seeds, draw.numbers, strict=True)):
            assert seed is not None, "an evaluation gives every episode a seed"
            if number == 0:  # the episode begins, perhaps again
                self._chunks[sampler, seed] = []
            self._chunks[sampler, seed].append((draw, row))

    def keep(self, episode: Episode) -> None:
        """Write the flight of an episode that has ended: on the disk before this returns.

        Raises:
            OutputError: the disk is full, or the like.
        """
        chunks = self._chunks.pop((episode.sampler, episode.seed))
        assert len(chunks) == len(episode.chunks), "every chunk of an episode is recorded"
        header: dict[str, Any] = {
            "format": FORMAT,
            "columns": list(COLUMNS),
            "sampler": episode.sampler,
        }
        header |= {"seed": episode.seed, **self._header}
        content = pack(header, _arrays(chunks))
        path = flight_path(self._run, episode.sampler, episode.seed)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            _put(path, content)


def _arrays(chunks: Sequence[tuple[Draw, int]]) -> dict[str, np.ndarray]:
    table: list[list[int]] = []
    slopes: list[np.ndarray] = []
    first = 0
    for draw, row in chunks:
        cost, known = draw.stats[row], draw.slopes
        if known is not None and not (slopes and np.array_equal(slopes[-1], known)):
            slopes.append(np.array(known))
        which = -1 if known is None else len(slopes) - 1
        rows = len(draw.seeds)
        table.append([cost.window, cost.calls, cost.evaluations, first, rows, row, which])
        first += rows
    steps = len(chunks[0][0].stats[0].accepted)
    return {
        "action": np.stack([draw.chunks[row] for draw, row in chunks]),
        "accepted": np.stack([np.asarray(d.stats[row].accepted, bool) for d, row in chunks]),
        "decided": np.stack([np.asarray(d.stats[row].decided, bool) for d, row in chunks]),
        "chunk": np.array(table, np.int64),
        "observation": np.concatenate([draw.histories for draw, _ in chunks]),
        "stream": np.array(
            [pair for d, _ in chunks for pair in zip(d.seeds, d.numbers, strict=True)], np.int64
        ),
        "slopes": np.stack(slopes) if slopes else np.zeros((0, steps)),
    }


def _put(path: Path, content: bytes) -> None:
    """A file that is whole, or not there."""
    partial = path.with_name(path.name + ".part")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def read_flight(path: Path) -> Flight:
    """The flight in a file.

    Raises:
        FlightDamagedError: it is missing, or is not what was written.
    """
    try:
        header, arrays = unpack(path)
        flight = Flight(header, **arrays)
    except (OSError, ValueError, TypeError) as error:
        raise FlightDamagedError(f"{path} cannot be read as a recorded flight: {error}") from error
    if header.get("format") != FORMAT or header.get("columns") != list(COLUMNS):
        raise FlightDamagedError(f"{path}: expected {FORMAT!r}, got {header.get('format')!r}")
    return flight
