"""What a sampler learns from chunks it has finished: slopes, acceptance, cost, and the window.

Everything here comes from earlier chunks or from outside them, so that using it in a chunk keeps
that chunk's law (a statistic of a chunk's own later noise would not).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.samplers.result import Stats

DEFAULT_WINDOW = 16  # before anything has been measured
TRIAL = 4  # chunks in which a window must prove as fast as expected
CANDIDATES = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 100, 128)


class Calibration:
    """Slopes, acceptance by step and network cost, kept between chunks.

    One object serves one denoiser and one number of steps. It is updated after each chunk, unless
    it is ``frozen``: then a chunk depends on its seed and window alone, not on those before it.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.frozen = False
        self._cross, self._square = np.zeros((2, 0))
        self._accepted, self._decided = np.zeros((2, 0))
        self._costs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._overhead: float | None = None
        self._slopes: tuple[int, Tensor] | None = None  # and the number of chunks they are from
        self._windows: dict[int, tuple[int, int]] = {}
        self._doubted: set[int] = set()  # batches whose costs were measured again
        self._times: dict[tuple[int, int], deque[float]] = {}  # seconds of chunks, by batch, window

    def slopes(self, num_steps: int) -> Tensor:
        """(K,) float64 α by step; 0 where nothing is known yet. ValueError for another K.

        Least squares of Δx̂0 on Δx between two evaluations of a step, α = Σ⟨Δx, Δx̂0⟩ / Σ‖Δx‖²,
        evened out over neighbouring steps, a few of which a chunk decides upon with a memory.
        """
        self._check_steps(num_steps)
        if self._slopes is not None and self._slopes[0] == self.chunks:
            return self._slopes[1]
        width = max(1.0, 0.04 * num_steps)
        reach = np.arange(-int(3 * width), int(3 * width) + 1)
        kernel = np.exp(-0.5 * (reach / width) ** 2)
        cross, square = (
            np.convolve(np.pad(total, len(reach) // 2), kernel, "valid")
            for total in (self._cross, self._square)
        )
        slopes = torch.from_numpy(np.where(square > 0, cross / np.maximum(square, 1e-30), 0.0))
        self._slopes = self.chunks, slopes
        return slopes

    def _check_steps(self, num_steps: int) -> None:
        """Take the number of steps on first use; afterwards it is fixed."""
        if not len(self._cross):
            self._cross, self._square = np.zeros((2, num_steps))
            self._accepted, self._decided = np.zeros((2, num_steps))
        if len(self._cross) != num_steps:
            raise ValueError(
                f"this calibration is for {len(self._cross)} steps, the schedule has {num_steps}"
            )

    def update(self, sums: np.ndarray | None, stats: Stats) -> None:
        """Take in a finished chunk; of one drawn with a frozen calibration, only its overhead.

        Args:
            sums: (2, K) Σ⟨Δx, Δx̂0⟩ and Σ‖Δx‖² over drafts that were decided upon. (Further ahead
                a guess is further off, where the network is no longer linear: slopes learned
                there made drafts worse than none.)
        """
        rounds = max(1, int(stats.calls.max()))
        overhead = (sum(stats.seconds.values()) - stats.seconds["network"]) / rounds
        # The least seen: the first chunks also pay for warming up.
        self._overhead = overhead if self._overhead is None else min(overhead, self._overhead)
        key = _bucket(len(stats.calls)), stats.window
        self._times.setdefault(key, deque(maxlen=TRIAL)).append(sum(stats.seconds.values()))
        if sums is None:
            return
        self._check_steps(sums.shape[1])
        self._cross += sums[0]
        self._square += sums[1]
        self._accepted += stats.accepted.sum(0).numpy()
        self._decided += stats.decided.sum(0).numpy()
        self.chunks += 1

    def forget_acceptance(self) -> None:
        """Keep the slopes, drop the acceptance: it was measured before there were slopes."""
        self._accepted, self._decided = self._accepted * 0, self._decided * 0

    # ---- cost of a network call, by rows in the batch -------------------------------------------

    def measure_costs(self, batch: int, num_steps: int, measure: Callable[[int], float]) -> None:
        """``measure(rows)`` seconds at the numbers of rows that windows for ``batch`` chains need.

        Batches are rounded up to a power of two. Larger numbers of rows are extrapolated once
        the cost of one more has settled, or a call takes a quarter of a second.
        """
        batch = _bucket(batch)
        rows, seconds = [], []
        for width in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128):
            if width > num_steps and width > 1:
                break
            rows.append(batch * width)
            seconds.append(measure(batch * width))
            if _settled(rows, seconds) or (len(rows) > 3 and seconds[-1] > 0.25):
                break
        # No batch costs more than a larger one: an interruption shows, and is not carried upwards.
        self._costs[batch] = np.array(rows, float), np.minimum.accumulate(seconds[::-1])[::-1]

    def has_costs(self, batch: int) -> bool:
        """Whether :meth:`measure_costs` has been called for this many chains."""
        return _bucket(batch) in self._costs

    def cost(self, batch: int, width: float | np.ndarray) -> np.ndarray:
        """Seconds of a call on ``batch``·``width`` rows, interpolated or linearly extended."""
        rows, seconds = self._costs[_bucket(batch)]
        wanted = np.asarray(width, float) * batch
        inside = np.interp(wanted, rows, seconds)
        if len(rows) < 2:
            return inside * np.maximum(1, wanted / rows[-1])
        tail = (seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2])
        return inside + np.maximum(0, wanted - rows[-1]) * max(tail, 0.0)

    # ---- the window ------------------------------------------------------------------------------

    def expected_rounds(self, window: int, num_steps: int, cost: np.ndarray) -> tuple[float, float]:
        """Expected rounds and seconds of a chunk, from the acceptance by step of past chunks.

        Works back from the end: from step n, the round's window ends at the first rejection.
        ``cost``: (window+1,) seconds of a round that evaluates that many steps.
        """
        accept = self._acceptance(num_steps)
        rounds, seconds = np.zeros(num_steps + 1), np.zeros(num_steps + 1)
        for n in range(num_steps - 1, -1, -1):
            width = min(window, num_steps - n)
            reach = np.concatenate([[1.0], np.cumprod(accept[n : n + width])])
            stop = reach[:-1] * (1 - accept[n : n + width])
            after = slice(n + 1, n + width + 1)
            rounds[n] = 1 + stop @ rounds[after] + reach[-1] * rounds[n + width]
            seconds[n] = cost[width] + stop @ seconds[after] + reach[-1] * seconds[n + width]
        return float(rounds[0]), float(seconds[0])

    def chance_of_the_end(self, num_steps: int, window: int) -> np.ndarray:
        """(K+1,) how probably a round from each step is the chunk's last, by past acceptance."""
        self._check_steps(num_steps)
        to_the_end = np.cumprod(self._acceptance(num_steps)[::-1])[::-1]
        within = np.arange(num_steps) + window >= num_steps
        return np.append(np.where(within, to_the_end, 0.0), 1.0)

    def _acceptance(self, num_steps: int) -> np.ndarray:
        """(K,) by step; of the last, which is never rejected, 1."""
        accept = (self._accepted + 2.0 * self._prior()) / (self._decided + 2.0)
        return np.append(accept[: num_steps - 1], 1.0)

    def _prior(self) -> float:
        total = self._decided.sum()
        return float(self._accepted.sum() / total) if total else 0.9

    def window(self, batch: int, num_steps: int) -> int:
        """θ that minimises the expected time of a chunk for ``batch`` chains; 1 is sequential.

        Chosen anew when the number of finished chunks has doubled. If none of several chunks was
        as fast as the sequential sampler's network calls, costs are to be measured again; if that
        happens a second time, sequential it is.
        """
        if not self.chunks or not self.has_costs(batch):
            return min(DEFAULT_WINDOW, num_steps)
        batch = _bucket(batch)
        chosen = self._windows.get(batch)
        if chosen is None or self.chunks >= 2 * chosen[1]:
            chosen = (self._best_window(batch, num_steps), self.chunks)
        elif self._disappoints(batch, chosen[0], num_steps):
            if batch not in self._doubted:  # the machine may have become busy since
                self._doubted.add(batch)
                del self._costs[batch], self._times[batch, chosen[0]], self._windows[batch]
                return chosen[0]
            chosen = (1, self.chunks)
        self._windows[batch] = chosen
        return chosen[0]

    def _disappoints(self, batch: int, window: int, num_steps: int) -> bool:
        times = self._times.get((batch, window), ())
        sequential = num_steps * float(self.cost(batch, 1))
        return window > 1 and len(times) == TRIAL and min(times) > sequential

    def _best_window(self, batch: int, num_steps: int) -> int:
        sequential = num_steps * float(self.cost(batch, 1))
        best, least = 1, 0.97 * sequential  # a tie goes to the sequential sampler
        for window in CANDIDATES:
            if window > num_steps:
                break
            cost = self.cost(batch, np.arange(window + 1)) + (self._overhead or 0.0)
            _, seconds = self.expected_rounds(window, num_steps, cost)
            if seconds < least:
                best, least = window, seconds
        return best

    # ---- storage ---------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Slopes and acceptance (not costs: those are the machine's), JSON-serialisable."""
        if not self.chunks:
            return {}
        return {
            "chunks": self.chunks,
            "slope_cross": [round(v, 6) for v in self._cross.tolist()],
            "slope_square": [round(v, 6) for v in self._square.tolist()],
            "accepted": [int(v) for v in self._accepted],
            "decided": [int(v) for v in self._decided],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`; an empty mapping gives an empty calibration."""
        calibration = cls()
        if values:
            calibration.chunks = int(values["chunks"])
            calibration._cross = np.array(values["slope_cross"], float)
            calibration._square = np.array(values["slope_square"], float)
            calibration._accepted = np.array(values["accepted"], float)
            calibration._decided = np.array(values["decided"], float)
        return calibration


def _bucket(batch: int) -> int:
    """The next power of two, so that a changing number of chains is measured a few times only."""
    return 1 << (batch - 1).bit_length()


def _settled(rows: list[int], seconds: list[float]) -> bool:
    """Whether time is already proportional to rows, so that larger batches need no measuring."""
    if len(rows) < 3 or seconds[-1] < 0.02:
        return False
    return seconds[-1] / rows[-1] > 0.9 * seconds[-2] / rows[-2]
