"""A server that sends messages back: what a round trip costs where nothing is drawn.
`python -m asd_policy.serving.echo`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from websockets.exceptions import ConnectionClosed

from asd_policy.serving.connection import ClientConnection, ServerConnection

_PATIENCE_S = 600.0


def main() -> None:
    """Serve one client at a free port, which is printed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        connection = ServerConnection(listening.accept()[0], 16 << 20)
        connection.let_in(lambda request: None, _PATIENCE_S)
        with contextlib.suppress(ConnectionClosed):
            while True:
                connection.send(connection.receive(_PATIENCE_S), _PATIENCE_S)


@contextlib.contextmanager
def echoing() -> Iterator[Callable[[bytes], float]]:
    """Seconds of a message's way to such a server in a process of its own, and of its way back."""
    words = [sys.executable, "-m", "asd_policy.serving.echo"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        connection = ClientConnection(f"ws://127.0.0.1:{port}", {}, _PATIENCE_S)

        def timed(data: bytes) -> float:
            start = time.perf_counter()
            connection.exchange(data, _PATIENCE_S)
            return time.perf_counter() - start

        with contextlib.closing(connection):
            yield timed
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
