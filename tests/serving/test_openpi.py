"""openpi's own client, from the package index, against our server."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("websockets")
openpi = pytest.importorskip("openpi_client.websocket_client_policy")
from reference.served import address, observation, served, stacked, tiny_policy  # noqa: E402
from reference.tiny import ACTION_DIM  # noqa: E402

H, TA = 7, 3


def client(server, query: str = "", **options):  # type: ignore[no-untyped-def]
    return openpi.WebsocketClientPolicy(address(server) + query, **options)


def test_metadata_comes_on_connect_and_chunks_are_the_local_policy_s() -> None:
    local = tiny_policy()
    local.reset(3)
    with served() as server:
        theirs = client(server, "/?seed=3")
        told = theirs.get_server_metadata()
        assert told["observations"] == {"object": [3], "arm": [2]}
        assert (told["chunk"], told["action_horizon"], told["action_dim"]) == (H, TA, ACTION_DIM)
        for number in range(4):
            answer = theirs.infer(observation(number))
            local.observe({k: v[None] for k, v in observation(number).items()})
            np.testing.assert_array_equal(answer["actions"], local.predict()[0])
            cost = local.last_chunks[0]
            assert (answer["calls"], answer["evaluations"]) == (cost.calls, cost.evaluations)
            assert answer["acceptance"] == pytest.approx(cost.accepted.sum() / cost.decided.sum())


def test_host_and_port_as_openpi_gives_them() -> None:
    with served() as server:
        theirs = openpi.WebsocketClientPolicy("127.0.0.1", server.port)
        assert theirs.infer(observation(0))["actions"].shape == (H, ACTION_DIM)


def test_timings_add_up() -> None:
    with served() as server:
        theirs = client(server)
        first = theirs.infer(observation(0))["server_timing"]
        assert "prev_total_ms" not in first
        second = theirs.infer(observation(1))["server_timing"]
        assert 0 < second["infer_ms"] == second["draw_ms"]
        assert second["queue_ms"] >= 0
        assert second["queue_ms"] + second["draw_ms"] <= second["total_ms"]
        assert second["prev_total_ms"] >= first["total_ms"]
        assert second["batch"] == 1


def test_the_chunk_broker_gives_the_actions_of_the_local_loop() -> None:
    """With the last To observations in each message, for it asks once a chunk."""
    broker = pytest.importorskip("openpi_client.action_chunk_broker")
    local = tiny_policy()
    local.reset(5)
    with served() as server:
        theirs = broker.ActionChunkBroker(client(server, "/?seed=5"), action_horizon=TA)
        before = observation(0)
        for number in range(3 * TA + 1):
            now = observation(number)
            action = theirs.infer(stacked(before, now))["actions"]
            np.testing.assert_array_equal(action, local.act(now))
            before = now


def test_extra_entries_are_told_and_calls_go_through_its_infer() -> None:
    with served() as server:
        theirs = client(server, "/?seed=1")
        first = theirs.infer({**observation(0), "prompt": "lift it"})
        assert first["unused"] == ["prompt"]
        assert theirs.infer({"asd_policy": {"call": "reset", "begin": [[0, 1]]}})["robots"] == 1
        again = theirs.infer(observation(0))
        np.testing.assert_array_equal(first["actions"], again["actions"])
        assert theirs.infer({"asd_policy": {"call": "health"}})["clients"] == 1


def test_errors_are_raised_by_its_client_and_the_connection_stays() -> None:
    with served() as server:
        theirs = client(server)
        with pytest.raises(RuntimeError, match=r"InputError: these are not the observations"):
            theirs.infer({"object": np.zeros(3)})
        with pytest.raises(RuntimeError, match=r"NonFiniteError: observation 'arm' holds a NaN"):
            theirs.infer({**observation(0), "arm": np.array([0.0, np.nan])})
        assert theirs.infer(observation(0))["actions"].shape == (H, ACTION_DIM)


def test_its_api_key_is_the_token() -> None:
    from websockets.exceptions import InvalidStatus

    with served(token="secret") as server:
        for key in (None, "other"):
            with pytest.raises(InvalidStatus, match="401"):
                client(server, api_key=key)
        assert client(server, api_key="secret").infer(observation(0))["calls"] > 0
