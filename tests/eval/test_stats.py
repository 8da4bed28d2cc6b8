"""The statistics against values worked out by hand."""

import math

import numpy as np
import pytest

from asd_policy.eval.stats.basics import (
    difference_interval,
    latency_ms,
    mean,
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


def pairs(both, only_a, only_b, neither):
    """Outcomes of two samplers with these counts."""
    rows = [(1, 1)] * both + [(1, 0)] * only_a + [(0, 1)] * only_b + [(0, 0)] * neither
    return tuple({i: bool(row[j]) for i, row in enumerate(rows)} for j in (0, 1))


def test_the_difference_has_tangos_interval():
    difference = paired_success(*pairs(36, 12, 2, 0))["difference"]
    assert difference["estimate"] == pytest.approx(0.2)
    assert difference["ci95"] == pytest.approx(difference_interval(12, 2, 50, 0.95))


def test_the_difference_turns_its_sign_with_the_samplers():
    a, b = pairs(150, 12, 5, 33)
    there, back = paired_success(a, b)["difference"], paired_success(b, a)["difference"]
    assert there["estimate"] == pytest.approx(-back["estimate"])
    assert there["ci95"] == pytest.approx([-x for x in reversed(back["ci95"])])


def test_samplers_that_never_differ_still_have_an_uncertain_difference():
    difference = paired_success(*pairs(198, 0, 0, 2))["difference"]
    assert difference["estimate"] == 0
    low, high = difference["ci95"]
    assert -0.03 < low < 0 < high < 0.03
    assert paired_success({}, {})["difference"] is None


def test_the_interval_of_the_difference_covers_it():
    rng = np.random.default_rng(0)
    p = np.array([0.85, 0.06, 0.02, 0.07])  # true difference 0.04
    covered = 0
    for counts in rng.multinomial(100, p, size=400):
        low, high = paired_success(*pairs(*counts))["difference"]["ci95"]
        covered += low <= 0.04 <= high
    # binomial(400, 0.95): below 360 with probability under 1e-4
    assert covered >= 360


def test_mean_and_ratio_of_nothing_are_none():
    assert mean([]) is None
    assert mean([1, 2, 6]) == 3.0
    assert ratio(1.0, 0.0) is None
    assert ratio(None, 2.0) is None
    assert ratio(3.0, 2.0) == 1.5
