"""Whether two sets of chunks have one distribution, given the observation.

Every test compares within each observation and only then combines, so that what differs between
observations is not mistaken for a difference between samplers. Differences that all observations
share are seen best by projections pooled over them; such as are opposite, or at one of them alone,
by the same projections tested at each and combined.

Chunks have atoms: a denoiser clipped to ±1 returns exactly ±1 with positive probability. Values
that agree to RESOLUTION are therefore ties (rounding errors of two implementations must not be
told apart either), and every statistic is right with ties: the Kolmogorov–Smirnov distance is
read at the end of each group of ties, where its p-value is at most conservative, and permutations
count those that reach the observed value, not only those that exceed it.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from asd_policy.eval.studies.verify.whole_chunks import (
    WHOLE_CHUNK_TESTS,
    Test,
    permutation_p,
    whole_chunk_tests,
)

RANDOM_DIRECTIONS = 16
RESOLUTION = 1e-5  # of actions in [−1, 1]: closer values are the same value
LEAST_DEVIATION = 1e-3  # standard deviations below this are not magnified
Array = np.ndarray


def compare(
    sample: Array, reference: Array, gripper: int | None, alpha: float, seed: int, others: int = 0
) -> list[Test]:
    """Every test of two sets of chunks, uncorrected.

    Args:
        sample, reference: (M, n, Tp, Da) and (M, m, Tp, Da) actions in [−1, 1], n and m chunks at
            each of M observations.
        gripper: column of the action whose sign tells modes apart; None leaves that test out.
        alpha: what the corrected p-values will be compared with: it sets how many permutations are
            needed. seed: of random directions and permutations. others: tests that it is corrected
            for, beside these.
    """
    rng = np.random.default_rng(seed)
    sample, reference = (np.round(x.astype(np.float64) / RESOLUTION) for x in (sample, reference))
    sample, reference = sample * RESOLUTION, reference * RESOLUTION
    names, ours, theirs = projections(sample, reference, rng)
    distances, p_values = kolmogorov_smirnov(ours, theirs)
    found = [
        Test(name, family, float(distance), float(p))
        for (name, family), distance, p in zip(names, distances, p_values, strict=True)
    ]
    if len(sample) > 1:
        combined = by_observation(ours, theirs)
        found += [
            Test(f"{name}, each observation apart", "each observation apart", float(s), float(p))
            for (name, _), s, p in zip(names, *combined, strict=True)
        ]
    permutations = permutations_needed(len(found) + WHOLE_CHUNK_TESTS + 1 + others, alpha)
    found += whole_chunk_tests(*_standardized(sample, reference), permutations, rng)
    if gripper is not None:
        found.append(_modes(sample, reference, gripper, permutations, rng))
    return found


def permutations_needed(tests: int, alpha: float) -> int:
    """So many that the least p-value they can give is rejected after correction."""
    return int(np.ceil(1.2 * tests / alpha))


# ---- projections --------------------------------------------------------------------------------


def _standardized(sample: Array, reference: Array) -> tuple[Array, Array]:
    """(M, n, D) each: minus the observation's mean, in standard deviations of each number, both
    taken over the two samples together (and so the same whichever label a chunk has)."""
    both = np.concatenate([sample, reference], axis=1)
    both = both.reshape(*both.shape[:2], -1)
    centred = both - both.mean(1, keepdims=True)
    scale = np.maximum(np.sqrt(np.square(centred).mean((0, 1))), LEAST_DEVIATION)
    ours, theirs = np.split(centred / scale, [sample.shape[1]], axis=1)
    return ours, theirs


def projections(
    sample: Array, reference: Array, rng: np.random.Generator
) -> tuple[list[tuple[str, str]], Array, Array]:
    """(name, family) of P numbers that sum a chunk up, and their values (M, n, P), (M, m, P)."""
    ours, theirs = _standardized(sample, reference)
    directions = rng.normal(size=(ours.shape[2], RANDOM_DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    names = [(f"random direction {i}", "random directions") for i in range(RANDOM_DIRECTIONS)]
    columns = range(sample.shape[3])
    names += [(f"action[{j}], mean of the chunk", "mean of each action number") for j in columns]
    names += [(f"action[{j}], last minus first", "change of each action number") for j in columns]
    names += [("distance from the mean", "spread")]
    values = [
        np.concatenate(
            [
                standard @ directions,
                raw.mean(2),
                raw[:, :, -1] - raw[:, :, 0],
                np.linalg.norm(standard, axis=2, keepdims=True),
            ],
            axis=2,
        )
        for standard, raw in ((ours, sample), (theirs, reference))
    ]
    return names, np.round(values[0], 9), np.round(values[1], 9)


def kolmogorov_smirnov(sample: Array, reference: Array) -> tuple[Array, Array]:
    """Two-sample tests of (M, n, P) against (M, m, P), stratified by the M observations.

    Values are replaced by their ranks within their observation, and the distance is that of the
    two distribution functions of ranks, over all observations. With equal n at each observation
    the limit is the supremum of one Brownian bridge, as without strata (a mean of independent
    bridges, rescaled); its p-value is conservative for small samples and with ties.

    Returns:
        (P,) distances and p-values.
    """
    distance = np.abs(rank_differences(sample, reference)).max(1)
    return distance, stats.kstwobign.sf(np.sqrt(_effective(sample, reference)) * distance)


def by_observation(sample: Array, reference: Array) -> tuple[Array, Array]:
    """Two-sample tests of (M, n, P) against (M, m, P) at each observation, their p-values combined
    by Fisher's method (given the distribution they are independent, since the noise is).

    Returns:
        (P,) −2·Σ log p, which is χ² with 2M degrees of freedom or smaller, and its p-values.
    """
    each = [
        kolmogorov_smirnov(ours[None], theirs[None])[1]
        for ours, theirs in zip(sample, reference, strict=True)
    ]
    statistic = -2 * np.log(np.maximum(each, 1e-300)).sum(0)
    return statistic, stats.chi2.sf(statistic, 2 * len(each))


def rank_differences(sample: Array, reference: Array) -> Array:
    """(P, n+m+1): by how much the sample's distribution function of ranks exceeds the reference's,
    at each rank within an observation."""
    strata, n, count = sample.shape
    m = reference.shape[1]
    pooled = np.concatenate([sample, reference], axis=1)
    ranks = stats.rankdata(pooled, method="max", axis=1).astype(np.int64)
    weights = np.where(np.arange(n + m) < n, 1 / (strata * n), -1 / (strata * m))
    weights = np.broadcast_to(weights[None, :, None], pooled.shape)
    cells = ranks + (n + m + 1) * np.arange(count)
    jumps = np.bincount(cells.ravel(), weights.ravel(), minlength=count * (n + m + 1))
    return np.round(jumps.reshape(count, n + m + 1).cumsum(1), 12)


def critical_distance(sample: Array, reference: Array, level: float) -> float:
    """The Kolmogorov–Smirnov distance whose p-value is ``level``."""
    return float(stats.kstwobign.isf(level) / np.sqrt(_effective(sample, reference)))


def _effective(sample: Array, reference: Array) -> float:
    strata, n, m = len(sample), sample.shape[1], reference.shape[1]
    return strata * n * m / (n + m)


# ---- modes --------------------------------------------------------------------------------------


def mode_counts(chunks: Array, gripper: int) -> Array:
    """(M, n, Tp, Da) → (M, 4) chunks by the gripper's sign in the first and the last action."""
    closed = chunks[:, :, :, gripper] > 0
    mode = 2 * closed[:, :, 0] + closed[:, :, -1]
    return (mode[:, :, None] == np.arange(4)).sum(1)


def _modes(
    sample: Array, reference: Array, gripper: int, permutations: int, rng: np.random.Generator
) -> Test:
    """χ² of the gripper's modes, summed over observations. Its p-value is by permutation, which
    needs no least count in a cell: permuted counts are hypergeometric."""
    ours, theirs = mode_counts(sample, gripper), mode_counts(reference, gripper)
    totals = ours + theirs
    n, m = sample.shape[1], reference.shape[1]
    expected = totals * (n / (n + m))
    inverse = np.where(totals > 0, (n + m) ** 2 / (n * m * np.maximum(totals, 1)), 0.0)

    def value(counts: Array) -> Array:
        return (np.square(counts - expected) * inverse).sum((-1, -2))

    def permuted(count: int) -> Array:
        drawn = [rng.multivariate_hypergeometric(row, n, size=count) for row in totals]
        return value(np.stack(drawn, axis=1))

    observed = float(value(ours))
    p = permutation_p(observed - 1e-9, permuted, permutations)
    return Test("gripper modes", "gripper modes", observed, p)
