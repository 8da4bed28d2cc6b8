"""The statistics that an evaluation reports, each a few lines over NumPy or SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import brentq


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
        "difference": {
            "estimate": (only_a - only_b) / len(seeds),
            "ci95": list(difference_interval(only_a, only_b, len(seeds), 0.95)),
        }
        if seeds
        else None,
    }


def difference_interval(only_a: int, only_b: int, n: int, confidence: float) -> tuple[float, float]:
    """Tango's score interval of P(a) − P(b) from paired outcomes (Tango, Statistics in Medicine
    17, 1998). It keeps its level with few or no discordant pairs, where the usual interval of
    (only_a − only_b)/n has no width.

    Args:
        only_a, only_b: pairs in which only that one succeeded. n: all pairs.
    """
    z = float(stats.norm.isf((1 - confidence) / 2))
    middle = (only_a - only_b) / n

    def excess(difference: float) -> float:
        return _score(only_a, only_b, n, difference) ** 2 - z**2

    edge = 1 - 1e-12
    low = -1.0 if excess(-edge) <= 0 else brentq(excess, -edge, middle, xtol=1e-10)
    high = 1.0 if excess(edge) <= 0 else brentq(excess, middle, edge, xtol=1e-10)
    return float(low), float(high)


def _score(only_a: int, only_b: int, n: int, difference: float) -> float:
    """Tango's equation 9: observed minus expected, in standard deviations at the likeliest
    probabilities that have this difference."""
    top = only_a - only_b - n * difference
    if abs(top) < 1e-12:
        return 0.0
    linear = -only_a - only_b + (2 * n - only_a + only_b) * difference
    constant = -only_b * difference * (1 - difference)
    root = math.sqrt(max(linear**2 - 8 * n * constant, 0.0))
    q = max((root - linear) / (4 * n), 0.0)  # P(only b)
    variance = n * (2 * q + difference * (1 - difference))
    return top / math.sqrt(max(variance, 1e-300))


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): reject where at most alpha, and the chance of any false
    rejection is at most alpha, however the tests depend on each other."""
    p: np.ndarray = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1.0)
    return corrected.tolist()
