"""The window as a pure function of what calls cost and of how many a chunk takes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from asd_policy.samplers.costs import (
    CANDIDATES,
    Calls,
    Costs,
    best_window,
    candidates,
    expected_seconds,
)

FLAT = Costs((1, 64), (1.0, 1.0))


def exactly(calls: int, rows: float, most: int = 100) -> Calls:
    """Every chain takes so many calls."""
    return Calls((np.arange(most) < calls).astype(float), rows)


def test_cost_is_interpolated_and_extended() -> None:
    costs = Costs((2, 8, 32), (1.0, 2.0, 6.0))
    assert costs.call(2) == pytest.approx(1.0)
    assert costs.call(5) == pytest.approx(1.5)
    assert costs.call(np.array([8, 32, 56])) == pytest.approx([2.0, 6.0, 10.0])
    assert Costs((4,), (1.0,)).call(np.array([2, 8])) == pytest.approx([1.0, 2.0])


def test_costs_survive_json_and_nonsense_is_refused() -> None:
    costs = Costs((1, 8), (0.001, 0.002), 1e-4, True)
    assert Costs.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs
    for change in (
        {"rows": []},
        {"rows": [8, 1]},
        {"seconds": [0.001]},
        {"seconds": [0.001, float("nan")]},
        {"overhead": "much"},
    ):
        with pytest.raises((ValueError, TypeError)):
            Costs.from_dict(costs.to_dict() | change)
    with pytest.raises(KeyError):
        Costs.from_dict({})


def test_expected_seconds_are_those_of_a_simulation() -> None:
    """Calls are shared by the chains that are not done: as many as the slowest takes."""
    rng, batch, window = np.random.default_rng(0), 6, 16
    counts = rng.integers(7, 15, 5000)
    beyond = np.array([(counts > n).mean() for n in range(20)])
    costs = Costs((1, 100), (0.01, 0.109), overhead=0.002)  # 0.009 + 0.001 a row
    times = []
    for chains in rng.choice(counts, (4000, batch)):
        live = [(chains > n).sum() for n in range(chains.max())]
        times.append(sum(0.009 + 0.001 * 12 * n + 0.002 for n in live))
    error = np.std(times) / np.sqrt(len(times))
    known = Calls(beyond, 12.0)
    assert abs(np.mean(times) - expected_seconds(window, known, costs, batch)) < 5 * error
    # A captured round keeps all rows of all chains until the last is done.
    whole = Costs(costs.rows, costs.seconds, costs.overhead, whole=True)
    slowest = np.mean([chains.max() for chains in rng.choice(counts, (4000, batch))])
    expected = slowest * (0.009 + 0.001 * batch * window + 0.002)
    assert expected_seconds(window, known, whole, batch) == pytest.approx(expected, rel=0.02)


def test_ties_go_to_the_narrower_window() -> None:
    calls = {16: exactly(11, 15), 24: exactly(10, 20), 32: exactly(10, 25)}
    assert best_window(calls, FLAT, 1, 100) == 24
    steeper = Costs((1, 64), (1.0, 2.6))
    assert best_window(calls, steeper, 1, 100) == 16


def test_sequential_where_nothing_is_gained() -> None:
    calls = {16: exactly(20, 15)}
    assert best_window(calls, Costs((1, 100), (1.0, 100.0)), 1, 100) == 1
    assert best_window(calls, FLAT, 1, 100) == 16


def test_a_window_that_takes_more_calls_than_foreseen_is_not_chosen() -> None:
    """As a window of 100 did on a GPU: wider, more rows, and more calls too."""
    calls = {32: exactly(9, 25), 64: exactly(10, 45)}
    assert best_window(calls, FLAT, 1, 100) == 32


def test_windows_end_at_64_and_at_the_chain() -> None:
    assert candidates(1000) == list(CANDIDATES)
    assert max(candidates(1000)) == 64
    assert candidates(10) == [4, 6, 8, 10]
