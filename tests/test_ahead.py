"""Noise that is drawn ahead is the noise that would have been drawn."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from asd_policy import DiffusionPolicy
from asd_policy.policy import SamplerConfig
from asd_policy.samplers.ahead import Ahead
from asd_policy.samplers.result import Noise, draw_noise
from reference.recording_policy import TA, observation
from reference.tiny import tiny_checkpoint

STEPS, LIKE = 5, torch.empty(0, 3, dtype=torch.float64)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def same(one: Noise, other: Noise) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("drawn", [(), (0,), (1, 2), (2, 0, 1)])
def test_the_numbers_are_those_of_the_streams(drawn: tuple[int, ...]) -> None:
    """Whichever were drawn ahead, in whatever order, once or twice; and the next ones too."""
    ahead, ours, plain = Ahead(STEPS, LIKE), seeded(1, 2, 3), seeded(1, 2, 3)
    for _ in range(3):
        ahead.draw([ours[i] for i in drawn])
        ahead.draw([ours[i] for i in drawn[:1]])
        assert same(ahead.take(ours), draw_noise(plain, STEPS, LIKE))


def test_a_stream_that_moved_is_drawn_from_where_it_is() -> None:
    ahead, (ours,), (plain,) = Ahead(STEPS, LIKE), seeded(1), seeded(1)
    ahead.draw([ours])
    for stream in (ours, plain):
        torch.rand(1, generator=stream)
    assert same(ahead.take([ours]), draw_noise([plain], STEPS, LIKE))
    ahead.draw([ours])
    for stream in (ours, plain):
        stream.manual_seed(7)
    assert same(ahead.take([ours]), draw_noise([plain], STEPS, LIKE))
    ahead.draw([ours])
    twice = ahead.take([ours, ours])
    assert same(twice, draw_noise([plain, plain], STEPS, LIKE))


def test_a_draw_that_fails_leaves_the_stream_where_it_was(monkeypatch) -> None:
    ahead, (ours,), (plain,) = Ahead(STEPS, LIKE), seeded(1), seeded(1)

    def failing(generators: list[torch.Generator], *rest: object) -> None:
        torch.rand(1, generator=generators[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("asd_policy.samplers.ahead.draw_noise", failing)
        with pytest.raises(KeyboardInterrupt):
            ahead.draw([ours])
    assert same(ahead.take([ours]), draw_noise([plain], STEPS, LIKE))


def test_what_was_drawn_ahead_is_really_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, streams = Ahead(STEPS, LIKE), seeded(1, 2)
    ahead.draw(streams)
    monkeypatch.setattr("asd_policy.samplers.ahead.draw_noise", None)
    assert ahead.take(streams).steps.shape == (2, STEPS, 3)


def test_no_more_is_kept_than_of_the_newest_and_copies_begin_anew(monkeypatch) -> None:
    monkeypatch.setattr("asd_policy.samplers.ahead.MOST", 2)
    ahead, streams = Ahead(STEPS, LIKE), seeded(1, 2, 3)
    for stream in (*streams[:2], streams[0], streams[2]):  # the second is the oldest now
        ahead.draw([stream])
    for copied in (copy.deepcopy(ahead), pickle.loads(pickle.dumps(ahead))):
        assert not len(copied._kept)
    assert list(ahead._kept) == [id(streams[0]), id(streams[2])]
    ahead.draw(streams)
    assert len(ahead._kept) == 3, "all that a call is given"


def test_a_stream_with_the_id_of_another_is_drawn_from_where_it_is(monkeypatch) -> None:
    monkeypatch.setattr("asd_policy.samplers.ahead.id", lambda stream: 0, raising=False)
    ahead, (first, second), (plain,) = Ahead(STEPS, LIKE), seeded(1, 2), seeded(2)
    ahead.draw([first])
    assert same(ahead.take([second]), draw_noise([plain], STEPS, LIKE))


class Loop:
    """A policy of several robots, of which some are reset, leave and come back."""

    def __init__(self, ahead: bool) -> None:
        self.policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("asd", window=4))
        self.policy.calibration.frozen = True
        self.drawn = 0
        draw = self.policy.source.ahead

        def counted(streams: list[torch.Generator]) -> None:
            self.drawn += len(streams)
            draw(streams)

        self.policy.source.ahead = counted if ahead else lambda streams: None  # type: ignore[method-assign]

    def actions(self) -> list[np.ndarray]:
        policy, found = self.policy, []

        def act(steps: int, indices: list[int]) -> None:
            for t in range(steps):
                found.append(policy.act_batch(observation(float(t), batch=len(indices)), indices))

        policy.reset([3, 4, 5])
        act(TA + 1, [0, 1, 2])
        act(TA - 1, [0, 1])  # their next chunks are drawn ahead, the third's not
        policy.reset_env(1, 9)
        act(1, [2])
        act(2, [1, 0])
        self.policy = copy.deepcopy(policy)
        act(TA + 2, [0, 1, 2])
        policy.reset(3)
        act(2 * TA + 1, [0])
        return found


def test_one_action_at_a_time_is_as_good() -> None:
    loop = Loop(True)
    policy = loop.policy
    policy.reset(3)
    policy.act(observation(0.0))
    for _ in range(TA - 1):
        assert loop.drawn == 0
        policy.next(0)
    assert loop.drawn == 1


def test_robots_act_the_same_with_and_without() -> None:
    loops = Loop(True), Loop(False)
    ours, theirs = (loop.actions() for loop in loops)
    assert loops[0].drawn > 5
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
