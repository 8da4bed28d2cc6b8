"""The statistics against values worked out by hand."""

import math

import pytest

from asd_policy.eval.statistics import (
    latency_ms,
    mean,
    paired_difference,
    paired_success,
    ratio,
    success_rate,
)


def wilson(count: int, n: int) -> tuple[float, float]:
    """The textbook formula, written out."""
    z, p = 1.959963984540054, count / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


@pytest.mark.parametrize(("count", "n"), [(20, 20), (0, 20), (17, 20), (194, 200), (1, 1)])
def test_success_has_the_wilson_interval(count, n):
    success = success_rate(count, n)
    assert (success["count"], success["n"], success["rate"]) == (count, n, count / n)
    assert success["ci95"] == pytest.approx(wilson(count, n), abs=1e-9)


def test_wilson_of_20_of_20_as_published():
    # Newcombe 1998, method 3: n/(n+z²) = 20/23.8415
    assert success_rate(20, 20)["ci95"] == pytest.approx([0.8389, 1.0], abs=1e-4)


def test_no_episodes_have_no_rate():
    assert success_rate(0, 0) == {"count": 0, "n": 0, "rate": None, "ci95": None}


def test_latency_keeps_the_first_apart_and_interpolates_percentiles():
    rest = [i / 1000 for i in range(1, 101)]  # 1 … 100 ms
    summary = latency_ms(5.0, rest)
    # linear interpolation at q·(n−1): 0.5·99 = 49.5 → 50.5; 0.95·99 = 94.05 → 95.05; 98.01 → 99.01
    expected = {"first": 5000, "mean": 50.5, "p50": 50.5, "p95": 95.05, "p99": 99.01, "max": 100}
    assert summary == pytest.approx(expected)


def test_latency_of_a_first_call_alone():
    summary = latency_ms(0.25, [])
    assert summary["first"] == 250
    assert {summary[key] for key in ("mean", "p50", "p95", "p99", "max")} == {None}


def test_paired_success_counts_shared_seeds_only():
    a = {1: True, 2: True, 3: False, 4: False, 5: True, 9: True}
    b = {1: True, 2: False, 3: True, 4: False, 5: False, 8: True}
    pair = paired_success(a, b)
    counts = {key: pair[key] for key in ("n", "both", "only_a", "only_b", "neither")}
    assert counts == {"n": 5, "both": 1, "only_a": 2, "only_b": 1, "neither": 1}
    assert pair["p_value"] == pytest.approx(1.0)  # 2 against 1: P = 2·(3+1)/8, at most 1


def test_mcnemar_by_hand():
    a = dict.fromkeys(range(6), True)
    b = dict.fromkeys(range(6), False)
    assert paired_success(a, b)["p_value"] == pytest.approx(2 / 2**6)
    assert paired_success(a, a)["p_value"] is None


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> dict:
    return {
        "n": both + only_a + only_b + neither,
        "both": both, "only_a": only_a, "only_b": only_b, "neither": neither,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Newcombe 1998, method 10; the last one is Wilson's half-width of 54 out of 54.
        ((36, 12, 2, 0), (0.2000, 0.0569, 0.3404)),
        ((36, 14, 0, 0), (0.2800, 0.1528, 0.4167)),
        ((54, 0, 0, 0), (0.0, -0.0664, 0.0664)),
    ],
)
def test_paired_difference_as_published(counts, expected):
    made = paired_difference(outcomes(*counts))
    assert (made["difference"], *made["ci95"]) == pytest.approx(expected, abs=2e-4)


def test_paired_difference_of_nothing_and_turned_round():
    assert paired_difference(outcomes(0, 0, 0, 0))["ci95"] is None
    there, back = (paired_difference(outcomes(30, *pair, 10)) for pair in ((7, 2), (2, 7)))
    assert there["ci95"] == pytest.approx([-back["ci95"][1], -back["ci95"][0]])
    assert there["ci95"][0] < there["difference"] == 5 / 49 < there["ci95"][1]


def test_mean_and_ratio_of_nothing_are_none():
    assert mean([]) is None
    assert mean([1, 2, 6]) == 3.0
    assert ratio(1.0, 0.0) is None
    assert ratio(None, 2.0) is None
    assert ratio(3.0, 2.0) == 1.5
