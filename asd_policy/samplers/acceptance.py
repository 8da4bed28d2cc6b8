"""How often drafts were accepted, and the window that follows from it: pure functions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from asd_policy.samplers.costs import Calls, Costs, best_window, candidates

DEFAULT_WINDOW = 16  # before anything has been measured
ENOUGH = 4  # chains with which a window's number of calls begins to be known
# Relative standard deviations: of a chain's calls, before any were counted; of a window's mean from
# the course over windows (1.3% on the five shipped policies); of what was foreseen, at any window
# and from one to e times it.
CHAIN, WINDOW, LEVEL, TILT = 0.13, 0.02, 0.3, 0.05


@dataclass(frozen=True, eq=False)
class Acceptance:
    """What finished chunks told of the drafts of one network's chain of K steps.

    Attributes:
        accepted, decided: (K,) drafts of each step that were accepted, and decided upon.
        calls: by window, (K+1,) chains by their number of calls. rows: by window, evaluations of
            those chains.
    """

    accepted: np.ndarray
    decided: np.ndarray
    calls: Mapping[int, np.ndarray] = field(default_factory=dict)
    rows: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def unknown(cls, num_steps: int) -> Acceptance:
        """Before any chunk."""
        return cls(*np.zeros((2, num_steps)))

    @classmethod
    @functools.cache  # one object, of which :func:`choose_window` then knows what it chose
    def typical(cls, num_steps: int) -> Acceptance:
        """Before any chunk: a chain has about 2 K^⅓ rejections, two fifths of them in its last
        tenth.

        (Small pixel DDPMs had 7, 9, 11, 15 and 21 for K = 50, 100, 200, 400 and 1000, and of the
        1000 steps' 34 and 43 % there; robots' policies 9 for 100, and 39 %.)
        """
        late = np.arange(num_steps) >= num_steps - max(1, num_steps // 10)
        share = np.where(late, 0.4 / late.sum(), 0.6 / max(1, (~late).sum()))
        rejected = np.minimum(2 * num_steps ** (1 / 3) * share, 0.5)
        decided = np.full(num_steps, 1000.0)  # as of many chains: what is said, not what is likely
        return cls(decided * (1 - rejected), decided)

    def calls_of(self, window: int) -> Calls:
        """What a chain takes with this window.

        Of a few chains, the mean of their calls is off by a few percent; of nine windows, that with
        the luckiest chains would be chosen. So a window's mean is drawn to what all windows say of
        it, the less the more chains it was counted of.
        """
        level, tilt = self._course
        expected, rows = self.expected_rounds(window)
        course = level + tilt * np.log(window)
        counts = self.calls.get(window, np.zeros(0))
        chains = counts.sum()
        if chains < ENOUGH:
            mean = expected * np.exp(course)
            return Calls(np.clip(mean - np.arange(len(self.decided)), 0, 1), rows / expected)
        total = float(counts @ np.arange(len(counts)))
        counted = np.log(total / chains / expected)
        share = WINDOW**2 / (WINDOW**2 + _variance(counts))
        ratio = np.exp(share * counted + (1 - share) * course - counted)  # to what was counted
        beyond = np.append(1 - np.cumsum(counts)[:-1] / chains, 0.0)
        number = np.arange(len(beyond))
        return Calls(np.interp(number[:-1] / ratio, number, beyond), self.rows[window] / total)

    @functools.cached_property
    def _course(self) -> np.ndarray:
        """(2,) a, b: counted calls are about exp(a + b·log θ) times those foreseen from acceptance
        by step, which is another in wider windows."""
        known = {w: counts for w, counts in self.calls.items() if counts.sum() >= ENOUGH}
        inverse, weighed = np.diag([LEVEL**-2, TILT**-2]), np.zeros(2)
        for window, counts in known.items():
            mean = counts @ np.arange(len(counts)) / counts.sum()
            given = np.array([1.0, np.log(window)])
            precision = 1 / (WINDOW**2 + _variance(counts))
            inverse += precision * np.outer(given, given)
            weighed += precision * given * np.log(mean / self.expected_rounds(window)[0])
        return np.linalg.solve(inverse, weighed)

    def expected_rounds(self, window: int) -> tuple[float, float]:
        """Expected rounds and evaluations of a chain, from the acceptance by step.

        Works back from the end: from step n, the round's window ends at the first rejection. The
        sum over where that is follows from the one of step n + 1, which has all but one of its
        terms: a thousand steps take a millisecond for each window.
        """
        num_steps = len(self.decided)
        chances = np.append(self.by_step(), np.ones(window))  # beyond the end nothing is left
        logs = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(chances, 1e-30)))])
        to = logs[window : window + num_steps]
        whole = np.exp(to - logs[:num_steps]).tolist()  # all of the window is accepted
        rest = np.exp(to - logs[1 : num_steps + 1]).tolist()  # all but its first
        accept = chances.tolist()
        rounds, rows = np.zeros((2, num_steps + window + 1)).tolist()
        more_rounds = more_rows = 0.0  # after a rejection
        for n in range(num_steps - 1, -1, -1):
            end = n + window
            last = rest[n] * (1 - accept[end])
            more_rounds = (1 - accept[n]) * rounds[n + 1] + accept[n] * (
                more_rounds - last * rounds[end + 1]
            )
            more_rows = (1 - accept[n]) * rows[n + 1] + accept[n] * (
                more_rows - last * rows[end + 1]
            )
            rounds[n] = 1 + more_rounds + whole[n] * rounds[end]
            rows[n] = min(window, num_steps - n) + more_rows + whole[n] * rows[end]
        return rounds[0], rows[0]

    def chance_of_the_end(self, window: int) -> np.ndarray:
        """(K+1,) how probably a round from each step is the chunk's last."""
        num_steps = len(self.decided)
        to_the_end = np.cumprod(self.by_step()[::-1])[::-1]
        within = np.arange(num_steps) + window >= num_steps
        return np.append(np.where(within, to_the_end, 0.0), 1.0)

    def by_step(self) -> np.ndarray:
        """(K,) how probably a draft is accepted; of the last step, which is never rejected, 1."""
        total = self.decided.sum()
        prior = float(self.accepted.sum() / total) if total else 0.9
        accept = (self.accepted + 2.0 * prior) / (self.decided + 2.0)
        return np.append(accept[:-1], 1.0)


def _variance(counts: np.ndarray) -> float:
    """Of the mean of the calls counted, relative: chains differ more with wider windows."""
    number, chains = np.arange(len(counts)), counts.sum()
    mean = counts @ number / chains
    squares = counts @ (number / mean - 1) ** 2 + ENOUGH * CHAIN**2
    return float(squares / (chains + ENOUGH) / chains)


@functools.lru_cache(maxsize=64)
def choose_window(
    acceptance: Acceptance | None, costs: Costs | None, batch: int, num_steps: int
) -> int:
    """θ with the least expected time of a chunk for ``batch`` chains; 1 is sequential.

    A function of what was learned of the network and of what was measured of the machine, and of
    nothing that happens meanwhile. While either is unknown, ``DEFAULT_WINDOW``.
    """
    if acceptance is None or costs is None:
        return min(DEFAULT_WINDOW, num_steps)
    known = {window: acceptance.calls_of(window) for window in candidates(num_steps)}
    return best_window(known, costs, batch, num_steps)
