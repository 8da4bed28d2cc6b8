"""The statistics that an evaluation reports, each a few lines over NumPy or SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def success_rate(count: int, n: int) -> dict[str, Any]:
    """Count, n, rate, and the 95% Wilson score interval (Wilson 1927): it stays inside [0, 1] and
    is honest for 20 successes out of 20, where the normal interval has no width."""
    if n == 0:
        return {"count": 0, "n": 0, "rate": None, "ci95": None}
    interval = stats.binomtest(count, n).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "count": count,
        "n": n,
        "rate": count / n,
        "ci95": [float(interval.low), float(interval.high)],
    }


def paired_success(a: dict[int, bool], b: dict[int, bool]) -> dict[str, Any]:
    """Two samplers on the seeds that both have done. `p_value`: exact McNemar, two-sided, of the
    hypothesis that a discordant seed favours either sampler with equal chance (None without any).
    `difference`: of the rates, a minus b, and its 95% interval (None without seeds).
    """
    seeds = sorted(a.keys() & b.keys())
    only_a = sum(a[s] and not b[s] for s in seeds)
    only_b = sum(b[s] and not a[s] for s in seeds)
    both = sum(a[s] and b[s] for s in seeds)
    discordant = only_a + only_b
    p_value = float(stats.binomtest(only_a, discordant, 0.5).pvalue) if discordant else None
    return {
        "n": len(seeds),
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "neither": len(seeds) - both - discordant,
        "p_value": p_value,
        "difference": _difference(both, only_a, only_b, len(seeds)) if seeds else None,
    }


def _difference(both: int, only_a: int, only_b: int, n: int) -> dict[str, Any]:
    """The difference of paired rates, a minus b, with the square-and-add interval on Wilson's
    (Newcombe 1998, Statistics in Medicine 17:2635, method 10): within [-1, 1], and with a width
    even where no seed is discordant."""
    (a, low_a, high_a), (b, low_b, high_b) = (
        (count / n, *success_rate(count, n)["ci95"]) for count in (both + only_a, both + only_b)
    )
    phi = _correlation(both, only_a, only_b, n - both - only_a - only_b)
    down, up = a - low_a, high_a - a
    down_b, up_b = b - low_b, high_b - b
    below = math.sqrt(down**2 - 2 * phi * down * up_b + up_b**2)
    above = math.sqrt(up**2 - 2 * phi * up * down_b + down_b**2)
    return {"estimate": a - b, "ci95": [a - b - below, a - b + above]}


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Phi of the two-by-two table, its numerator corrected for continuity towards 0 where it is
    positive, as that method has it."""
    rows, columns = (both + only_a, only_b + neither), (both + only_b, only_a + neither)
    product = math.prod(rows) * math.prod(columns)
    if product == 0:
        return 0.0
    numerator = float(both * neither - only_a * only_b)
    if numerator > 0:
        numerator = max(numerator - sum(rows) / 2, 0.0)
    return numerator / math.sqrt(product)


def latency_ms(first_s: float | None, rest_s: Sequence[float]) -> dict[str, float | None]:
    """Milliseconds: `first`, which pays for warm-up, apart; the others over the rest alone."""
    summary: dict[str, float | None] = {
        "first": None if first_s is None else 1e3 * first_s,
        "mean": None,
        "p50": None,
        "p95": None,
        "p99": None,
        "max": None,
    }
    if len(rest_s):
        values = 1e3 * np.asarray(rest_s, dtype=np.float64)
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        summary |= {
            "mean": float(values.mean()),
            "p50": float(p50),
            "p95": float(p95),
            "p99": float(p99),
            "max": float(values.max()),
        }
    return summary


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return float(np.mean(values)) if len(values) else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """A quotient, or None where either is missing or the divisor is zero."""
    if numerator is None or not denominator:
        return None
    return numerator / denominator
