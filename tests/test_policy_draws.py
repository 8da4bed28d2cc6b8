"""Whole chunks, and what is told of their drawing."""

from __future__ import annotations

import numpy as np
import pytest

from asd_policy import DiffusionPolicy
from asd_policy.policy import SamplerConfig
from asd_policy.sampler import Sampler
from reference.recording_policy import TA, TO, TP, observation, recording
from reference.tiny import ACTION_DIM, tiny_checkpoint


def test_a_chunk_is_handed_out_whole_from_now_on():
    whole, _ = recording()
    ordinary, _ = recording()
    for policy in (whole, ordinary):
        policy.reset([3, 4])
    for t in range(2 * TA):
        acted = ordinary.act_batch(observation(float(t), batch=2))
        whole.observe(observation(float(t), batch=2))
        if t % TA == 0:
            chunks = whole.predict()
            assert chunks.shape == (2, TP - TO + 1, ACTION_DIM)
            assert all(cost is not None for cost in whole.last_chunks)
        np.testing.assert_array_equal(chunks[:, t % TA], acted)
        assert whole.queued(0) == 0


def test_a_draw_is_told_with_all_that_it_depends_on():
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("asd", window=4))
    told = []
    policy.on_draw = told.append
    policy.reset([3, 4])
    acted = [policy.act_batch(observation(float(t), batch=2)) for t in range(TA + 1)]
    first, second = told
    assert (first.seeds, first.numbers, second.numbers) == ([3, 4], [0, 0], [1, 1])
    assert first.histories.shape == (2, TO, 5)
    np.testing.assert_array_equal(first.histories[0, 0], first.histories[0, 1])
    np.testing.assert_allclose(second.histories[0, :, 0], [TA - 1, TA])
    np.testing.assert_array_equal(second.chunks[:, TO - 1], acted[TA])
    assert [cost.calls for cost in second.stats] == [c.calls for c in policy.last_chunks]
    assert first.slopes.shape == second.slopes.shape == (10,)


def test_a_draw_after_committed_actions_is_told_without_histories():
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("asd", window=4))
    told = []
    policy.on_draw = told.append
    policy.reset([3])
    policy.observe(observation(0.0, batch=1))
    chunk = policy.predict([0])[0]
    policy.predict([0], [chunk[:1]])
    free, given = told
    assert free.histories is not None
    assert given.histories is None
    assert [draw.numbers for draw in told] == [[0], [1]]


def test_a_draw_can_be_repeated_from_what_was_told():
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("ddpm"))
    told = []
    policy.on_draw = told.append
    policy.reset([3, 4])
    for t in range(2 * TA + 1):
        policy.act_batch(observation(float(t), batch=2))
    last = told[-1]
    streams = [policy.stream(s, n) for s, n in zip(last.seeds, last.numbers, strict=True)]
    chunks, stats = policy.sample(last.histories, streams)
    np.testing.assert_array_equal(chunks, last.chunks)
    assert stats.calls.tolist() == [10, 10]


def test_drafts_are_not_taught_by_the_noise_of_an_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's generator heeds the lowest 32 bits of a seed: that of 2^63 gives the numbers of 0."""
    used = []

    def noted(self: Sampler, inputs: list, *rest: object) -> None:
        used.extend(noise.initial for noise, _ in inputs)

    monkeypatch.setattr(Sampler, "calibrate", noted)
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("asd", window=4))
    assert len(used) == 4
    for seed in (*range(20), 2**31, 2**32 - 1, 100_000):
        noise = policy.source.sampler.noise([policy.stream(seed)]).initial
        assert not any(bool((noise == other).any()) for other in used), seed


def test_what_a_chunk_cost_is_printed_on_one_line():
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("asd", window=4))
    for batch, end in ((1, ""), (2, ", one of 2 chunks drawn together")):
        policy.reset(list(range(batch)))
        policy.act_batch(observation(0.0, batch=batch))
        for cost in policy.last_chunks:
            assert cost is not None
            assert str(cost) == repr(cost)
            assert str(cost).startswith(
                f"asd: {cost.calls} calls, {cost.evaluations} evaluations, "
            )
            assert str(cost).endswith(f" ms, window 4{end}")
