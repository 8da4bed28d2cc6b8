"""A client's connection: WebSocket messages on a socket that the asking thread itself reads.

The library's client reads in a thread of its own, from which each answer is handed over: a quarter
of a millisecond in every round trip. This one speaks through the library's protocol without input
and output (websockets.readthedocs.io, "Sans-I/O"), and a thread looks after it only while nothing
is asked.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

_LOOK_S = 5.0  # between looks at an idle connection; servers wait 20 s for the answer to a ping
_GOODBYE_S = 0.1  # nobody may be there to say it to
_MESSAGE = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError)


class Connection:
    """Connects when it is made.

    Args:
        address: ws://… or wss://…. headers: beside those of the protocol.
        timeout_s: for connecting.

    Raises:
        OSError, TimeoutError, InvalidHandshake: nobody listens there, or it lets nobody in.
    """

    def __init__(self, address: str, headers: Mapping[str, str], timeout_s: float) -> None:
        uri, until = parse_uri(address), time.monotonic() + timeout_s
        self._protocol = ClientProtocol(uri, max_size=None)
        self._came: deque[str | bytes] = deque()
        self._parts: list[Frame] = []  # of a message in several frames
        self._lock = threading.Lock()  # of all above, and of reading
        self.socket = socket.create_connection((uri.host, uri.port), timeout_s)
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if uri.secure:
                self.socket.settimeout(timeout_s)
                context = ssl.create_default_context()
                self.socket = context.wrap_socket(self.socket, server_hostname=uri.host)
            self._shake_hands(headers, until)
        except BaseException:
            self.socket.close()
            raise
        self._closed = threading.Event()
        self.looking = threading.Thread(target=self._look_after, daemon=True)
        self.looking.start()

    def exchange(self, data: bytes, timeout_s: float) -> str | bytes:
        """Send a message; the answer to it.

        Raises:
            TimeoutError: there was none in time. ConnectionClosed, OSError: the other side has gone.
        """
        with self._lock:
            until = time.monotonic() + timeout_s
            self._take_in(None)  # a goodbye may have come, and says why
            if self._protocol.state is State.OPEN:
                self._protocol.send_binary(data)
                self._flush(until)
            return self._next(until)

    def receive(self, timeout_s: float) -> str | bytes:
        """The next message. Raises as :meth:`exchange`."""
        with self._lock:
            return self._next(time.monotonic() + timeout_s)

    def close(self) -> None:
        """Say goodbye."""
        self._closed.set()
        with self._lock, contextlib.suppress(OSError):
            until = time.monotonic() + _GOODBYE_S
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                self._flush(until)
            while self._protocol.state is not State.CLOSED:
                self._take_in(until)
        self.socket.close()

    # ---- with the lock ---------------------------------------------------------------------------

    def _shake_hands(self, headers: Mapping[str, str], until: float) -> None:
        request = self._protocol.connect()
        request.headers.update(headers)
        self._protocol.send_request(request)
        self._flush(until)
        while self._protocol.state is State.CONNECTING:
            self._take_in(until)
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc

    def _next(self, until: float) -> str | bytes:
        while not self._came:
            if self._protocol.state is State.CLOSED:
                raise self._protocol.close_exc
            self._take_in(until)
        return self._came.popleft()

    def _take_in(self, until: float | None) -> None:
        """What comes by then, at least one byte of it; or, for None, what is there."""
        self.socket.settimeout(0 if until is None else _left(until))
        try:
            data = self.socket.recv(1 << 16)
        except _NOTHING_YET:
            return
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if not isinstance(event, Response) and event.opcode in _MESSAGE:
                self._collect(event)
        with contextlib.suppress(OSError):  # answers to pings and to goodbyes
            self._flush(time.monotonic() + _LOOK_S)

    def _collect(self, frame: Frame) -> None:
        self._parts.append(frame)
        if frame.fin:
            data = b"".join(part.data for part in self._parts)
            as_text = self._parts[0].opcode is Opcode.TEXT
            self._came.append(data.decode(errors="replace") if as_text else data)
            self._parts = []

    def _flush(self, until: float) -> None:
        for data in self._protocol.data_to_send():
            self.socket.settimeout(_left(until))
            if data:
                self.socket.sendall(data)
            else:  # the protocol's word for an end
                self.socket.shutdown(socket.SHUT_WR)

    # ---- in a thread -----------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Answer pings, and let go of a socket that has ended, while nothing is asked."""
        while not self._closed.wait(_LOOK_S):
            if not self._lock.acquire(blocking=False):
                continue
            try:
                self._take_in(None)
                if self._protocol.state is State.CLOSED:
                    return
            except OSError:
                return
            finally:
                self._lock.release()


def _left(until: float) -> float:
    """Seconds. Raises TimeoutError where there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
