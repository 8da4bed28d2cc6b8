"""The smallest shift that the tests catch: found by putting shifts in and looking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from asd_policy.eval.studies.verify.equality import (
    LEAST_DEVIATION,
    RESOLUTION,
    Array,
    kolmogorov_smirnov,
)

REPEATS = 100
POWER = 0.9
LARGEST = 8.0  # standard deviations; a shift that is not caught up to here is None
LEAST = 1e-3


@dataclass(frozen=True)
class Detectable:
    """Of one action number: the smallest shift, over a whole chunk, that is caught with
    probability POWER, in its standard deviations; None where none up to LARGEST is.

    ``deviation``: its standard deviation given the observation, of actions in [−1, 1].
    """

    column: int
    deviation: float
    shift: float | None


def smallest_shifts(reference: Array, tests: int, alpha: float, seed: int) -> list[Detectable]:
    """What the tests would have caught, action number by action number.

    Two samples are drawn, with replacement, from the reference chunks of each observation, the
    shift is added to one of them, and the test of that number's mean over the chunk is asked
    whether it rejects when corrected for all ``tests``. The other tests can only add to that, so
    the true power is at least this.

    Args:
        reference: (M, n, Tp, Da) chunks. tests: number that alpha is shared among.
    """
    rng = np.random.default_rng(seed)
    strata, n, _, columns = reference.shape
    picks = rng.integers(n, size=(2, strata, n, REPEATS))
    rows = np.arange(strata)[:, None, None]
    found = []
    for column in range(columns):
        values = reference[:, :, :, column].astype(np.float64)
        deviation = max(float(np.sqrt(values.var(axis=1).mean())), LEAST_DEVIATION)
        means = values.mean(2)
        ours, theirs = means[rows, picks[0]], means[rows, picks[1]]

        power = partial(_power, ours, theirs, deviation, alpha / tests)
        found.append(Detectable(column, deviation, _least(power, 2 * RESOLUTION / deviation)))
    return found


def _power(ours: Array, theirs: Array, unit: float, level: float, shift: float) -> float:
    """Share of the repeats in which a shift of one sample is seen."""
    _, p = kolmogorov_smirnov(ours + shift * unit, theirs)
    return float((p <= level).mean())


def _least(power: Callable[[float], float], visible: float) -> float | None:
    """Bisection, on a logarithmic scale, for the shift at which the power is reached.

    Args:
        visible: less is lost where the tests round.
    """
    if power(LARGEST) < POWER:
        return None
    low, high = max(LEAST, visible), LARGEST
    if power(low) >= POWER:
        return low
    while high / low > 1.03:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def worst(found: list[Detectable]) -> Detectable:
    """The action number in which a shift is hardest to see."""
    return max(found, key=lambda one: np.inf if one.shift is None else one.shift)
