"""What is known before a chunk is drawn: learned of a network, and measured of a machine.

Everything here comes from earlier chunks or from outside them, so that using it in a chunk keeps
that chunk's distribution (a statistic of a chunk's own later noise would not).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import InputError
from asd_policy.samplers.acceptance import Acceptance, choose_window
from asd_policy.samplers.costs import Costs
from asd_policy.samplers.result import Stats


class Learned:
    """Slopes and acceptance of one denoiser on a chain of one number of steps: stored with it.

    Attributes:
        chunks: that were learned from.
        acceptance: that windows are chosen by; None before any chunk. It is taken anew when the
            number of chunks has doubled, so that the window changes seldom while they are learned.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.acceptance: Acceptance | None = None
        self._taken = 0  # chunks that ``acceptance`` is from
        self._cross, self._square = np.zeros((2, 0))
        self._accepted, self._decided = np.zeros((2, 0))
        self._calls: dict[int, np.ndarray] = {}
        self._rows: dict[int, int] = {}
        self._slopes: tuple[int, Tensor] | None = None  # and the number of chunks they are from

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
            raise InputError(
                f"this calibration is for {len(self._cross)} steps, the schedule has {num_steps}"
            )

    def update(self, stats: Stats) -> None:
        """Learn from a finished chunk; of one that was drawn without learning, nothing.

        (Slopes are learned from drafts that were decided upon. Further ahead a guess is further
        off, where the network is no longer linear: slopes learned there made drafts worse than
        none.)
        """
        if stats.sums is None:
            return
        self._check_steps(stats.sums.shape[1])
        # A guess far off may have overflowed: of such a step nothing is learned.
        sums = np.asarray(stats.sums)
        cross, square = np.where(np.isfinite(sums).all(0), sums, 0.0)
        self._cross += cross
        self._square += square
        self._accepted += stats.accepted.sum(0).numpy()
        self._decided += stats.decided.sum(0).numpy()
        self.count_calls(stats)
        self.chunks += 1
        if self.chunks >= 2 * self._taken:
            self.settle()

    def count_calls(self, stats: Stats) -> None:
        """Take in how many calls a chunk's chains needed with its window: that, and no more."""
        num_steps = stats.accepted.shape[1]
        kept = self._calls.setdefault(stats.window, np.zeros(num_steps + 1, int))
        kept += np.bincount(stats.calls.numpy(), minlength=num_steps + 1)
        rows = self._rows.get(stats.window, 0)
        self._rows[stats.window] = rows + int(stats.evaluations.sum())

    def forget_acceptance(self) -> None:
        """Keep slopes alone: what was accepted without them says nothing of drafts with them."""
        self._accepted, self._decided = self._accepted * 0, self._decided * 0
        self._calls, self._rows = {}, {}

    def settle(self) -> None:
        """Let windows be chosen by all that is known now."""
        if not self.chunks:
            return
        calls = {window: counts.copy() for window, counts in self._calls.items()}
        counts = self._accepted.copy(), self._decided.copy()
        self.acceptance, self._taken = Acceptance(*counts, calls, dict(self._rows)), self.chunks

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; empty while nothing is known."""
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
    def from_dict(cls, values: Mapping[str, Any]) -> Learned:
        """Inverse of :meth:`to_dict`."""
        learned = cls()
        if values:
            learned.chunks = int(values["chunks"])
            names = ("slope_cross", "slope_square", "accepted", "decided")  # one for each step
            rows = np.array([values[name] for name in names], float)
            learned._cross, learned._square, learned._accepted, learned._decided = rows
            for window, known in values.get("windows", {}).items():  # none, before they were kept
                counts = np.zeros(len(learned._decided) + 1, int)
                for calls, chains in known["calls"].items():
                    counts[int(calls)] = chains
                learned._calls[int(window)] = counts
                learned._rows[int(window)] = int(known["evaluations"])
            learned.settle()
        return learned


@dataclass(eq=False)
class Calibration:
    """What is passed from one call to the next: kept of the network, and of this machine.

    One object serves one denoiser and one number of steps.

    Attributes:
        learned: slopes and acceptance; updated after each chunk, unless this is ``frozen``: then a
            chunk depends on its seed and window alone, not on those before it.
        costs: of the network on this machine; None while it has not been timed.
    """

    learned: Learned = field(default_factory=Learned)
    costs: Costs | None = None
    frozen: bool = False

    @property
    def chunks(self) -> int:
        """Chunks that were learned from."""
        return self.learned.chunks

    def slopes(self, num_steps: int) -> Tensor:
        """(K,) float64 α by step, as :meth:`Learned.slopes`."""
        return self.learned.slopes(num_steps)

    def window(self, batch: int, num_steps: int) -> int:
        """θ of a chunk for ``batch`` chains, as :func:`choose_window`; 1 is sequential."""
        return choose_window(self.learned.acceptance, self.costs, batch, num_steps)

    def to_dict(self) -> dict[str, Any]:
        """What was learned (not costs: those are the machine's), JSON-serialisable."""
        return self.learned.to_dict()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`; an empty mapping gives an empty calibration."""
        return cls(Learned.from_dict(values))
