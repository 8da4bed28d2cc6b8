"""A policy's server: WebSockets in, chunks out."""

from __future__ import annotations

import contextlib
import hmac
import http
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request

from asd_policy.errors import InputError, LimitError, ServerError, counted
from asd_policy.policy.horizon import RecedingHorizon
from asd_policy.serving.batcher import Batcher
from asd_policy.serving.connection import LOOK_S, Left, ServerConnection
from asd_policy.serving.listening import listen
from asd_policy.serving.metadata import metadata_of
from asd_policy.serving.protocol import IDLE, error_text, pack
from asd_policy.serving.requests import Seen
from asd_policy.serving.session import Session
from asd_policy.serving.token import one_word

logger = logging.getLogger(__name__)
HEALTH = "/healthz"  # as openpi's
_GOING, _POLICY, _FAULT = 1001, 1008, 1011  # codes of RFC 6455, as IDLE is
_ENDING = "the server is ending"
_HANDSHAKE_S, _GOODBYE_S, _GRACE_S = 10.0, 2.0, 0.5
_SPARE = 64  # connections beside the clients: handshakes, questions after its health


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
    """Serves one policy. Each client has a thread, which draws what it asks (see ``Batcher``).

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
        self._counting = threading.Lock()  # guards the next two, and the numbers
        self._open: dict[ServerConnection, bool] = {}  # client → at work on a message
        # Who is not let in yet, or will not be, too; who came first is first.
        self._all: dict[ServerConnection, None] = {}
        self._batcher = Batcher(policy, wait_s, lambda: len(self._open))
        self._metadata = metadata_of(policy, self._seen, wait_s, limits) | dict(metadata or {})
        self._greeting = pack(self._metadata)
        self._listening: list[socket.socket] = []
        self._accepting: list[threading.Thread] = []
        self._draining, self._ended = False, threading.Event()
        self.connections = self.requests = self.errors = 0

    def start(self) -> None:
        """Listen, in threads of its own.

        Raises:
            ServerError: the address cannot be listened at.
        """
        self._listening = listen(self.host, self.port)
        self.port = self._listening[0].getsockname()[1]
        self._accepting = [
            threading.Thread(target=self._accept, args=(each,), daemon=True)
            for each in self._listening
        ]
        for thread in self._accepting:
            thread.start()
        threading.Thread(target=self._look_after, daemon=True).start()

    def drain(self) -> None:
        """Take no more messages, answer those that are there, close, and end."""
        self._draining = True
        for each in self._listening:
            with contextlib.suppress(OSError):  # not everywhere does it wake who accepts
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._accepting:  # until then the port is taken
            thread.join()
        for connection, at_work in list(self._open.items()):
            if not at_work:
                connection.leave()
        self._wait_until_gone(self._open, self.limits.drain_s)
        if not self._open:  # who shakes hands is told, too
            self._wait_until_gone(self._all, _GRACE_S)
        for late in list(self._all):
            late.dismiss(_GOING, _ENDING)
        self._ended.set()

    @staticmethod
    def _wait_until_gone(those: Collection[ServerConnection], seconds: float) -> None:
        until = time.monotonic() + seconds
        while those and time.monotonic() < until:
            time.sleep(0.01)

    @property
    def at_work(self) -> bool:
        """Whether somebody's answer is being made."""
        return any(list(self._open.values()))

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or Ctrl-C, then drain; a second one ends at once. For the program's
        main thread.

        Args:
            ready: called once a signal is heard: who reads what it says may send one at once.
        """
        end = threading.Event()

        def ask(*_: object) -> None:
            if end.is_set():
                raise KeyboardInterrupt
            end.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        ready()
        end.wait()
        self.drain()

    # ---- threads of its own ----------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        while not self._draining:
            try:
                made, _ = listening.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if not self._draining:  # too many open files, or a client that has gone again
                    logger.warning("a connection could not be taken: %s", error)
                    time.sleep(0.1)
                continue
            if len(self._all) >= self.limits.clients + _SPARE:
                self._show_out_the_silent()
            try:
                connection = ServerConnection(made, self.limits.message_bytes)
                self._all[connection] = None
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()
            except OSError:  # it has gone already
                made.close()
            except RuntimeError as error:  # there may be no more threads
                logger.warning("a connection could not be taken: %s", error)
                self._all.pop(connection, None)
                made.close()

    def _show_out_the_silent(self) -> None:
        """Have who came first, and is not let in yet, give its place to the next one: sockets that
        say nothing must not keep robots out."""
        silent = next((each for each in list(self._all) if each not in self._open), None)
        if silent is not None:
            self._all.pop(silent, None)
            silent.abort()

    def _look_after(self) -> None:
        """Answer the pings of clients whose thread is drawing."""
        while not self._ended.wait(LOOK_S):
            for connection in list(self._open):
                connection.look()

    # ---- connections -----------------------------------------------------------------------------

    def _handle(self, connection: ServerConnection) -> None:
        try:
            if connection.let_in(lambda request: self._admit(connection, request), _HANDSHAKE_S):
                self._serve(connection)
        except (ConnectionClosed, OSError, Left):
            pass  # the client has gone, or takes nothing more, or says nothing
        except Exception as error:
            logger.error("a fault while serving %s", connection.address, exc_info=error)
            connection.close(_FAULT, "a fault of the server's", _GOODBYE_S)
        finally:
            with self._counting:
                self._open.pop(connection, None)
            self._batcher.fewer()
            try:
                connection.close(timeout_s=_GOODBYE_S)
            finally:
                self._all.pop(connection, None)

    def _admit(
        self, connection: ServerConnection, request: Request
    ) -> tuple[http.HTTPStatus, str] | None:
        """Refuse, or answer what is no WebSocket; None gives it a place."""
        if request.path.partition("?")[0] == HEALTH:
            if self._draining:
                return http.HTTPStatus.SERVICE_UNAVAILABLE, "draining\n"
            return http.HTTPStatus.OK, "OK\n"
        if self._token is not None:
            shown = ", ".join(request.headers.get_all("Authorization"))
            if not hmac.compare_digest(shown.encode(), f"Api-Key {self._token}".encode()):
                return http.HTTPStatus.UNAUTHORIZED, "expected the token\n"
        try:
            _seed_in(request.path)
        except InputError as error:
            return http.HTTPStatus.BAD_REQUEST, f"{error}\n"
        with self._counting:
            here = len(self._open)
            if not self._draining and here < self.limits.clients:
                self._open[connection] = False
                self.connections += 1
                return None
        why = _ENDING if self._draining else f"no room beside {counted(here, 'client')}"
        return http.HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n"

    def _serve(self, connection: ServerConnection) -> None:
        seed = _seed_in(connection.path)
        session = Session(self._policy, self._batcher, self._seen, self.limits.robots, seed)
        try:
            self._send(connection, self._greeting)
            self._converse(connection, session)
        finally:
            session.close()

    def _converse(self, connection: ServerConnection, session: Session) -> None:
        rate, before_s = _Rate(self.limits.rate_hz), None
        while not self._draining:
            try:
                data = connection.receive(self.limits.idle_s)
            except TimeoutError:
                why = f"no message came in {self.limits.idle_s:g} s"
                connection.close(IDLE, why, _GOODBYE_S)
                return
            except Left:
                break
            arrived = time.perf_counter()
            self._open[connection] = True
            try:
                answer = pack(self._answer(session, data, arrived, rate, before_s))
            except LimitError as error:
                self._fail(connection, error)
                connection.close(_POLICY, "too many messages", _GOODBYE_S)
                return
            except Exception as error:
                self._fail(connection, error)
            else:
                self._send(connection, answer)
                session.ahead()
            before_s = time.perf_counter() - arrived
            self._open[connection] = False
        connection.close(_GOING, _ENDING, _GOODBYE_S)

    def _answer(
        self,
        session: Session,
        data: bytes | str,
        arrived: float,
        rate: _Rate,
        before_s: float | None,
    ) -> dict[str, Any]:
        with self._counting:
            self.requests += 1
        rate.count()
        answer = session.answer(data, arrived)
        if answer is None:
            answer = self.health()
        timing = answer.setdefault("server_timing", {})
        if before_s is not None:
            timing["prev_total_ms"] = 1e3 * before_s
        timing["total_ms"] = 1e3 * (time.perf_counter() - arrived)
        return answer

    def _fail(self, connection: ServerConnection, error: Exception) -> None:
        with self._counting:
            self.errors += 1
        if isinstance(error, ServerError):
            logger.error("%s: %s", connection.address, error)
        self._send(connection, error_text(error))

    def _send(self, connection: ServerConnection, data: bytes | str) -> None:
        try:
            connection.send(data, self.limits.send_s)
        except TimeoutError:
            logger.warning("%s takes no answers", connection.address)
            connection.abort()
            raise

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
    asked = parse_qs(path.partition("?")[2], keep_blank_values=True)
    seed = asked.pop("seed", [None])
    if asked or len(seed) != 1:
        raise InputError(f"an address may hold ?seed=NUMBER and no more, got {path!r:.80}")
    if seed[0] is None:
        return None
    digits = seed[0].isascii() and seed[0].isdigit() and len(seed[0]) < 20
    if not digits or int(seed[0]) >= 2**63:
        raise InputError(f"a seed must be a whole number below 2^63, got {seed[0]!r:.80}")
    return int(seed[0])
