"""What a round costs on one machine, and the window that makes a chunk cheapest: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asd_policy.errors import InputError

WIDEST = 64  # further ahead, memories mislead more than they help: more rows, and more calls
CANDIDATES = (4, 6, 8, 12, 16, 24, 32, 48, WIDEST)
TIE = 1.02  # of two windows that take as long, the narrower: fewer rows, shorter tails


@dataclass(frozen=True)
class Costs:
    """Seconds of one network call by the rows in its batch, measured once for a machine.

    Attributes:
        rows: numbers of rows that were timed, rising. seconds: of a call on each.
        overhead: seconds of a round apart from its network call.
        whole: whether rounds keep the rows of chains that are done (a captured graph's do).
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    overhead: float = 0.0
    whole: bool = False

    def call(self, rows: np.ndarray | float) -> np.ndarray:
        """Seconds of a call on ``rows`` rows: interpolated, and extended along the last stretch."""
        wanted = np.asarray(rows, float)
        inside = np.interp(wanted, self.rows, self.seconds)
        if len(self.rows) < 2:
            return inside * np.maximum(1, wanted / self.rows[-1])
        tail = (self.seconds[-1] - self.seconds[-2]) / (self.rows[-1] - self.rows[-2])
        return inside + np.maximum(0, wanted - self.rows[-1]) * max(tail, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Costs:
        """Inverse of :meth:`to_dict`; KeyError, TypeError or ValueError for anything else."""
        rows, seconds = (np.array(values[name], float) for name in ("rows", "seconds"))
        overhead = float(values["overhead"])
        finite = np.isfinite([*rows, *seconds, overhead]).all()
        if not (len(rows) and len(rows) == len(seconds) and finite and (np.diff(rows) > 0).all()):
            raise InputError(f"these are no costs: {values}")
        whole = bool(values["whole"])
        return cls(tuple(map(int, rows)), tuple(seconds.tolist()), overhead, whole)


@dataclass(frozen=True)
class Calls:
    """How many network calls a chain takes with one window, and the rows of a call.

    Attributes:
        beyond: (R,) how probably a chain takes more than 0, 1, … R−1 calls.
        rows: mean rows of one chain in a call that it takes part in.
    """

    beyond: np.ndarray
    rows: float


def expected_seconds(window: int, calls: Calls, costs: Costs, batch: int) -> float:
    """Of a chunk for ``batch`` chains that share their calls: as many as the slowest chain takes,
    each on the rows of the chains that are not done yet."""
    someone = 1 - (1 - calls.beyond) ** batch
    left = batch * calls.beyond / np.maximum(someone, 1e-12)
    rows = np.full_like(left, batch * window) if costs.whole else left * calls.rows
    return float(someone @ (costs.call(rows) + costs.overhead))


def best_window(calls: Mapping[int, Calls], costs: Costs, batch: int, num_steps: int) -> int:
    """θ with the least expected time of a chunk for ``batch`` chains; 1 is sequential sampling.

    Args:
        calls: of each window that may be chosen, as measured with that window.
        costs: of the network. num_steps: K, the calls of the sequential sampler.
    """
    seconds = {w: expected_seconds(w, known, costs, batch) for w, known in sorted(calls.items())}
    least = min(seconds.values())
    if least > 0.97 * num_steps * float(costs.call(batch)):  # a tie goes to the sequential sampler
        return 1
    return next(window for window, time in seconds.items() if time <= TIE * least)


def candidates(num_steps: int) -> list[int]:
    """The windows to choose among for a chain of K steps, rising."""
    return sorted({min(window, num_steps) for window in CANDIDATES})
