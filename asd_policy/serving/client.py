"""A client of a policy's server."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NoReturn

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.uri import parse_uri

from asd_policy.errors import (
    ConnectionLostError,
    CopyError,
    InputError,
    LimitError,
    ServerError,
    counted,
    listed_seeds,
)
from asd_policy.serving.connection import ClientConnection
from asd_policy.serving.protocol import KEY, error_of, pack, unpack
from asd_policy.serving.token import TOKEN, one_word

_GONE = (ConnectionClosed, OSError, EOFError)


class Client:
    """Speaks with a policy's server; openpi's own ``WebsocketClientPolicy`` can, too.

    Threads may share one: they take turns. It keeps a place at the server until :meth:`close`, the
    end of a ``with`` block, or until nobody has it any more.

    Args:
        address: "ws://host:port", or "wss://…" behind a proxy that encrypts.
        token: that the server asks for, a word (white space around it does not count); None is the
            environment's ASD_POLICY_TOKEN, if it is set.
        timeout_s: for a connection, and for an answer.

    Attributes:
        metadata: what the server said of itself. connections: how often it was connected to.
        taking_turns: a lock that may be held over several messages.

    Raises:
        ValueError: an address, a token or a time that is none.
        ConnectionLostError: nobody listens there, or the connection is refused.
        ServerError: the server does not let this client in.
    """

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8000",
        token: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        try:
            parse_uri(address)
        except (InvalidURI, ValueError) as error:
            raise InputError(f"expected an address like ws://host:8000, got {address!r}") from error
        if not (isinstance(timeout_s, (int, float)) and timeout_s > 0):
            raise InputError(f"timeout_s must be seconds, more than 0, got {timeout_s!r:.80}")
        self.address, self.timeout_s = address, float(timeout_s)
        self._token = _token(token)
        self.taking_turns = threading.RLock()
        self._connection: ClientConnection | None = None
        self._parting: weakref.finalize[..., Any] | None = None
        self.metadata: dict[str, Any] = {}
        self.connections = 0
        self._robots, self._free = 0, list[int]()
        self.reconnect()

    def __reduce__(self) -> NoReturn:
        raise CopyError("a connection can be neither copied nor pickled; make another Client")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def robot(self, has_it: object) -> int:
        """A number for a robot of this client's; another's when nobody has ``has_it`` any more.
        The last ones come first: 0, 1 … are those of messages that name none.

        Raises:
            LimitError: the server allows no more.
        """
        with self.taking_turns:
            if self._free:
                robot = self._free.pop()
            else:
                most = self.metadata["limits"]["robots"]
                if self._robots == most:
                    raise LimitError(f"the server allows {counted(most, 'robot')} of a connection")
                self._robots += 1
                robot = most - self._robots
        weakref.finalize(has_it, self._free.append, robot)
        return robot

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """A chunk for one robot's observation, or for its last To, (To, \\*shape) of each key.

        Returns:
            ``actions`` (H, action_dim), the first for the time of the latest observation;
            ``calls``, ``evaluations``, ``acceptance``; ``server_timing`` and ``round_trip_ms``.

        Raises:
            ValueError, NonFiniteError: as the policy, which goes on.
            LimitError: the server allows less. ServerError: it failed.
            ConnectionLostError: it has gone, or did not answer in time; see :meth:`reconnect`.
        """
        return self.ask(observation, "infer")

    def infer_batch(self, observations: Mapping[str, Any], **asked: Any) -> dict[str, Any]:
        """Chunks (B, H, action_dim) of several robots, one row of observations for each.

        Args:
            asked: ``robots``, ``begin``, ``detail``: see ``asd_policy.serving.requests``.
        """
        return self.ask(observations, "infer_batch", **asked)

    def act(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The next ``action`` (action_dim,) of the robot's queue, which the server keeps; it draws
        a chunk where the queue is empty."""
        return self.ask(observation, "act")

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Have one observation remembered, and draw nothing."""
        self.ask(observation, "observe")

    def reset(self, seeds: int | Sequence[int | None] | None = None) -> None:
        """Begin an episode: forget what was observed and queued.

        Args:
            seeds: of the random streams of robots 0, 1 …, or one int, of robot 0: others go on as
                they are. None draws one for each robot that there is.

        Raises:
            ValueError: None, where a ``RemotePolicy`` of this client has robots.
        """
        if seeds is None:
            if self._robots > len(self._free):
                raise InputError(
                    "reset() would begin the robots of this client's policies anew; reset those, "
                    "or give seeds"
                )
            self.ask({}, "reset")
            return
        listed = [[robot, seed] for robot, seed in enumerate(listed_seeds(seeds))]
        self.ask({}, "reset", begin=listed)

    def health(self) -> dict[str, Any]:
        """Counts of the server's: clients, requests, errors, chunks …"""
        return self.ask({}, "health")

    def ask(self, observation: Mapping[str, Any], call: str, **asked: Any) -> dict[str, Any]:
        """The answer to one message."""
        data = pack({**observation, KEY: {"call": call, **asked}})
        most = self.metadata.get("limits", {}).get("message_bytes", len(data))  # openpi tells none
        if len(data) > most:
            raise LimitError(f"the server takes messages of {most} bytes, and this has {len(data)}")
        with self.taking_turns:
            start = time.perf_counter()
            answer = self._exchange(data)
            spent = time.perf_counter() - start
        if isinstance(answer, str):
            raise error_of(answer)
        told = unpack(answer)
        told["round_trip_ms"] = 1e3 * spent
        return told

    def _exchange(self, data: bytes) -> str | bytes:
        if self._connection is None:
            raise ConnectionLostError(f"the connection to {self.address} is closed")
        try:
            return self._connection.exchange(data, self.timeout_s)
        except TimeoutError as error:
            self._drop()  # an answer that comes later would be taken for the next one's
            raise ConnectionLostError(
                f"{self.address} did not answer within {self.timeout_s:g} s"
            ) from error
        except _GONE as error:
            self._drop()
            raise ConnectionLostError(f"the connection to {self.address} ended: {error}") from error
        except BaseException:  # Ctrl-C: its answer, too, would be taken for the next one's
            self._drop()
            raise

    def reconnect(self) -> None:
        """Connect anew, as a client that the server does not know.

        Raises: as the class.
        """
        with self.taking_turns:
            self._drop()
            headers = {"Authorization": f"Api-Key {self._token}"} if self._token else {}
            try:
                made = self._connection = ClientConnection(self.address, headers, self.timeout_s)
                self._parting = weakref.finalize(self, _hang_up, made.socket, os.getpid())
                self.metadata = unpack(made.receive(self.timeout_s))
            except InvalidStatus as error:
                said = (error.response.body or b"").decode(errors="replace").strip()
                code = error.response.status_code
                raise ServerError(
                    f"{self.address} refused the connection: {code}, {said}"
                    + (self._how_to_show_it() if code == HTTPStatus.UNAUTHORIZED else "")
                ) from error
            except (*_GONE, InvalidHandshake, TimeoutError, UnicodeError) as error:
                self._drop()
                raise ConnectionLostError(f"{self.address} cannot be reached: {error}") from error
            self.connections += 1

    def _how_to_show_it(self) -> str:
        return (
            f", got {'another one' if self._token else 'none'}: give it as Client(…, token=…), or "
            f"as the environment variable {TOKEN}, which `asd-policy eval --remote` takes, too"
        )

    def _drop(self) -> None:
        if self._parting is not None:
            self._parting.detach()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Say goodbye."""
        with self.taking_turns:
            self._drop()


def _token(given: str | None) -> str | None:
    if given is not None:
        return one_word(given, "token")
    found = os.environ.get(TOKEN, "").strip()
    return one_word(found, f"the environment's {TOKEN}") if found else None


def _hang_up(made: socket.socket, process: int) -> None:
    """Give a place at the server back. Without a goodbye, whose locks the thread may hold that
    collects the client; the connection's own thread then finds the end."""
    if os.getpid() != process:
        return  # a fork's copy: the connection goes on where it was made
    with contextlib.suppress(OSError):
        socket.socket.shutdown(made, socket.SHUT_RDWR)  # TLS's own would pull it from the reader
