"""A server that sends messages back, through a thread as one must that does not block while it
draws: what a round trip costs where nothing is drawn. `python -m asd_policy.serving.echo`."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import websockets.asyncio.server as ws
from websockets.sync.client import connect

_Work = tuple["Future[str | bytes]", "str | bytes"]


async def main() -> None:
    """Serve at a free port, which is printed, until the process ends."""
    waiting: queue.SimpleQueue[_Work] = queue.SimpleQueue()

    def give_back() -> None:
        while True:
            answer, message = waiting.get()
            answer.set_result(message)

    async def echo(connection: ws.ServerConnection) -> None:
        async for message in connection:
            answer: Future[str | bytes] = Future()
            waiting.put((answer, message))
            back = await asyncio.wrap_future(answer)
            await connection.send(back)

    threading.Thread(target=give_back, daemon=True).start()
    async with ws.serve(echo, "127.0.0.1", 0, compression=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


@contextlib.contextmanager
def echoing() -> Iterator[Callable[[bytes], float]]:
    """Seconds of a message's way to such a server in a process of its own, and of its way back."""
    words = [sys.executable, "-m", "asd_policy.serving.echo"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as socket:

            def timed(data: bytes) -> float:
                start = time.perf_counter()
                socket.send(data)
                socket.recv()
                return time.perf_counter() - start

            yield timed
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(main())
