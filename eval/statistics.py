"""The statistics that an evaluation reports, each a few lines over NumPy or SciPy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    }


def paired_difference(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Rate of a minus rate of b on the same seeds, with its 95% interval (Newcombe 1998, "Improved
    confidence intervals for the difference between binomial proportions based on paired data",
    method 10): Wilson's two intervals, joined by the correlation of the pairs. It has a width
    where both always succeed.

    Args:
        pair: what :func:`paired_success` returns.
    """
    n, both, neither = pair["n"], pair["both"], pair["neither"]
    only_a, only_b = pair["only_a"], pair["only_b"]
    if n == 0:
        return {"n": 0, "difference": None, "ci95": None}
    a, b = success_rate(both + only_a, n), success_rate(both + only_b, n)
    (low_a, high_a), (low_b, high_b) = a["ci95"], b["ci95"]
    correlation = _phi(both, only_a, only_b, neither)
    below = _joined(a["rate"] - low_a, high_b - b["rate"], correlation)
    above = _joined(high_a - a["rate"], b["rate"] - low_b, correlation)
    difference = (only_a - only_b) / n
    return {"n": n, "difference": difference, "ci95": [difference - below, difference + above]}


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Correlation of the pairs, a positive one corrected for continuity."""
    n = both + only_a + only_b + neither
    margins = (both + only_a) * (both + only_b) * (neither + only_a) * (neither + only_b)
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(product - n / 2, 0.0)
    return product / math.sqrt(margins) if margins else 0.0


def _joined(x: float, y: float, correlation: float) -> float:
    return math.sqrt(max(x * x - 2 * correlation * x * y + y * y, 0.0))


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
