"""What a server gives its clients: the local policy's chunks, whoever else is there."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets")
from asd_policy.errors import ConnectionLostError, InputError, ServerError
from asd_policy.serving import Client, Limits, RemotePolicy, Server
from reference.rounding import assert_same_draws
from reference.served import address, gone, observation, served, stacked, tiny_policy

SAMPLERS = {"asd": {}, "ddpm": {}, "ddim": {"steps": 5}}


def local_actions(sampler: str, seeds: list[int], count: int, **options: object) -> np.ndarray:
    """(count, robots, action_dim) in a loop here, each seed alone."""
    rows = []
    for seed in seeds:
        policy = tiny_policy(sampler, **options)
        policy.reset(seed)
        rows.append([policy.act(observation(1000 * seed + t)) for t in range(count)])
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_client_s_actions_are_the_local_policy_s_seed_by_seed(sampler: str) -> None:
    """Eight clients at once, in whatever batches come about; to the last bits, as anywhere."""
    seeds, steps = list(range(8)), 12
    options = SAMPLERS[sampler]
    expected = local_actions(sampler, seeds, steps, **options)
    got = np.zeros_like(expected)
    with served(tiny_policy(sampler, **options), wait_s=0.05) as server:

        def drive(row: int, seed: int) -> None:
            with Client(address(server)) as client:
                policy = RemotePolicy(client)
                policy.reset(seed)
                for t in range(steps):
                    got[t, row] = policy.act(observation(1000 * seed + t))

        threads = [threading.Thread(target=drive, args=pair) for pair in enumerate(seeds)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        health = server.health()
    assert_same_draws(got, expected)
    assert health["chunks"] == len(seeds) * steps / 3
    assert health["batches"] < health["chunks"], "nothing was drawn together"


def test_one_client_alone_gets_the_same_bits() -> None:
    with served() as server, Client(address(server)) as client:
        policy = RemotePolicy(client)
        policy.reset(2)
        got = np.stack([policy.act(observation(2000 + t)) for t in range(9)])
    np.testing.assert_array_equal(got, local_actions("asd", [2], 9)[:, 0])


def test_batches_of_one_client_are_its_robots() -> None:
    with served() as server, Client(address(server)) as client:
        policy = RemotePolicy(client)
        policy.reset([4, 7])
        rows = [stacked(observation(4000 + t), observation(7000 + t)) for t in range(7)]
        got = np.stack([policy.act_batch(each) for each in rows])
        costs = policy.last_chunks
    assert_same_draws(got, local_actions("asd", [4, 7], 7))
    assert [cost.batch for cost in costs] == [2, 2]
    assert all(cost.accepted.shape == cost.decided.shape == (10,) for cost in costs)


def test_the_server_keeps_a_queue_for_who_wants_single_actions() -> None:
    with served() as server, Client(address(server) + "/?seed=6") as client:
        answers = [client.act(observation(6000 + t)) for t in range(8)]
    got = np.stack([answer["action"] for answer in answers])
    np.testing.assert_array_equal(got, local_actions("asd", [6], 8)[:, 0])
    assert ["calls" in answer for answer in answers] == [t % 3 == 0 for t in range(8)]


def test_histories_are_by_connection_and_observe_adds_to_them() -> None:
    local = tiny_policy()
    local.reset(1)
    for t in range(2):
        local.observe({k: v[None] for k, v in observation(t).items()})
    expected = local.predict()[0]
    with (
        served() as server,
        Client(address(server) + "/?seed=1") as one,
        Client(address(server)) as other,
    ):
        one.observe(observation(0))
        other.infer(observation(77))
        np.testing.assert_array_equal(one.infer(observation(1))["actions"], expected)
        one.reset(1)
        whole = one.infer(stacked(observation(0), observation(1)))
        np.testing.assert_array_equal(whole["actions"], expected)
        with pytest.raises(InputError, match="expected one observation, or the last 2; got 3"):
            one.infer(stacked(*map(observation, range(3))))


def test_a_reset_without_seeds_draws_new_noise() -> None:
    with served() as server, Client(address(server) + "/?seed=1") as client:
        first = client.infer(observation(0))["actions"]
        client.reset()
        assert not np.array_equal(client.infer(observation(0))["actions"], first)
        client.reset(1)
        np.testing.assert_array_equal(client.infer(observation(0))["actions"], first)


def test_who_waits_is_drawn_together_and_nobody_waits_when_all_have_asked() -> None:
    with served(wait_s=60.0) as server:
        with Client(address(server)) as client:
            start = time.perf_counter()
            assert client.infer(observation(0))["server_timing"]["batch"] == 1
            assert time.perf_counter() - start < 30, "it was alone, and waited"
        clients = [Client(address(server)) for _ in range(3)]
        answers: list[dict] = []
        threads = [
            threading.Thread(target=lambda c=c: answers.append(c.infer(observation(1))))
            for c in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer["server_timing"]["batch"] for answer in answers] == [3, 3, 3]
        assert max(answer["server_timing"]["queue_ms"] for answer in answers) < 50_000
        for client in clients:
            client.close()


def test_the_window_is_of_the_robots_that_were_expected() -> None:
    told = {}
    for robots in (1, 16):
        policy = tiny_policy(window="auto", num_steps=30)
        policy.reset([0] * robots)
        local = policy.window
        with served(policy, robots=robots) as server:
            clients = [Client(address(server)) for _ in range(3)]
            told[robots] = clients[0].metadata["window"]
            assert told[robots] == local == policy.window
            for client in clients:
                client.close()


def test_robots_leave_with_their_connection() -> None:
    with served() as server:
        for _ in range(5):
            with Client(address(server)) as client:
                client.infer_batch(observation(0, (4,)))
                assert client.health()["robots"] == 4
            assert gone(server, 0)
        with Client(address(server)) as client:
            deadline = time.monotonic() + 10
            while client.health()["robots"] and time.monotonic() < deadline:
                time.sleep(0.01)
            assert client.health()["robots"] == 0
        assert len(server._policy.environments) <= 8


def is_well(of: str) -> bool:
    """Whether a server answers GET /healthz, at its address as a WebSocket's."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http{of.removeprefix('ws')}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_health_is_answered_without_a_token_and_clients_are_not() -> None:
    with served(token="secret") as server:
        assert is_well(address(server))
        with pytest.raises(ServerError, match=r"401, expected the token, got none: .*POLICY_TOKEN"):
            Client(address(server))
        with pytest.raises(ServerError, match=r"401, expected the token, got another one: give it"):
            Client(address(server), token="wrong")
        with Client(address(server), token="secret") as client:
            assert client.health()["status"] == "ok"
    assert not is_well(address(server))


def test_a_token_may_end_with_a_line_as_files_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(token="secret\n") as server:
        Client(address(server), token="secret\n").close()
        monkeypatch.setenv("ASD_POLICY_TOKEN", " secret\r\n")
        Client(address(server)).close()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (b"sesame", r"token must be a text \(str\), got bytes"),
        (3, r"token must be a text \(str\), got int"),
        ("", "token must hold one word"),
        ("open sesame", "token must hold one word"),
        ("sesame\r\nX: y", "token must hold one word"),
    ],
)
def test_a_token_that_is_none_is_refused_and_not_printed(token: Any, message: str) -> None:
    for refused in (lambda: Client(token=token), lambda: Server(tiny_policy(), token=token)):
        with pytest.raises(InputError, match=message) as caught:
            refused()
        assert "sesame" not in str(caught.value)


def test_the_environments_token_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASD_POLICY_TOKEN", "open sesame")
    with pytest.raises(InputError, match="the environment's ASD_POLICY_TOKEN must hold one word"):
        Client()


def test_a_client_that_nobody_has_any_more_gives_its_place_back() -> None:
    with served(limits=Limits(clients=1)) as server:
        for _ in range(3):
            client = Client(address(server))
            looking = client._connection.looking  # type: ignore[union-attr]
            assert client.health()["clients"] == 1
            del client
            assert gone(server, 0)
            looking.join(60)
            assert not looking.is_alive()


def test_addresses_are_read_strictly() -> None:
    with served() as server:
        for query, message in {
            "/?seed=-1": "below 2", "/?seed=x": "below 2", "/?sed=1": r"may hold \?seed=NUMBER",
        }.items():  # fmt: skip
            with pytest.raises(ServerError, match=f"400, .*{message}"):
                Client(address(server) + query)
    for wrong in (
        "http://127.0.0.1",
        "ws://",
        "ws://:8000",
        "ws://a:99999",
        "ws://a:b",
        "ws://[::1",
    ):
        with pytest.raises(InputError, match="expected an address like ws"):
            Client(wrong)
    with pytest.raises(ConnectionLostError, match="cannot be reached"):
        Client(f"ws://{'a' * 64}.b")


def test_there_may_be_no_more_clients_than_allowed() -> None:
    with (
        served(limits=Limits(clients=1)) as server,
        Client(address(server)),
        pytest.raises(ServerError, match=r"503, no room beside 1 client$"),
    ):
        Client(address(server))


def test_a_question_that_is_interrupted_leaves_no_answer_for_the_next() -> None:
    policy = tiny_policy()
    real, asked = policy.source.draw, []

    def interrupts(*arguments: object) -> object:
        asked.append(1)
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return real(*arguments)

    policy.source.draw = interrupts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with served(policy) as server, Client(address(server)) as client:
            with pytest.raises(KeyboardInterrupt):
                client.infer(observation(0))
            with pytest.raises(ConnectionLostError, match="is closed"):
                client.infer(observation(1))
            client.reconnect()
            assert client.infer(observation(1))["calls"] > 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_nobody_there_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLostError, match="cannot be reached"):
        Client("ws://127.0.0.1:1", timeout_s=5)


def test_what_was_asked_is_answered_before_the_end() -> None:
    """A drain in the middle of a draw: that client gets its chunk, an idle one is told goodbye."""
    policy = tiny_policy()
    real, began, answers = policy.source.draw, threading.Event(), []

    def slowly(*arguments: object) -> object:
        began.set()
        time.sleep(0.5)
        return real(*arguments)

    policy.source.draw = slowly
    with served(policy) as server:
        busy, idle = Client(address(server)), Client(address(server))
        asking = threading.Thread(target=lambda: answers.append(busy.infer(observation(0))))
        asking.start()
        assert began.wait(10)
    asking.join()
    assert answers[0]["actions"].shape == (7, 2)
    with pytest.raises(ConnectionLostError, match="the server is ending"):
        idle.infer(observation(0))
    with pytest.raises(ConnectionLostError):
        busy.infer(observation(0))


def test_committed_actions_go_to_the_server_and_back() -> None:
    """In one batch with a client without: each has the local policy's."""
    given = np.array([[0.5, -0.25], [0.1, 0.9]], np.float32)
    expected = []
    for committed in ([given], None):
        local = tiny_policy()
        local.reset(5)
        local.observe({k: v[None] for k, v in observation(1).items()})
        expected.append(local.predict([0], committed)[0])
    got: dict[bool, np.ndarray] = {}
    with served(wait_s=2.0) as server:
        clients = [Client(address(server) + "/?seed=5") for _ in range(2)]

        def ask(after: bool) -> None:
            asked = {"committed": [given]} if after else {}
            got[after] = clients[after].ask(observation(1), "infer", **asked)["actions"]

        threads = [threading.Thread(target=ask, args=(after,)) for after in (True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    assert_same_draws(got[True], expected[0])
    np.testing.assert_allclose(got[True][:2], given, atol=1e-5)
    assert_same_draws(got[False], expected[1])


def test_another_policy_in_the_place_of_the_first_is_noticed() -> None:
    with served() as server:
        policy = RemotePolicy(Client(address(server)))
        policy.act(observation(0))
        policy.client.metadata["checkpoint_sha256"] = "another"
        for _ in range(2):  # one refusal does not make it the policy that was begun with
            with pytest.raises(ServerError, match="serves another policy now: checkpoint_sha256"):
                policy.source.reconnect()
        policy.close()


def test_as_many_robots_as_a_connection_may_have_and_resets_of_them() -> None:
    with served(limits=Limits(robots=3)) as server, Client(address(server)) as client:
        policy = RemotePolicy(client)
        for seeds in ([1, 2, 3], [4, 5, 6], [7]):
            policy.reset(seeds)
            rows = stacked(*(observation(seed) for seed in seeds))
            assert policy.act_batch(rows).shape == (len(seeds), 2)
        assert client.health()["robots"] == 3


def test_a_remote_policy_refuses_what_the_local_one_does() -> None:
    with served() as server, Client(address(server)) as client:
        for policy in (RemotePolicy(client), tiny_policy()):
            with pytest.raises(InputError, match=r"^expected a mapping of names, .* got a list$"):
                policy.act([1])
            with pytest.raises(InputError, match=r"^observation 'arm' must be of numbers, got"):
                policy.act(observation(0) | {"arm": np.zeros(2, complex)})
            with pytest.raises(InputError, match=r"object +wrong shape .* \(1, 3000\)$"):
                policy.act(observation(0) | {"object": np.zeros((1, 3000))})


def test_a_remote_policy_is_of_a_client() -> None:
    with pytest.raises(InputError, match=r"client must be a serving\.Client.*; got str"):
        RemotePolicy("ws://localhost:8000")
