"""Requests that are none, places that must come back, and who waits for whom."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import pytest

pytest.importorskip("websockets")
from asd_policy.errors import ConnectionLostError
from asd_policy.serving import Client, Limits, Server
from reference.served import address, gone, observation, raw, served, tiny_policy, undisturbed


def exchanged(server: Server, data: bytes) -> bytes:
    """What comes back, until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as made:
        made.sendall(data)
        answer = b""
        while more := made.recv(1000):
            answer += more
    return answer


def request(path: str, *lines: str) -> bytes:
    """Of a WebSocket."""
    fixed = "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"
    fixed += ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",)
    return "\r\n".join([f"GET {path} HTTP/1.1", *fixed, *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("/?seed=" + "1" * 5000), b"400"),
        (request("/?seed=x") + b"and more", b"400"),
        (request("//["), b"401"),
        (request("/", "Authorization: Api-Key a", "Authorization: Api-Key a"), b"401"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n\r\n", b"200"),
        (request("/healthz") + b"\x88\x80\x00\x00\x00\x00", b"200"),
        (b"GET /\xfc HTTP/1.1\r\n\r\n", b"400"),
    ],
)
def test_odd_requests_have_an_answer(
    data: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with served(token="t" if status == b"401" else None) as server:
        assert exchanged(server, data).startswith(b"HTTP/1.1 " + status)
    assert not caplog.records


def test_a_goodbye_behind_the_request_gives_the_place_back() -> None:
    with served(limits=Limits(clients=1)) as server:
        for _ in range(3):
            exchanged(server, request("/") + b"\x88\x80\x00\x00\x00\x00")
        assert gone(server, 0)
        assert Client(address(server)).health()["clients"] == 1


def test_without_another_thread_a_client_is_refused_and_the_next_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with served() as server:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", cannot)
            with pytest.raises(ConnectionLostError):
                Client(address(server), timeout_s=30)
        with Client(address(server)) as client:
            assert client.health()["clients"] == 1
    assert "a connection could not be taken: can't start new thread" in caplog.text


def test_sockets_that_say_nothing_keep_no_robot_out() -> None:
    """More of them than there are places beside the clients'; one asks half a question."""
    with contextlib.ExitStack() as stack, served(limits=Limits(clients=2)) as server:
        with undisturbed(server):
            silent = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
                for _ in range(100)
            ]
            silent[-1].sendall(b"GET / HTTP/1.1\r\n")
            with Client(address(server), timeout_s=30) as client:
                assert client.infer(observation(0))["actions"].any()
        assert silent[0].recv(1) == b"", "who came first is shown out first"


def test_who_needs_no_chunk_does_not_wait_for_others() -> None:
    with served(wait_s=60.0) as server:
        clients = [Client(address(server)) for _ in range(3)]
        asking = threading.Thread(target=clients[0].infer, args=(observation(0),))
        start = time.monotonic()
        asking.start()
        time.sleep(0.2)
        clients[1].observe(observation(0))
        assert time.monotonic() - start < 20
        clients[1].close()
        clients[2].close()  # nobody is left to wait for
        asking.join()
        assert time.monotonic() - start < 50
        clients[0].close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_a_forks_child_cannot_end_its_parents_connection() -> None:
    with served() as server, Client(address(server)) as client:
        if (child := os.fork()) == 0:
            client.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert client.infer(observation(0))["calls"] > 0


def test_a_message_of_empty_pieces_takes_no_memory() -> None:
    with served() as server, contextlib.closing(raw(server)) as connection:
        began = b"\x02\x80\x00\x00\x00\x00"
        connection.socket.sendall(began + b"\x00\x80\x00\x00\x00\x00" * 100_000)
        (theirs,) = server._open
        time.sleep(0.5)
        assert not theirs._part
        connection.socket.sendall(b"\x80\x80\x00\x00\x00\x00")
        assert "MessageError" in str(connection.recv(120))


def test_networks_of_several_threads_are_drawn_by_one_for_all() -> None:
    """Each thread that draws would have a team of its own."""
    policy, names = tiny_policy(), set[str]()
    policy.source.sampler.threads = 2
    real = policy.source.draw

    def noted(*given: object) -> object:
        names.add(threading.current_thread().name)
        return real(*given)

    policy.source.draw = noted
    with served(policy) as server, undisturbed(server), Client(address(server)) as client:
        client.infer(observation(0))
    assert names == {"asd-policy engine_0"}
