"""Tests of chunks as vectors: energy distance, means, second moments, and the rare ones.

All are by permutation of the labels within each observation, so that no law of a statistic is
assumed. The rare chunks are those outside the bulk: far from the mean, or with few others near;
both are asked of the two samples together, whichever label a chunk has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

ENERGY_CHUNKS = 250  # of each sampler at each observation: distances are quadratic in it
STOP_AFTER = 20  # permutations that reach the observed value (Besag & Clifford, 1991)
COMPONENTS = 32  # principal components whose means are compared
PRODUCTS = 78  # of two of them: 12 components
RARE = 0.02  # share of the chunks: these, or the rarest among them
NEIGHBOUR, ANCHORS = 5, 400  # "few others near": the 5th nearest of so many chunks is far
WHOLE_CHUNK_TESTS = 6
_AT_ONCE = 2_000_000  # labels that are permuted together
Array = np.ndarray
Permuted = Callable[[int], Array]


@dataclass(frozen=True)
class Test:
    """One test of equality. ``family`` is what a table shows together."""

    __test__ = False  # nothing for pytest

    name: str
    family: str
    statistic: float
    p_value: float


def whole_chunk_tests(
    ours: Array, theirs: Array, permutations: int, rng: np.random.Generator
) -> list[Test]:
    """Tests of (M, n, D) against (M, m, D), standardized within each of M observations."""
    n = ours.shape[1]
    tests = [_energy(ours, theirs, permutations, rng)]
    white = [_whitened(both, COMPONENTS) for both in np.concatenate([ours, theirs], axis=1)]
    tests.append(_moments("mean vector", white, n, permutations, rng))
    products = [_whitened(_products(x), PRODUCTS) for x in white]
    tests.append(_moments("second moments", products, n, permutations, rng))
    return tests + list(_rare(white, n, permutations, rng))


def permutation_p(least: float, permuted: Permuted, permutations: int, at_once: int = 200) -> float:
    """The sequential Monte Carlo p-value of Besag & Clifford (1991): stop at the STOP_AFTER-th
    permutation that reaches the observed value; it is valid wherever it stops."""
    reached = done = 0
    while done < permutations:
        hits = permuted(min(at_once, permutations - done)) >= least
        if reached + hits.sum() >= STOP_AFTER:
            last = np.flatnonzero(hits)[STOP_AFTER - reached - 1]
            return float(STOP_AFTER / (done + last + 1))
        reached, done = reached + int(hits.sum()), done + len(hits)
    return (reached + 1) / (done + 1)


def _labels(n: int, m: int) -> Array:
    """(n+m,): a product with it is the mean of ours minus that of theirs."""
    return np.where(np.arange(n + m) < n, 1 / n, -1 / m)


def _energy(ours: Array, theirs: Array, permutations: int, rng: np.random.Generator) -> Test:
    """Energy distance (Székely & Rizzo, 2004), summed over observations."""
    ours, theirs = ours[:, :ENERGY_CHUNKS], theirs[:, :ENERGY_CHUNKS]
    both = np.concatenate([ours, theirs], axis=1)
    distances = [cdist(x, x) for x in both]
    labels = _labels(ours.shape[1], theirs.shape[1])

    def value(signs: Array, matrix: Array) -> Array:
        return -((signs @ matrix) * signs).sum(1)

    def permuted(count: int) -> Array:
        return sum(
            value(rng.permuted(np.tile(labels, (count, 1)), axis=1), matrix) for matrix in distances
        )  # type: ignore[return-value]

    observed = float(sum(value(labels[None], matrix)[0] for matrix in distances))
    slack = 1e-10 * max(float(np.mean(distances)), 1e-10)
    p = permutation_p(observed - slack, permuted, permutations)
    return Test("energy distance", "whole chunks", observed / len(both), p)


# ---- means and second moments -------------------------------------------------------------------


def _whitened(values: Array, most: int) -> Array:
    """(N, D) → (N, R): scores of the R strongest principal components, each of variance 1.

    R is at most ``most``, and an eighth of N: what is hardly determined is left out.
    """
    centred = values - values.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(values))
    kept = np.flatnonzero(variances > 1e-9 * max(variances.max(initial=0.0), 1e-9))
    kept = kept[::-1][: min(most, len(values) // 8)]
    return centred @ (axes[:, kept] / np.sqrt(variances[kept]))


def _products(scores: Array) -> Array:
    """(N, R) → (N, F ≤ PRODUCTS): products of every two of the first components."""
    first = min(scores.shape[1], int(np.sqrt(2 * PRODUCTS)))
    rows, columns = np.triu_indices(first)
    return scores[:, rows] * scores[:, columns]


def _moments(
    name: str, white: Sequence[Array], n: int, permutations: int, rng: np.random.Generator
) -> Test:
    """Whether (N, R) whitened numbers have one mean: Hotelling's statistic, summed over
    observations, over its number of degrees of freedom (about 1 where they have)."""
    m = len(white[0]) - n
    labels, scale = _labels(n, m), n * m / (n + m) / max(1, sum(x.shape[1] for x in white))

    def value(signs: Array) -> Array:
        """Of (M, count, N) signs."""
        return scale * sum(np.square(s @ x).sum(1) for s, x in zip(signs, white, strict=True))

    def permuted(count: int) -> Array:
        return value(rng.permuted(np.tile(labels, (len(white), count, 1)), axis=2))

    observed = float(value(np.tile(labels, (len(white), 1, 1)))[0])
    at_once = max(1, min(200, _AT_ONCE // (len(white) * (n + m))))
    p = permutation_p(observed - 1e-9, permuted, permutations, at_once)
    return Test(name, "moments of chunks", observed, p)


# ---- rare chunks --------------------------------------------------------------------------------


def _rare(
    white: Sequence[Array], n: int, permutations: int, rng: np.random.Generator
) -> Iterator[Test]:
    """Whether ours are as often outside the bulk as theirs, and at the same places."""
    lonely = [_loneliness(x, rng) for x in white]
    far = [np.square(x).sum(1) for x in white]
    for where, scores in (("far from the mean", far), ("far from others", lonely)):
        yield _as_many(f"rare chunks, {where}", np.stack(scores), n, permutations, rng)
    yield _same_places(white, [s > _rare_from(s) for s in lonely], n, permutations, rng)


def _rare_from(scores: Array) -> float:
    """Rare chunks have a higher score than this. (Equal scores are on one side of it.)"""
    return float(np.quantile(scores, 1 - RARE, method="higher"))


def _loneliness(white: Array, rng: np.random.Generator) -> Array:
    """(N,): the distance to the NEIGHBOUR-th nearest of some of the chunks, drawn at random. Of
    those themselves it is 0."""
    chosen = rng.permutation(len(white))[: min(ANCHORS, len(white) // 4)]
    if len(chosen) < NEIGHBOUR or white.shape[1] == 0:
        return np.zeros(len(white))
    distances = np.partition(cdist(white, white[chosen]), NEIGHBOUR - 1, axis=1)[:, NEIGHBOUR - 1]
    distances[chosen] = 0.0
    return distances


def _as_many(name: str, scores: Array, n: int, permutations: int, rng: np.random.Generator) -> Test:
    """Counts of ours among the k highest of (M, N) scores at each observation: of their sum, by how
    many standard deviations it is off, the largest over k from a few to RARE·N."""
    strata, size = scores.shape
    most = min(max(4, int(RARE * size)), size - 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : most + 1]
    highest = np.take_along_axis(scores, order, axis=1)
    ends = np.unique(np.geomspace(min(4, most), most, 12).astype(int))
    # Where a group of equal scores is cut by k at an observation, none of it counts there.
    cut = np.stack([(highest[:, :k] > highest[:, k : k + 1]).sum(1) for k in ends], axis=1)
    share = n / size
    variance = (cut * share * (1 - share) * (size - cut) / max(1, size - 1)).sum(0)
    deviation = np.sqrt(np.maximum(variance, 1e-12))

    def value(ours: Array) -> Array:
        """Of (count, M, most) labels."""
        sums = np.concatenate([np.zeros((*ours.shape[:2], 1)), ours.cumsum(2)], axis=2)
        among = np.stack([sums[:, i, cut[i]] for i in range(strata)]).sum(0)
        return np.abs((among - share * cut.sum(0)) / deviation).max(1)

    def permuted(count: int) -> Array:
        chosen = rng.hypergeometric(n, size - n, most, size=(count, strata))
        ranks = rng.random((count, strata, most)).argsort(2)
        return value(ranks < chosen[..., None])

    observed = float(value((order[:, :most] < n)[None])[0])
    p = permutation_p(observed - 1e-9, permuted, permutations)
    return Test(name, "rare chunks", observed, p)


def _same_places(
    white: Sequence[Array],
    outside: Sequence[Array],
    n: int,
    permutations: int,
    rng: np.random.Generator,
) -> Test:
    """How many rare chunks have a nearest rare neighbour of their own sampler (Schilling, 1986)."""
    found = [(x[rare], np.flatnonzero(rare) < n) for x, rare in zip(white, outside, strict=True)]
    found = [(x, ours) for x, ours in found if len(x) > 1]
    nearest = []
    for x, _ in found:
        distances = cdist(x, x)
        np.fill_diagonal(distances, np.inf)
        nearest.append(distances.argmin(1))
    total = sum(len(x) for x, _ in found)

    def value(labels: Sequence[Array]) -> Array:
        same = (each == each[:, near] for each, near in zip(labels, nearest, strict=True))
        return sum((s.sum(1) for s in same), np.zeros(len(labels[0]) if labels else 1))

    def permuted(count: int) -> Array:
        if not found:
            return np.zeros(count)
        tiled = (np.tile(ours, (count, 1)) for _, ours in found)
        return value([rng.permuted(each, axis=1) for each in tiled])

    observed = float(value([ours[None] for _, ours in found])[0])
    p = permutation_p(observed - 1e-9, permuted, permutations)
    return Test("rare chunks, nearest neighbours", "rare chunks", observed / max(1, total), p)
