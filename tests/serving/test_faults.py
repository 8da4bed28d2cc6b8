"""Faults: each is a named error to the client that made it, and nobody else notices."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time

import numpy as np
import pytest

pytest.importorskip("websockets")
import msgpack
from websockets.exceptions import ConnectionClosed

from asd_policy.errors import (
    ConnectionLostError,
    InputError,
    LimitError,
    MessageError,
    NonFiniteError,
    ServerError,
)
from asd_policy.serving import Client, Limits
from asd_policy.serving.protocol import KEY, error_of, pack, unpack
from reference.rounding import assert_same_draws
from reference.served import address, gone, observation, raw, served, tiny_policy, undisturbed

# ---- messages -----------------------------------------------------------------------------------


WRONG = {
    "text": ("hello", MessageError),
    "nonsense": (b"\xc1\xff", MessageError),
    "torn msgpack": (pack(observation(0))[:-5], MessageError),
    "a list": (msgpack.packb([1]), MessageError),
    "nothing": (pack({}), InputError),
    "one key": (pack({"object": np.zeros(3)}), InputError),
    "shape": (pack({"object": np.zeros(4), "arm": np.zeros(2)}), InputError),
    "no axes": (pack({"object": np.float64(1), "arm": np.zeros(2)}), InputError),
    "ragged": (pack({"object": [[1], [1, 2]], "arm": np.zeros(2)}), InputError),
    "text in it": (pack({"object": ["1", "2", "3"], "arm": np.zeros(2)}), InputError),
    "a mapping in it": (pack({"object": {"x": 1}, "arm": np.zeros(2)}), InputError),
    "none in it": (pack({"object": [None] * 3, "arm": np.zeros(2)}), InputError),
    "NaN": (pack({"object": np.full(3, np.nan), "arm": np.zeros(2)}), NonFiniteError),
    "infinity": (pack({"object": np.zeros(3), "arm": np.array([0, np.inf])}), NonFiniteError),
    "too large": (pack({"object": np.full(3, 1e300), "arm": np.zeros(2)}), NonFiniteError),
    "overflows": (pack({"object": np.full(3, 3e38), "arm": np.zeros(2)}), NonFiniteError),
    "a call": (pack({KEY: {"call": "shutdown"}}), MessageError),
    "no mapping": (pack({KEY: 3}), MessageError),
    "an entry": (pack({KEY: {"cal": "infer"}}), MessageError),
    "robots": (pack({KEY: {"robots": [-1]}, **observation(0)}), MessageError),
    "many robots": (pack({KEY: {"robots": [10**9]}, **observation(0)}), MessageError),
    "twice": (
        pack({KEY: {"call": "infer_batch", "robots": [1, 1]}, **observation(0, (2,))}),
        MessageError,
    ),
    "no rows": (pack({KEY: {"call": "infer_batch"}, **observation(0, (0,))}), InputError),
    "rows": (pack({KEY: {"call": "infer_batch"}, **observation(0, (2,)), "arm": 1}), InputError),
    "seed": (pack({KEY: {"call": "reset", "begin": [[0, -1]]}}), MessageError),
    "seeds": (pack({KEY: {"call": "reset", "begin": [[0, 1, 2, 3]]}}), MessageError),
    "committed": (pack({KEY: {"committed": 3}, **observation(0)}), MessageError),
    "committed rows": (pack({KEY: {"committed": []}, **observation(0)}), MessageError),
    "committed shape": (pack({KEY: {"committed": [np.zeros(3)]}, **observation(0)}), InputError),
    "committed to act": (
        pack({KEY: {"call": "act", "committed": [np.zeros((1, 2))]}, **observation(0)}),
        MessageError,
    ),
    "endless": (pack({KEY: {"call": "reset", "begin": [[0, 1, 10**12]]}}), MessageError),
}


def test_wrong_messages_are_named_to_who_sent_them() -> None:
    """All on one connection, which stays."""
    with served() as server, undisturbed(server):
        with contextlib.closing(raw(server)) as connection:
            for name, (data, kind) in WRONG.items():
                connection.send(data)
                told = connection.recv(10)
                assert isinstance(told, str), name
                assert type(error_of(told)) is kind, f"{name}: {told}"
            connection.send(pack({**observation(0), KEY: {"begin": [[0, 1]]}}))
            assert unpack(connection.recv(10))["actions"].shape == (7, 2)
        assert server.errors == len(WRONG)


def test_who_overflows_the_network_does_not_spoil_the_batch() -> None:
    """Its observation is finite, and only the draw shows: the others are drawn again, from the
    noise that they would have had."""
    policy = tiny_policy()
    policy.reset(5)
    policy.observe({k: v[None] for k, v in observation(1).items()})
    expected = policy.predict()[0]
    with served(wait_s=2.0) as server:
        good, bad = Client(address(server) + "/?seed=5"), Client(address(server))
        answers: list[dict] = []
        asking = threading.Thread(target=lambda: answers.append(good.infer(observation(1))))
        asking.start()
        with pytest.raises(NonFiniteError):
            bad.infer({"object": np.full(3, 3e38), "arm": np.zeros(2)})
        asking.join()
        assert_same_draws(answers[0]["actions"], expected)
        assert server.health()["errors"] == 1
        bad.reset()
        assert bad.infer(observation(0))["calls"] > 0
        good.close()
        bad.close()


def test_a_fault_of_the_server_is_named_and_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy()
    real = policy.source.draw

    def breaks(histories, streams):  # type: ignore[no-untyped-def]
        if max(float(history[-1][0]) for history in histories) > 1.5:
            raise KeyError("broken")
        return real(histories, streams)

    policy.source.draw = breaks  # type: ignore[method-assign]
    with served(policy) as server, undisturbed(server), Client(address(server)) as client:
        with pytest.raises(ServerError, match="KeyError: 'broken'"):
            client.infer({"object": np.full(3, 1.9), "arm": np.zeros(2)})
        client.infer(observation(0))
    assert "Traceback" in caplog.text


GOOD = (
    {**observation(0)},
    {KEY: {"call": "infer_batch", "robots": [0, 1]}, **observation(0, (2,))},
    {KEY: {"call": "act", "begin": [[0, 3]]}, **observation(0)},
)
VALUES = (
    None, True, -1, 0, 1, 2**63, 1.5, "x", b"x", [], [0], [0, 0], [[0, 1]],
    [[0, None, 3]], {}, {"x": 1}, np.zeros(3), np.zeros((2, 3)), np.zeros((0, 2)),
    np.full(2, np.nan), np.full(3, 3e38), np.array("x"), np.int8(3), np.zeros((3, 2)),
    np.zeros(2, bool), "infer", "observe", "reset",
)  # fmt: skip


def twisted(rng: random.Random) -> bytes:
    """A good message, with other values in it."""
    message = dict(rng.choice(GOOD))
    entries = dict(message.get(KEY, {}))
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(["object", "arm", KEY, "call", "robots", "begin", "detail", "other"])
        into = entries if name in ("call", "robots", "begin", "detail", "other") else message
        into[name] = rng.choice(VALUES)
    return pack(message | ({KEY: entries} if entries else {}))


def mutated(rng: random.Random) -> bytes:
    """A message that was good, with bytes changed, cut out or doubled."""
    changed = bytearray(pack(rng.choice(GOOD)))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.randrange(1, 9)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                changed[at:at] = changed[max(0, at - 8) : at]
    return bytes(changed)


def test_two_thousand_fuzzed_messages() -> None:
    rng, told = random.Random(0), dict[str, int]()
    with (
        served(limits=Limits(rate_hz=1e6)) as server,
        undisturbed(server),
        contextlib.closing(raw(server)) as connection,
    ):
        for number in range(2000):
            connection.send(twisted(rng) if number % 2 else mutated(rng))
            answer = connection.recv(20)
            if isinstance(answer, str):
                name = answer.partition(":")[0]
            else:
                unpack(answer)
                name = "answered"
            told[name] = told.get(name, 0) + 1
    assert told.keys() == {"answered", "InputError", "MessageError", "NonFiniteError"}, told
    assert min(told.values()) > 5, told


def send_for(seconds: float, to: socket.socket, frame: bytes) -> None:
    """One after another, as fast as they are taken."""
    waiting, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            waiting = waiting or frame
            waiting = waiting[to.send(waiting) :]


# ---- connections --------------------------------------------------------------------------------


def test_an_oversized_message_ends_that_connection_with_the_reason() -> None:
    with (
        served(limits=Limits(message_bytes=20_000)) as server,
        undisturbed(server),
        contextlib.closing(raw(server)) as connection,
    ):
        connection.send(bytes(100_000))
        with pytest.raises(ConnectionClosed, match=r"1009|too big|exceeds"):
            connection.recv(10)
        with Client(address(server)) as client:  # which does not send it
            with pytest.raises(LimitError, match="messages of 20000 bytes"):
                client.infer({**observation(0), "picture": np.zeros(100_000, np.uint8)})
            assert client.infer(observation(0))["calls"] > 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\xfe\x40\x00abcd" + b"x" * 100,  # a frame of 16 kB, torn after 100 bytes
        b"\xf2\x80abcd",  # reserved bits
        b"\x82\x05hello",  # not masked
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_torn_and_broken_frames(data: bytes) -> None:
    with served() as server, undisturbed(server):
        connection = raw(server)
        connection.socket.sendall(data)
        with contextlib.suppress(OSError):  # the client's own thread may have closed it already
            connection.socket.shutdown(socket.SHUT_WR)
        assert gone(server, 1)


def test_handshakes_that_are_none_or_never_end() -> None:
    with served() as server, undisturbed(server):
        for data in (b"", b"GET / HTT", b"\x00" * 100, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.port)) as made:
                made.sendall(data)
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for each in held:
            each.sendall(b"GET / HTTP/1.1\r\n")
        with Client(address(server)) as client:
            assert client.infer(observation(0))["calls"] > 0
        for each in held:
            each.close()


def test_who_vanishes_in_the_middle_is_forgotten() -> None:
    """With a reset of the connection, while its chunk is drawn."""
    with served() as server, undisturbed(server):
        for _ in range(10):
            connection = raw(server)
            connection.send(pack({KEY: {"call": "infer_batch"}, **observation(0, (8,))}))
            end = struct.pack("ii", 1, 0)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, end)
            connection.socket.close()
        assert gone(server, 1)
        until = time.monotonic() + 10
        while server.health()["robots"] > 1 and time.monotonic() < until:
            time.sleep(0.02)
        assert server.health()["robots"] == 1


def test_who_takes_no_answers_is_dropped_and_holds_up_nobody() -> None:
    limits = Limits(send_s=1.0, robots=256)
    with served(limits=limits) as server, undisturbed(server) as spent:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.connect(("127.0.0.1", server.port))
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        made.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        data = pack({KEY: {"call": "infer_batch", "detail": True}, **observation(0, (200,))})
        frame = b"\x82\xfe" + struct.pack(">H", len(data)) + b"\x00" * 4 + data
        made.settimeout(0.2)
        while len(server._open) < 2:
            time.sleep(0.01)
        theirs = [*server._open][-1].socket
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # fuller sooner
        with pytest.raises(ConnectionError):  # it is dropped
            send_for(60, made, frame)
        assert gone(server, 1), "it still holds a connection"
        made.close()
    assert max(spent) < 30


def test_too_many_messages_end_the_connection_that_sends_them() -> None:
    with served(limits=Limits(rate_hz=1)) as server, Client(address(server)) as other:
        with Client(address(server)) as client:
            with pytest.raises(LimitError, match="more than 1 messages a second"):
                [client.health() for _ in range(200)]
            with pytest.raises(ConnectionLostError, match="too many messages"):
                client.health()
        assert other.health()["status"] == "ok"


def test_who_says_nothing_is_sent_away() -> None:
    with served(limits=Limits(idle_s=0.3)) as server:
        connection = raw(server)
        with pytest.raises(ConnectionClosed, match=r"no message came in 0.3 s"):
            connection.recv(10)


def test_a_server_that_hangs_is_a_lost_connection() -> None:
    policy, until = tiny_policy(), threading.Event()
    policy.source.draw = lambda *_: until.wait(20)  # type: ignore[method-assign, assignment]
    with served(policy) as server:
        client = Client(address(server))
        client.timeout_s = 0.5
        with pytest.raises(ConnectionLostError, match=r"did not answer within 0.5 s"):
            client.infer(observation(0))
        with pytest.raises(ConnectionLostError, match="is closed"):
            client.infer(observation(0))
        until.set()


def test_what_a_failed_draw_saw_is_not_remembered() -> None:
    """The next chunk of that client is of its good observations alone, and of the same noise."""
    local = tiny_policy()
    local.reset(5)
    for t in range(2):
        local.observe({k: v[None] for k, v in observation(t).items()})
    expected = local.predict()[0]
    with served() as server, Client(address(server) + "/?seed=5") as client:
        client.observe(observation(0))
        with pytest.raises(NonFiniteError):
            client.infer({"object": np.full(3, 3e38), "arm": np.full(2, 3e38)})
        got = client.infer(observation(1))["actions"]
    assert_same_draws(got, expected)
