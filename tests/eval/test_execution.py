"""Waiting for chunks, and chunks that are given what is executed until they come."""

import numpy as np
import pytest
from eval_numbered import HOLD, Numbered, table

from asd_policy.eval.rollout.delay import DelayedPolicy


@pytest.mark.parametrize(
    ("delay", "expected", "asked"),
    [
        (0, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)], [0, 3, 6]),
        (1, [HOLD, (0, 0), (0, 1), (0, 2), HOLD, (1, 0), (1, 1), (1, 2), HOLD], [0, 4, 8]),
        (7, [*[HOLD] * 7, (0, 0), (0, 1), (0, 2), *[HOLD] * 7, (1, 0)], [0, 10]),
    ],
)
def test_waiting_executes_chunks_from_their_first_action_on(delay, expected, asked):
    executed, asked_at, costs = table(float(delay), len(expected), execution="waiting")
    assert executed == expected
    assert asked_at == asked
    assert not any(cost.delay.useless for cost in costs)
    assert sum(cost.delay.held_steps for cost in costs) == expected.count(HOLD)


class Given(Numbered):
    """Keeps what its chunks are given."""

    given: list

    def predict(self, indices, committed=None):
        self.given = [*getattr(self, "given", []), committed]
        return super().predict(indices)


def test_overlapped_chunks_are_given_what_is_executed_until_they_come():
    inner = Given()
    policy = DelayedPolicy(inner, 2.0, 1.0, execution="overlapped")
    policy.reset([0])
    executed = [policy.act_batch({"t": np.array([[float(t)]])}, [0])[0] for t in range(12)]
    assert inner.asked_at == [0, 3, 6, 9]
    assert inner.given[0] is None
    for start, given in zip((3, 6, 9), inner.given[1:], strict=True):
        np.testing.assert_array_equal(given[0], executed[start : start + 2])


def test_a_measured_delay_is_expected_to_be_as_the_last_one():
    # Beforehand a chunk of each chain is drawn, cold (9.0 and 8.0): neither is a delay.
    inner = Given([9.0, 8.0, 1.0, 2.0, 1.0, 1.0])
    policy = DelayedPolicy(inner, None, 1.0, execution="overlapped")
    policy.reset([0])
    for t in range(10):
        policy.act_batch({"t": np.array([[float(t)]])}, [0])
    assert [None if g is None else len(g[0]) for g in inner.given] == [None, 1, None, 1, 2, 1]
