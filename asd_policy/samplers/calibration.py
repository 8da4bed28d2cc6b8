"""What is learned of a network from chunks that are finished: slopes, acceptance, and the window.

Everything here comes from earlier chunks or from outside them, so that using it in a chunk keeps
that chunk's law (a statistic of a chunk's own later noise would not).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.samplers.costs import Calls, Costs, best_window, candidates
from asd_policy.samplers.result import Stats

DEFAULT_WINDOW = 16  # before anything has been measured
ENOUGH = 4  # chains with which a window's number of calls is known


class Calibration:
    """Slopes, and acceptance by step and by window, kept between chunks.

    One object serves one denoiser and one number of steps. It is updated after each chunk, unless
    it is ``frozen``: then a chunk depends on its seed and window alone, not on those before it.

    Attributes:
        chunks: that were learned from.
        costs: of the network on this machine; None while it has not been timed.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.frozen = False
        self._cross, self._square = np.zeros((2, 0))
        self._accepted, self._decided = np.zeros((2, 0))
        self._calls: dict[int, np.ndarray] = {}  # by window, chains by their number of calls
        self._rows: dict[int, int] = {}  # by window, evaluations of those chains
        self._slopes: tuple[int, Tensor] | None = None  # and the number of chunks they are from
        self._windows: dict[int, tuple[int, int]] = {}
        self.costs: Costs | None = None

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
        """Learn from a finished chunk; of one drawn with a frozen calibration, nothing.

        Args:
            sums: (2, K) Σ⟨Δx, Δx̂0⟩ and Σ‖Δx‖² over drafts that were decided upon; None if
                frozen. (Further ahead a guess is further off, where the network is no longer
                linear: slopes learned there made drafts worse than none.)
        """
        if sums is None:
            return
        self._check_steps(sums.shape[1])
        self._cross += sums[0]
        self._square += sums[1]
        self._accepted += stats.accepted.sum(0).numpy()
        self._decided += stats.decided.sum(0).numpy()
        self.count_calls(stats)
        self.chunks += 1

    def count_calls(self, stats: Stats) -> None:
        """Take in how many calls a chunk's chains needed with its window: that, and no more."""
        num_steps = stats.accepted.shape[1]
        kept = self._calls.setdefault(stats.window, np.zeros(num_steps + 1, int))
        kept += np.bincount(stats.calls.numpy(), minlength=num_steps + 1)
        rows = self._rows.get(stats.window, 0)
        self._rows[stats.window] = rows + int(stats.evaluations.sum())

    def learn(
        self, chunk: Callable[[int], Stats], window: int, chunks: int, others: Iterable[int] = ()
    ) -> None:
        """Learn from throw-away chunks: slopes with one window, calls with ``others`` as well.

        Args:
            chunk: draws one with this calibration and the window given, and returns what it cost.
            chunks: with each window. Acceptance in the first one is not kept, if there are more:
                it was drawn without slopes.
        """
        for number in range(chunks):
            chunk(window)
            if number == 0 and chunks > 1:
                self._accepted, self._decided = self._accepted * 0, self._decided * 0
                self._calls, self._rows = {}, {}
        before, self.frozen = self.frozen, True
        for other in sorted(set(others) - {window}):
            for _ in range(chunks):
                self.count_calls(chunk(other))
        self.frozen = before

    # ---- acceptance, and the window --------------------------------------------------------------

    def calls(self, window: int, num_steps: int) -> Calls:
        """What a chain takes with this window: measured with it, or foreseen from others."""
        counts = self._calls.get(window, np.zeros(0))
        chains = counts.sum()
        if chains < ENOUGH:
            return self._foreseen(window, num_steps)
        per_call = self._rows[window] / (counts @ np.arange(len(counts)))
        return Calls(1 - np.cumsum(counts)[:-1] / chains, float(per_call))

    def _foreseen(self, window: int, num_steps: int) -> Calls:
        """From acceptance by step, which is a little lower in wider windows than in others."""
        rounds, rows = self.expected_rounds(window, num_steps)
        beyond = np.clip(rounds - np.arange(num_steps), 0, 1)
        return Calls(beyond, rows / rounds)

    def expected_rounds(self, window: int, num_steps: int) -> tuple[float, float]:
        """Expected rounds and evaluations of a chain, from the acceptance by step of past chunks.

        Works back from the end: from step n, the round's window ends at the first rejection.
        """
        accept = self._acceptance(num_steps)
        rounds, rows = np.zeros(num_steps + 1), np.zeros(num_steps + 1)
        for n in range(num_steps - 1, -1, -1):
            width = min(window, num_steps - n)
            reach = np.concatenate([[1.0], np.cumprod(accept[n : n + width])])
            stop = reach[:-1] * (1 - accept[n : n + width])
            after = slice(n + 1, n + width + 1)
            rounds[n] = 1 + stop @ rounds[after] + reach[-1] * rounds[n + width]
            rows[n] = width + stop @ rows[after] + reach[-1] * rows[n + width]
        return float(rounds[0]), float(rows[0])

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
        """θ with the least expected time of a chunk for ``batch`` chains; 1 is sequential.

        A function of costs and acceptance, and of nothing that happens meanwhile. While acceptance
        is being learned, it is chosen anew when the number of finished chunks has doubled.
        """
        if not self.chunks or self.costs is None:
            return min(DEFAULT_WINDOW, num_steps)
        chosen = self._windows.get(batch)
        if chosen is None or self.chunks >= 2 * chosen[1]:
            known = {window: self.calls(window, num_steps) for window in candidates(num_steps)}
            chosen = best_window(known, self.costs, batch, num_steps), self.chunks
            self._windows[batch] = chosen
        return chosen[0]

    def use_costs(self, costs: Costs) -> None:
        """Choose windows by these costs from here on."""
        self.costs, self._windows = costs, {}

    # ---- storage ---------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Slopes and acceptance (not costs: those are the machine's), JSON-serialisable."""
        if not self.chunks:
            return {}
        windows = {
            str(window): {
                "calls": {str(n): int(counts[n]) for n in np.flatnonzero(counts)},
                "evaluations": self._rows[window],
            }
            for window, counts in sorted(self._calls.items())
        }
        return {
            "chunks": self.chunks,
            "slope_cross": [round(v, 6) for v in self._cross.tolist()],
            "slope_square": [round(v, 6) for v in self._square.tolist()],
            "accepted": [int(v) for v in self._accepted],
            "decided": [int(v) for v in self._decided],
            **({"windows": windows} if windows else {}),
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
            for window, known in values.get("windows", {}).items():  # none, before they were kept
                counts = np.zeros(len(calibration._decided) + 1, int)
                for calls, chains in known["calls"].items():
                    counts[int(calls)] = chains
                calibration._calls[int(window)] = counts
                calibration._rows[int(window)] = int(known["evaluations"])
        return calibration
