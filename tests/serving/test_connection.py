"""A connection's two ends, over sockets of this machine."""

from __future__ import annotations

import contextlib
import http
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("websockets")
import websockets.sync.server as library
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from asd_policy.serving import connection
from asd_policy.serving.connection import ClientConnection, Left, ServerConnection

Handler = Callable[[library.ServerConnection], None]


@contextlib.contextmanager
def library_server(handle: Handler, **options: object) -> Iterator[int]:
    """The library's own, which sends pings; its port."""
    with library.serve(handle, "127.0.0.1", 0, compression=None, **options) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join(10)


def echo(made: library.ServerConnection) -> None:
    for message in made:
        made.send(message)


@contextlib.contextmanager
def pair(max_size: int = 1 << 20) -> Iterator[tuple[ServerConnection, ClientConnection]]:
    """Both ends of one connection."""
    ends: list[ServerConnection] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            ends.append(ServerConnection(listening.accept()[0], max_size))
            assert ends[0].let_in(lambda request: None, 10)

        accepting = threading.Thread(target=accept)
        accepting.start()
        client = ClientConnection(f"ws://127.0.0.1:{listening.getsockname()[1]}/?a=1", {}, 10)
        accepting.join(10)
    with contextlib.closing(client), contextlib.closing(ends[0]):
        yield ends[0], client


def test_messages_go_both_ways() -> None:
    with pair() as (server, client):
        assert server.path == "/?a=1"
        for message in ("text", b"bytes", b"", b"x" * 300_000):
            sending = threading.Thread(target=server.send, args=(message, 10))
            sending.start()
            assert client.receive(10) == message
            sending.join(10)
        answering = threading.Thread(target=lambda: server.send(server.receive(10), 10))
        answering.start()
        assert client.exchange(b"question", 10) == b"question"
        answering.join(10)
        with pytest.raises(TimeoutError):
            client.receive(0.05)


def test_a_message_in_pieces_is_one() -> None:
    """With a ping in between, which is answered."""
    ponged: list[float] = []

    def in_pieces(made: library.ServerConnection) -> None:
        made.send(["a", "b", "c"])
        made.send([b"d", b"e"])
        assert made.ping().wait(10)
        ponged.append(1)
        made.recv()

    with library_server(in_pieces) as port:
        client = ClientConnection(f"ws://127.0.0.1:{port}", {}, 10)
        assert (client.receive(10), client.receive(10)) == ("abc", b"de")
        until = time.monotonic() + 30
        while not ponged and time.monotonic() < until:
            with pytest.raises(TimeoutError):
                client.receive(0.1)
        assert ponged
        client.close()


@pytest.mark.parametrize("looked_after", [True, False])
def test_an_idle_client_answers_pings(looked_after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the looks, the library's server lets it go: the test would notice."""
    monkeypatch.setattr(connection, "LOOK_S", 0.05 if looked_after else 60.0)
    patience = 4.0 if looked_after else 1.0
    with library_server(echo, ping_interval=0.5, ping_timeout=patience) as port:
        client = ClientConnection(f"ws://127.0.0.1:{port}", {}, 10)

        def ask_after(seconds: float, times: int) -> None:
            for _ in range(times):
                time.sleep(seconds)
                assert client.exchange(b"still here", 10) == b"still here"

        if looked_after:
            ask_after(6, 1)
        else:
            with pytest.raises((ConnectionClosed, OSError)):
                ask_after(3, 100)
        client.close()
        client.looking.join(30)
        assert not client.looking.is_alive()


def test_a_server_that_draws_answers_pings_when_it_is_looked_at() -> None:
    with pair() as (server, client):
        client._protocol.send_ping(b"there?")
        client._flush(time.monotonic() + 10)
        until = time.monotonic() + 10
        while not client._protocol.events_received() and time.monotonic() < until:
            assert server.look()
            with contextlib.suppress(BlockingIOError):
                client.socket.settimeout(0)
                client._protocol.receive_data(client.socket.recv(100))
        assert time.monotonic() < until


def test_goodbyes_say_why() -> None:
    with pair() as (server, client):
        server.close(1001, "the server is ending")
        with pytest.raises(ConnectionClosed, match=r"1001 .*the server is ending"):
            client.exchange(b"question", 10)
        with pytest.raises(ConnectionClosed, match="the server is ending"):
            client.receive(10)
    with pair() as (server, client):
        client.close()
        with pytest.raises(ConnectionClosed, match="1000"):
            server.receive(10)


def test_who_is_asked_to_leave_reads_what_has_come_first() -> None:
    with pair() as (server, client):
        client.send(b"asked", 10)
        assert server.receive(10) == b"asked"
        threading.Timer(0.2, server.leave).start()
        with pytest.raises(Left):
            server.receive(10)
        server.close(1001, "going")
        with pytest.raises(ConnectionClosed, match="going"):
            client.receive(10)


def test_who_takes_nothing_is_a_timeout() -> None:
    with pair() as (server, client):
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            server.send(b"x" * 50_000_000, 0.3)
        assert time.monotonic() - start < 5
        server.abort()


def test_a_large_message_is_refused_with_its_code() -> None:
    with pair(max_size=1000) as (server, client):

        def serve() -> None:
            with contextlib.suppress(ConnectionClosed):
                server.receive(10)

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(ConnectionClosed, match="1009"):
            client.exchange(b"x" * 1_000_000, 10)
        client.close()
        serving.join(10)
        assert not serving.is_alive()


def test_handshakes_that_fail() -> None:
    def refuse(number: int) -> None:
        made = listening.accept()[0]
        if number == 0:
            end = ServerConnection(made, 1000)
            assert not end.let_in(lambda _: (http.HTTPStatus.FORBIDDEN, "not you\n"), 10)
            end.close()
        elif number == 1:
            made.recv(1000)
            made.sendall(b"SSH-2.0-x\r\n\r\n")
            made.close()
        else:
            made.recv(1000)
            time.sleep(1)
            made.close()

    errors: list[tuple[type[BaseException], float]]
    errors = [(InvalidStatus, 10), (InvalidMessage, 10), (TimeoutError, 0.3)]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for number, (error, patience) in enumerate(errors):
            thread = threading.Thread(target=refuse, args=(number,))
            thread.start()
            with pytest.raises(error):
                ClientConnection(f"ws://127.0.0.1:{listening.getsockname()[1]}", {}, patience)
            thread.join(10)


def test_text_that_is_none_ends_nothing_but_is_shown() -> None:
    with pair() as (server, client):
        server._protocol.send_text(b"\xff\xfe")
        server._flush(time.monotonic() + 10)
        assert client.receive(10) == "\ufffd\ufffd"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with library_server(echo, ssl=context) as port:
        address = f"wss://localhost:{port}"
        with pytest.raises(ssl.SSLCertVerificationError):
            ClientConnection(address, {}, 10)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        client = ClientConnection(address, {}, 10)
        for message in (b"secret", b"x" * 500_000):
            assert client.exchange(message, 10) == message
        assert client.look()
        client.close()
