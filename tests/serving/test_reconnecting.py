"""What a remote policy does where its connection, or its stream at the server, cannot go on."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("websockets")
from asd_policy.errors import ConnectionLostError, ServerError
from asd_policy.serving import Client, Limits, RemotePolicy
from asd_policy.serving.requests import MOST_DRAWN
from reference.rounding import assert_same_draws
from reference.served import address, gone, observation, served, tiny_policy


def test_a_server_that_is_full_is_tried_again_and_one_that_forbids_is_not() -> None:
    """As a proxy's 502 while a server starts: a refusal for now is a lost connection to who acts.
    Who is refused for good is told so."""
    with served(limits=Limits(clients=1)) as server:
        policy = RemotePolicy(Client(address(server)))
        policy.client.close()
        assert gone(server, 0)
        full = pytest.raises(ConnectionLostError, match=r"503, no room beside 1 client$")
        with Client(address(server)), full:
            policy.source.reconnect()
        assert gone(server, 0)
        policy.source.reconnect()
        policy.client.address += "/?sed=1"
        with pytest.raises(ServerError, match=r"400, .*may hold \?seed=NUMBER"):
            policy.source.reconnect()
        policy.close()


@pytest.mark.parametrize(("drawn", "goes_on"), [(MOST_DRAWN, True), (MOST_DRAWN + 1, False)])
def test_a_stream_of_too_many_chunks_is_left_for_a_new_one(drawn: int, goes_on: bool) -> None:
    """A server moves a stream on by so many chunks and no more: an hour at 20 Hz. The robot acts
    on, and its noise does not come a second time."""
    with served() as server, Client(address(server)) as client:
        policy = RemotePolicy(client)
        policy.reset(5)
        stream = policy.environments[0].stream
        stream.drawn = drawn  # of an earlier connection
        assert np.isfinite(policy.act(observation(0))).all()
        assert (stream.seed == 5) == goes_on
        assert stream.drawn == (drawn + 1 if goes_on else 1)


def test_two_policies_of_one_client_have_streams_of_their_own() -> None:
    """Seed by seed, though they share a connection."""
    with served() as server, Client(address(server)) as client:
        policies, local = [RemotePolicy(client) for _ in range(2)], tiny_policy()
        for seed, policy in enumerate(policies):
            policy.reset(seed)
        got = np.array([[policy.act(observation(t)) for policy in policies] for t in range(9)])
        for seed in range(2):
            local.reset(seed)
            expected = [local.act(observation(t)) for t in range(9)]
            assert_same_draws(got[:, seed], expected)


def test_a_thread_that_reconnects_leaves_another_s_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is new is decided with the message that says it."""
    local = tiny_policy()
    local.reset(3)
    expected = [local.act(observation(t)) for t in range(9)]
    with served() as server, Client(address(server)) as client:
        policy = RemotePolicy(client)
        policy.reset(3)
        got = [policy.act(observation(t)) for t in range(3)]
        ask, threads = client.infer_batch, list[threading.Thread]()

        def asking(*given: object, **asked: object) -> dict:
            if not threads:
                threads.append(threading.Thread(target=client.reconnect))
                threads[0].start()
                threads[0].join(0.3)  # it has to wait for its turn
            return ask(*given, **asked)  # type: ignore[arg-type]

        monkeypatch.setattr(client, "infer_batch", asking)
        got += [policy.act(observation(t)) for t in range(3, 9)]
        threads[0].join()
    assert client.connections == 2
    assert_same_draws(got, expected)
