"""The flight recorder keeps what every chunk was sampled from, and what came out, with the run.

There is one file for each finished episode, flight/<sampler>_seed<seed>.npz. It is written whole
under another name and put in place in one step, before the episode's line in episodes.jsonl: a
kill leaves an episode's flight or none, and an episode that is run again replaces it. NumPy reads
it (`np.load`); it holds these arrays:

action       (C, Tp, action_dim) float32: C chunks, whole, in the order they were sampled
accepted     (C, K) bool: the drafts of these steps were accepted …
decided      (C, K) bool: … of those that were decided upon
chunk        (C, 7) int64, its columns named in the header: the window it was sampled with, what
             it cost, and which rows of the arrays below it was sampled from
observation  (R, To, Do) float32: raw histories, the newest last
stream       (R, 2) int64: the seed of a row's random stream, and the chunks that it had given
slopes       (S, K) float64: that ASD drafted with
header       JSON: sampler and its settings, checkpoint, engine, versions and machine

The last bits of a chunk depend on the whole batch it was sampled in: so its companions' rows are
kept beside its own, and no flight needs another. Noise is kept as its seed.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asd_policy.data.replay import DAMAGED_NPZ
from asd_policy.errors import AsdPolicyError
from asd_policy.eval.runs.episode import Episode
from asd_policy.files import replacing

if TYPE_CHECKING:
    from asd_policy.eval.rollout.loop import Policy
    from asd_policy.policy import Draw

FOLDER = "flight"
FORMAT = "asd-policy flight 2"
COLUMNS = ("window", "calls", "evaluations", "first_row", "rows", "row", "slopes")


class FlightDamagedError(AsdPolicyError, ValueError):
    """A flight that cannot be read."""


def flight_path(run: Path, sampler: str, seed: int) -> Path:
    """Where the flight of an episode is, or will be."""
    return run / FOLDER / f"{sampler}_seed{seed}.npz"


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
        """The rows of `observation` and `stream` from which a chunk's batch was sampled."""
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
        """Have the policies, by sampler, tell what they sample.

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
        """Take in a batch of chunks. Quick: this happens in the control loop.

        Raises:
            AsdPolicyError: chunks that a flight cannot keep.
        """
        if draw.histories is None:
            raise AsdPolicyError(
                "a flight keeps chunks of low-dimensional observations that are given no committed "
                "actions; this policy's are others"
            )
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
        path = self._run / FOLDER / f"{episode.sampler}_seed{episode.seed}.npz"
        write_flight(path, header, _arrays(chunks))


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
        "observation": np.concatenate([d.histories for d, _ in chunks if d.histories is not None]),
        "stream": np.array(
            [pair for d, _ in chunks for pair in zip(d.seeds, d.numbers, strict=True)], np.int64
        ),
        "slopes": np.stack(slopes) if slopes else np.zeros((0, steps)),
    }


def write_flight(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file that is whole and on the disk, or not there."""
    packed = io.BytesIO()  # a zip file on a full disk would say so again when it is collected
    said = json.dumps(header, allow_nan=False)
    np.savez_compressed(packed, header=np.array(said), **arrays)
    with replacing(path) as file:
        file.write(packed.getbuffer())


def read_flight(path: Path) -> Flight:
    """The flight in a file.

    Raises:
        FlightDamagedError: it is missing, or is not what was written.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = dict(kept)
        header = json.loads(str(arrays.pop("header")))
        flight = Flight(header, **arrays)
    except DAMAGED_NPZ as error:
        raise FlightDamagedError(f"{path} cannot be read as a recorded flight: {error}") from error
    if header.get("format") != FORMAT or header.get("columns") != list(COLUMNS):
        raise FlightDamagedError(f"{path}: expected {FORMAT!r}, got {header.get('format')!r}")
    return flight
