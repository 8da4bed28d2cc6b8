"""Statistics of paired episodes: difference of success, ratios of cost."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from asd_policy.eval.stats.basics import difference_interval

RESAMPLES = 2000
_POWER_80 = 0.8416  # normal quantile: so many standard errors to spare for a power of 80%
Array = np.ndarray


def episodes_needed(only_a: int, only_b: int, n: int, margin: float) -> int | None:
    """Pairs after which, at these rates, the 90% interval lies above −margin with a chance of 80%;
    None if the observed difference itself is not above it, or a hundred thousand would not do."""
    difference, discordant = (only_a - only_b) / n, (only_a + only_b) / n
    if difference <= -margin:
        return None

    def enough(pairs: int) -> bool:
        scaled = round(only_a * pairs / n), round(only_b * pairs / n)
        error = math.sqrt(max(discordant - difference**2, 0.0) / pairs)
        return difference_interval(*scaled, pairs, 0.90)[0] - _POWER_80 * error > -margin

    pairs = n
    while not enough(pairs):
        pairs = math.ceil(1.1 * pairs)
        if pairs > 100_000:
            return None
    return pairs


def ratio_of(
    a: Sequence[Array], b: Sequence[Array], quantile: float | None, seed: int, shared: bool = False
) -> dict[str, float | list[float] | None]:
    """A quantile (None: the mean) of a's chunks over that of b's, with a 95% bootstrap interval.

    Whole episodes are resampled, both samplers' of a seed together: chunks within an episode
    depend on each other, and so do the episodes of a seed.

    Args:
        a, b: values of the chunks of each episode, in the order of the seeds. shared: several
            episodes waited for the same call, and so are no independent observations: no interval.
    """
    if not sum(map(len, a)) or not sum(map(len, b)):
        return {"a": None, "b": None, "ratio": None, "ci95": None}
    count = len(a)
    alone = count > 1 and not shared
    picks = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    whole = np.arange(count)[None]
    first, second = (float(_summaries(side, whole, quantile)[0]) for side in (a, b))
    above, below = (_summaries(side, picks, quantile) for side in (a, b))
    usable = np.isfinite(above) & (below > 0)
    found = above[usable] / below[usable]
    return {
        "a": first,
        "b": second,
        "ratio": first / second if second else None,
        "ci95": np.quantile(found, [0.025, 0.975]).tolist() if alone and len(found) else None,
    }


def _summaries(episodes: Sequence[Array], picks: Array, quantile: float | None) -> Array:
    """(R,) means or quantiles of the chunks of (R, E) episodes; NaN where there is no chunk."""
    resampled = (np.concatenate([episodes[i] for i in row]) for row in picks)
    of = np.mean if quantile is None else functools.partial(np.quantile, q=quantile)
    return np.array([of(chunks) if len(chunks) else np.nan for chunks in resampled])
