"""One end of a connection: WebSocket messages on a socket that the thread itself reads which wants
them.

The library's connections hand every message from one thread to another, a quarter of a millisecond
at each end. These speak through its protocol without input and output (websockets.readthedocs.io,
"Sans-I/O"). While their thread is busy elsewhere, somebody must :meth:`Connection.look`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

LOOK_S = 5.0  # between looks at a connection that nobody reads; a ping may go 20 s unanswered
_LONGEST_S = 1e8  # more than a socket's timer counts is for ever
_PONG_S = 1.0  # that the answer to a ping or a goodbye may take to be sent
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError)


class Left(Exception):
    """The connection was asked to :meth:`Connection.leave`, and no message is there."""


class Connection:
    """What both ends have in common. One thread at a time sends or receives.

    Attributes:
        socket: that it speaks on.
    """

    def __init__(self, made: socket.socket, protocol: Protocol) -> None:
        self.socket, self._protocol = made, protocol
        self._shaken: Request | Response | None = None  # the other's half of the handshake
        self._came: deque[str | bytes] = deque()
        self._part, self._is_text = bytearray(), False  # of a message in several frames
        self._lock = threading.Lock()  # of all above, and of reading
        self._leaving, self._process = False, os.getpid()
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        _watch_over(made)

    def send(self, data: str | bytes, timeout_s: float) -> None:
        """Send a message: text or bytes.

        Raises:
            TimeoutError: it is not taken in time. ConnectionClosed, OSError: the other has gone.
        """
        with self._lock:
            self._say(data, time.monotonic() + timeout_s)

    def receive(self, timeout_s: float) -> str | bytes:
        """The next message.

        Raises:
            TimeoutError: there was none in time. ConnectionClosed, OSError: the other has gone.
            Left: see :meth:`leave`.
        """
        with self._lock:
            return self._next(time.monotonic() + timeout_s)

    def exchange(self, data: bytes, timeout_s: float) -> str | bytes:
        """Send a message, and receive the next one. Raises as they do."""
        with self._lock:
            until = time.monotonic() + timeout_s
            self._take_in(None)  # a goodbye may have come, and says why
            with contextlib.suppress(ConnectionError):  # why is among what has come
                self._say(data, until)
            return self._next(until)

    def close(self, code: int = 1000, reason: str = "", timeout_s: float = 0.1) -> None:
        """Say goodbye, and wait so long for the other's. (In a fork's child: neither, for the
        connection goes on where it was made.)"""
        try:
            if os.getpid() == self._process:
                with self._lock, contextlib.suppress(OSError):
                    self._part_from(code, reason, time.monotonic() + timeout_s)
        finally:
            self.socket.close()

    def leave(self) -> None:
        """Have the thread that receives read what has come, and no more. (From any thread.)"""
        self._leaving = True
        self.abort(socket.SHUT_RD)

    def dismiss(self, code: int, reason: str) -> None:
        """Have the thread that sends or receives fail, and tell the other why, if that can be done
        at once. (From any thread.)"""
        if self._lock.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError):
                    if self._protocol.state is State.OPEN:
                        self._protocol.send_close(code, reason)
                        self._flush(time.monotonic() + _PONG_S)
            finally:
                self._lock.release()
        self.abort()

    def abort(self, how: int = socket.SHUT_RDWR) -> None:
        """Have the thread that sends or receives fail. (From any thread.)"""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, how)  # TLS's own would pull it from the reader

    def look(self) -> bool:
        """Answer pings and goodbyes, unless somebody reads; whether it goes on."""
        if not self._lock.acquire(blocking=False):
            return True
        try:
            self._take_in(None)
        except OSError:
            return False
        finally:
            self._lock.release()
        return self._protocol.state is not State.CLOSED

    # ---- with the lock ---------------------------------------------------------------------------

    def _part_from(self, code: int, reason: str, until: float) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._flush(until)
        while self._protocol.state is not State.CLOSED:
            self._take_in(until)

    def _say(self, data: str | bytes, until: float) -> None:
        if self._protocol.state is not State.OPEN:
            return  # receiving tells why
        if isinstance(data, str):
            self._protocol.send_text(data.encode())
        else:
            self._protocol.send_binary(data)
        self._flush(until)

    def _next(self, until: float) -> str | bytes:
        while not self._came:
            if self._protocol.state is State.CLOSED:
                raise self._protocol.close_exc
            if self._take_in(until):
                raise Left
        return self._came.popleft()

    def _take_in(self, until: float | None) -> bool:
        """Whatever comes first by then (None: what is there now). True: it is to leave instead."""
        if self._protocol.state is State.CLOSED:
            return False
        self.socket.settimeout(0 if until is None else _left(until))
        try:
            data = self.socket.recv(1 << 16)
        except _NOTHING_YET:
            return False
        if data:
            self._protocol.receive_data(data)
        elif self._leaving and self._protocol.state is State.OPEN:
            return True
        else:
            self._protocol.receive_eof()
        self._sort(self._protocol.events_received())
        if self._protocol.state is not State.CONNECTING:
            with contextlib.suppress(OSError):  # answers to pings and goodbyes
                self._flush(time.monotonic() + _PONG_S)
        return False

    def _sort(self, events: Iterable[Request | Response | Frame]) -> None:
        for event in events:
            if not isinstance(event, Frame):
                self._shaken = event
            elif event.opcode in _DATA:
                self._collect(event)

    def _collect(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        if frame.fin and not self._part:  # most are whole
            whole = bytes(frame.data)
        else:
            self._part += frame.data
            if not frame.fin:
                return
            whole, self._part = bytes(self._part), bytearray()
        self._came.append(whole.decode(errors="replace") if self._is_text else whole)

    def _flush(self, until: float) -> None:
        try:
            for data in self._protocol.data_to_send():
                self.socket.settimeout(_left(until))
                if data:
                    self.socket.sendall(data)
                else:  # the protocol's word for an end
                    self.socket.shutdown(socket.SHUT_WR)
        except TimeoutError:
            self.abort()  # what would come next would be read as the rest of this
            raise


class ClientConnection(Connection):
    """Connects when it is made, and is looked after by a thread of its own (``looking``).

    Args:
        address: ws://… or wss://…. headers: beside those of the protocol.
        timeout_s: for connecting.

    Raises:
        OSError, TimeoutError, InvalidHandshake: nobody listens there, or it lets nobody in.
    """

    def __init__(self, address: str, headers: Mapping[str, str], timeout_s: float) -> None:
        uri, until = parse_uri(address), time.monotonic() + timeout_s
        made = socket.create_connection((uri.host, uri.port), _left(until))
        try:
            if uri.secure:
                context = ssl.create_default_context()
                made = context.wrap_socket(made, server_hostname=uri.host)
            super().__init__(made, ClientProtocol(uri, max_size=None))
            self._shake_hands(headers, until)
        except BaseException:
            made.close()
            raise
        self._closed = threading.Event()
        self.looking = threading.Thread(target=self._look_after, daemon=True)
        self.looking.start()

    def _shake_hands(self, headers: Mapping[str, str], until: float) -> None:
        protocol = self._protocol
        assert isinstance(protocol, ClientProtocol)
        request = protocol.connect()
        request.headers.update(headers)
        protocol.send_request(request)
        self._flush(until)
        while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
            self._take_in(until)
        if protocol.handshake_exc is not None:
            raise protocol.handshake_exc

    def _look_after(self) -> None:
        while not self._closed.wait(LOOK_S):
            if not self.look():
                return

    def close(self, code: int = 1000, reason: str = "", timeout_s: float = 0.1) -> None:
        self._closed.set()
        super().close(code, reason, timeout_s)


class ServerConnection(Connection):
    """A client's, which has connected and said nothing yet.

    Args:
        made: the socket. max_size: bytes of a message.

    Attributes:
        address: the client's. path: that it asked for, once it is let in.
    """

    def __init__(self, made: socket.socket, max_size: int) -> None:
        super().__init__(made, ServerProtocol(max_size=max_size))
        self.address, self.path = made.getpeername(), ""

    def let_in(
        self, refuse: Callable[[Request], tuple[HTTPStatus, str] | None], timeout_s: float
    ) -> bool:
        """Shake hands, unless ``refuse`` has another answer to the request; whether it did.

        Raises:
            OSError, TimeoutError: the other has gone, or makes no request in time.
        """
        until, protocol = time.monotonic() + timeout_s, self._protocol
        assert isinstance(protocol, ServerProtocol)
        with self._lock:
            while self._shaken is None and protocol.handshake_exc is None:
                if protocol.state is State.CLOSED:
                    raise ConnectionError("no request was made")
                self._take_in(until)
            if self._shaken is None:
                refused: tuple[HTTPStatus, str] | None
                refused = HTTPStatus.BAD_REQUEST, f"{protocol.handshake_exc}\n"
            else:
                assert isinstance(self._shaken, Request)
                self.path, refused = self._shaken.path, refuse(self._shaken)
            if refused is not None:  # whatever may have come behind the request
                self.socket.settimeout(_left(until))
                self.socket.sendall(protocol.reject(*refused).serialize())
                self.socket.shutdown(socket.SHUT_WR)
                return False
            assert isinstance(self._shaken, Request)
            if protocol.eof_sent or protocol.close_rcvd is not None:
                raise ConnectionError("more than a request was sent before its answer")
            protocol.send_response(protocol.accept(self._shaken))
            self._flush(until)
            return protocol.state is State.OPEN


def _left(until: float) -> float:
    """Seconds, as many as a socket can count. Raises TimeoutError where there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, _LONGEST_S)


def _watch_over(made: socket.socket) -> None:
    """Have the system ask, every now and then, whether the other's is still there: one that has
    lost its power says no goodbye."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # not everywhere
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
