"""What needs no chunk of the server: queued actions, observations, seeds."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets")
from asd_policy.errors import InputError
from asd_policy.policy import DiffusionPolicy, SamplerConfig
from asd_policy.serving import Client
from reference.rounding import assert_same_draws
from reference.served import address, gone, observation, served, tiny_policy
from reference.tiny import tiny_checkpoint


class Waits(DiffusionPolicy):
    """Whose second chunk is drawn when it may be."""

    drawing, may = threading.Event(), threading.Event()

    def predict(self, *args: Any, **options: Any) -> np.ndarray:
        if self.environments[args[0][0]].seed != 1:
            self.drawing.set()
            assert self.may.wait(60)
        return super().predict(*args, **options)


def test_a_queued_action_and_an_observation_wait_for_nobody_s_draw() -> None:
    waits = Waits(tiny_checkpoint(10), SamplerConfig(window=4))
    with (
        served(waits) as server,
        Client(address(server) + "/?seed=1") as one,
        Client(address(server) + "/?seed=2") as other,
    ):
        first = one.act(observation(0))
        drawing = threading.Thread(target=other.infer, args=(observation(1),))
        drawing.start()
        assert waits.drawing.wait(60)
        answers = [first, *(one.act(observation(t)) for t in (1, 2))]
        one.observe(observation(3))
        assert drawing.is_alive()
        waits.may.set()
        drawing.join()
        answers.append(one.act(observation(4)))
    got = np.stack([answer["action"] for answer in answers])
    local = tiny_policy()
    local.reset(1)
    expected = [local.act(observation(t)) for t in range(3)]
    local.observe({k: v[None] for k, v in observation(3).items()})
    expected.append(local.act(observation(4)))
    assert_same_draws(got, expected)


def test_robots_come_and_begin_anew_and_go_while_another_s_chunk_is_drawn() -> None:
    waits = Waits(tiny_checkpoint(10), SamplerConfig(window=4))
    waits.drawing.clear()
    waits.may.clear()
    with served(waits) as server, Client(address(server) + "/?seed=2") as other:
        drawing = threading.Thread(target=other.infer, args=(observation(1),))
        drawing.start()
        assert waits.drawing.wait(60)
        try:
            with Client(address(server), timeout_s=10) as one:
                one.observe(observation(0))
                one.reset(1)
            assert gone(server, 1)
            assert waits.present == 1
            assert drawing.is_alive()
        finally:
            waits.may.set()
            drawing.join()


@pytest.mark.parametrize("seeds", [np.int64(6), [np.int64(6)], (6,), 6])
def test_seeds_may_be_whole_numbers_of_any_kind(seeds: Any) -> None:
    local = tiny_policy()
    local.reset(6)
    with served() as server, Client(address(server)) as client:
        client.reset(seeds)
        got = client.act(observation(6000))["action"]
        with pytest.raises(InputError, match="seed must be a whole number"):
            client.reset(0.5)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, local.act(observation(6000)))
