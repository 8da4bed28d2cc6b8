"""A server in a thread of the test's process, with a policy small enough for a test."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from asd_policy.policy import DiffusionPolicy, SamplerConfig
from asd_policy.serving import Server
from reference.tiny import KEYS, tiny_checkpoint


def tiny_policy(sampler: str = "asd", num_steps: int = 10, **options: Any) -> DiffusionPolicy:
    """What it knows is frozen, as of a checkpoint with a calibration: else a chunk depends on those
    before it."""
    options = {"window": 4, **options} if sampler == "asd" else options
    made = DiffusionPolicy(tiny_checkpoint(num_steps), SamplerConfig(sampler, **options))
    made.calibration.frozen = True
    return made


@contextlib.contextmanager
def served(policy: Any = None, **options: Any) -> Iterator[Server]:
    """A server at a free port, until the block ends."""
    server = Server(policy or tiny_policy(), port=0, **options)
    started, box = threading.Event(), {}

    async def main() -> None:
        box["end"], box["loop"] = asyncio.Event(), asyncio.get_running_loop()
        await server.start()
        started.set()
        await box["end"].wait()
        await server.drain()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(20)
    try:
        yield server
    finally:
        box["loop"].call_soon_threadsafe(box["end"].set)
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"


def address(server: Server) -> str:
    return f"ws://127.0.0.1:{server.port}"


def observation(number: int, lead: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Of this number: the same every time."""
    rng = np.random.default_rng(number)
    return {key: rng.uniform(-1, 1, (*lead, dim)) for key, dim in KEYS.items()}


def stacked(*observations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Along a new first axis."""
    return {key: np.stack([each[key] for each in observations]) for key in KEYS}
