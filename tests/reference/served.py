"""A server in a thread of the test's process, with a policy small enough for a test."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from asd_policy.policy import DiffusionPolicy, SamplerConfig
from asd_policy.serving import Client, RemotePolicy, Server
from asd_policy.serving.protocol import unpack
from reference.rounding import assert_same_draws
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
    server.start()
    try:
        yield server
    finally:
        server.drain()
        assert gone(server, 0), "a client is there after the end"


def address(server: Server) -> str:
    return f"ws://127.0.0.1:{server.port}"


def observation(number: int, lead: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Of this number: the same every time."""
    rng = np.random.default_rng(number)
    return {key: rng.uniform(-1, 1, (*lead, dim)) for key, dim in KEYS.items()}


def stacked(*observations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Along a new first axis."""
    return {key: np.stack([each[key] for each in observations]) for key in KEYS}


@contextlib.contextmanager
def undisturbed(server: Server, seed: int = 11) -> Iterator[list[float]]:
    """A robot that acts all the while, and whose actions must be the local policy's; its round
    trips in seconds. It is the first client."""
    local, stop, spent = tiny_policy(), threading.Event(), list[float]()
    here = threading.Event()
    errors: list[BaseException] = []

    def drive() -> None:
        try:
            with Client(address(server)) as client:
                policy = RemotePolicy(client)
                policy.reset(seed)
                local.reset(seed)
                here.set()
                t = 0
                while not stop.is_set() or t < 6:
                    now = observation(t)
                    start = time.perf_counter()
                    action = policy.act(now)
                    spent.append(time.perf_counter() - start)
                    assert_same_draws(action, local.act(now))
                    t += 1
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    assert here.wait(20), errors
    try:
        yield spent
    finally:
        stop.set()
        thread.join(60)
    assert not errors, errors
    assert not thread.is_alive()
    assert len(spent) >= 6


def raw(server: Server) -> ClientConnection:
    made = connect(address(server), compression=None, max_size=None, proxy=None).__enter__()
    unpack(made.recv(10))
    return made


def gone(server: Server, clients: int) -> bool:
    """Whether so few clients are there within ten seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if server.health()["clients"] <= clients:
            return True
        time.sleep(0.02)
    return False
