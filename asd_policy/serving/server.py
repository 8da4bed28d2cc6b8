"""A policy's server: WebSockets in, chunks out."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import websockets.asyncio.server as ws
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from asd_policy.errors import InputError, LimitError, ServerError, counted
from asd_policy.policy.horizon import RecedingHorizon
from asd_policy.serving.batcher import Batcher
from asd_policy.serving.metadata import metadata_of
from asd_policy.serving.protocol import error_text, pack
from asd_policy.serving.requests import Seen
from asd_policy.serving.session import Session
from asd_policy.serving.token import one_word

logger = logging.getLogger(__name__)
HEALTH = "/healthz"  # as openpi's
_GOING, _POLICY, _IDLE = 1001, 1008, 1000  # codes of RFC 6455


@dataclass(frozen=True)
class Limits:
    """What one client may ask, and how many there may be.

    Attributes:
        message_bytes: of a message. rate_hz: messages a second, counted over a second.
        idle_s: without a message, after which a connection is closed.
        send_s: that a client may take to receive an answer.
        clients: at once. robots: of one connection.
        drain_s: that answers may take when the server ends.
    """

    message_bytes: int = 16 << 20
    rate_hz: float = 1000.0
    idle_s: float = 600.0
    send_s: float = 10.0
    clients: int = 64
    robots: int = 256
    drain_s: float = 30.0


class Server:
    """Serves one policy.

    Args:
        policy: what draws; nothing else may use it from here on.
        host, port: where it listens; port 0 is any that is free.
        token: a word that clients must show (``Authorization: Api-Key TOKEN``); None asks for none.
        robots: that are expected at once; "auto" chooses the window for so many, once.
        wait_s: from an observation's arrival until its chunk is drawn without waiting for others.
        limits: of clients. metadata: entries beside those of the policy.

    Attributes:
        port: the one in use, once started. errors, requests, connections: counted.
    """

    def __init__(
        self,
        policy: RecedingHorizon,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        token: str | None = None,
        robots: int = 1,
        wait_s: float = 0.0,
        limits: Limits = Limits(),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        policy.reset([None] * robots)
        for index in range(robots):
            policy.leave(index)
        self.host, self.port, self.limits = host, port, limits
        self._token = None if token is None else one_word(token, "token")
        self._policy, self._seen = policy, Seen.by(policy)
        self._open: dict[ws.ServerConnection, bool] = {}  # connection → at work on a message
        self._batcher = Batcher(policy, wait_s, lambda: len(self._open))
        self._metadata = metadata_of(policy, self._seen, wait_s, limits) | dict(metadata or {})
        self._greeting = pack(self._metadata)
        self._partings: set[asyncio.Future[None]] = set()
        self._draining = False
        self.connections = self.requests = self.errors = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            ServerError: the address cannot be listened at.
        """
        try:
            self._server = await ws.serve(
                self._handle,
                self.host,
                self.port,
                process_request=self._admit,
                compression=None,
                max_size=self.limits.message_bytes,
                max_queue=1,
                server_header=None,
            )
        except OSError as error:
            raise ServerError(f"cannot listen at {self.host}:{self.port}: {error}") from error
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        self._batcher.start()

    async def drain(self) -> None:
        """Take no more messages, answer those that are there, close, and end."""
        self._draining = True
        self._server.close(close_connections=False)
        idle = [connection for connection, at_work in self._open.items() if not at_work]
        await asyncio.gather(*(each.close(_GOING, "the server is ending") for each in idle))
        until = time.monotonic() + self.limits.drain_s
        while self._open and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for late in list(self._open):
            late.transport.abort()
        await self._server.wait_closed()
        await asyncio.to_thread(self._batcher.stop)

    async def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C, then drain; a second one ends at once."""
        end, loop = asyncio.Event(), asyncio.get_running_loop()

        def ask() -> None:
            if end.is_set():
                raise KeyboardInterrupt
            end.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask)
        await end.wait()
        await self.drain()

    # ---- connections -----------------------------------------------------------------------------

    def _admit(self, connection: ws.ServerConnection, request: Request) -> Response | None:
        """Refuse, or answer what is no WebSocket; None goes on."""
        if urlsplit(request.path).path == HEALTH:
            if self._draining:
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "draining\n")
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._token is not None:
            shown = request.headers.get("Authorization", "")
            if not hmac.compare_digest(shown.encode(), f"Api-Key {self._token}".encode()):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "expected the token\n")
        if self._draining or len(self._open) >= self.limits.clients:
            here = counted(len(self._open), "client")
            why = "the server is ending" if self._draining else f"no room beside {here}"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n")
        try:
            _seed_in(request.path)
        except InputError as error:
            return connection.respond(http.HTTPStatus.BAD_REQUEST, f"{error}\n")
        return None

    async def _handle(self, connection: ws.ServerConnection) -> None:
        assert connection.request is not None
        seed = _seed_in(connection.request.path)
        session = Session(self._policy, self._batcher, self._seen, self.limits.robots, seed)
        self._open[connection] = False
        self.connections += 1
        try:
            await self._send(connection, self._greeting)
            await self._converse(connection, session)
        except ConnectionClosed:
            pass  # the client has gone, or takes nothing more, or says nothing
        finally:
            await session.close()
            del self._open[connection]

    async def _converse(self, connection: ws.ServerConnection, session: Session) -> None:
        rate, before_s = _Rate(self.limits.rate_hz), None
        while not self._draining:
            with _after(self.limits.idle_s, self._part, connection):
                data = await connection.recv()
            arrived = time.perf_counter()
            self._open[connection] = True
            self.requests += 1
            try:
                rate.count()
                answer = await self._answer(session, data, arrived)
            except Exception as error:
                self.errors += 1
                if isinstance(error, ServerError):
                    logger.error("%s: %s", connection.remote_address, error)
                await self._send(connection, error_text(error))
                if isinstance(error, LimitError):
                    await connection.close(_POLICY, "too many messages")
                    return
            else:
                timing = answer.setdefault("server_timing", {})
                if before_s is not None:
                    timing["prev_total_ms"] = 1e3 * before_s
                timing["total_ms"] = 1e3 * (time.perf_counter() - arrived)
                await self._send(connection, pack(answer))
            before_s = time.perf_counter() - arrived
            self._open[connection] = False
        await connection.close(_GOING, "the server is ending")

    async def _answer(self, session: Session, data: bytes | str, arrived: float) -> dict[str, Any]:
        answer = await session.answer(data, arrived)
        return self.health() if answer is None else answer

    def health(self) -> dict[str, Any]:
        """Counts since the start, and who is here now."""
        return {
            "status": "draining" if self._draining else "ok",
            "clients": len(self._open),
            "robots": self._policy.present,
            "connections": self.connections,
            "requests": self.requests,
            "errors": self.errors,
            "batches": self._batcher.batches,
            "chunks": self._batcher.chunks,
        }

    async def _send(self, connection: ws.ServerConnection, data: bytes | str) -> None:
        with _after(self.limits.send_s, self._abort, connection):
            await connection.send(data)

    def _part(self, connection: ws.ServerConnection) -> None:
        """From a client that says nothing."""
        why = f"no message came in {self.limits.idle_s:g} s"
        self._partings.add(task := asyncio.ensure_future(connection.close(_IDLE, why)))
        task.add_done_callback(self._partings.discard)

    @staticmethod
    def _abort(connection: ws.ServerConnection) -> None:
        logger.warning("%s takes no answers", connection.remote_address)
        connection.transport.abort()


@contextlib.contextmanager
def _after(seconds: float, work: Callable[..., None], *given: Any) -> Iterator[None]:
    """Work that is done if what is awaited takes longer. (``asyncio.wait_for`` makes a task for
    each message, which older Pythons take a tenth of a millisecond for.)"""
    timer = asyncio.get_running_loop().call_later(seconds, work, *given)
    try:
        yield
    finally:
        timer.cancel()


class _Rate:
    """Counts messages: no more than so many in a second, counted since it last had none left."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._left, self._at = per_s, max(1.0, per_s), time.monotonic()

    def count(self) -> None:
        """One message. Raises LimitError where there are too many."""
        now = time.monotonic()
        self._left = min(max(1.0, self._per_s), self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            raise LimitError(f"more than {self._per_s:g} messages a second came; the limit is that")
        self._left -= 1.0


def _seed_in(path: str) -> int | None:
    """Of the address ws://host:port/?seed=3. Raises ValueError for anything else in it."""
    asked = parse_qs(urlsplit(path).query, keep_blank_values=True)
    seed = asked.pop("seed", [None])
    if asked or len(seed) != 1:
        raise InputError(f"an address may hold ?seed=NUMBER and no more, got {path!r:.80}")
    if seed[0] is None:
        return None
    if not seed[0].isascii() or not seed[0].isdigit() or int(seed[0]) >= 2**63:
        raise InputError(f"a seed must be a whole number below 2^63, got {seed[0]!r:.80}")
    return int(seed[0])
