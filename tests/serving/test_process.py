"""`asd-policy serve` as a process: killed, ended, started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets")
from asd_policy.errors import ConnectionLostError
from asd_policy.policy import Controller, DiffusionPolicy, save_checkpoint
from asd_policy.policy.control import Report
from asd_policy.serving import Client, RemotePolicy
from reference.rounding import assert_same_draws
from reference.served import observation
from reference.tiny import tiny_checkpoint


@contextlib.contextmanager
def process(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`asd-policy serve`, and its port."""
    words = [sys.executable, "-m", "asd_policy", "serve", "--checkpoint", str(folder)]
    words += ["--port", str(port), "--window", "4", "--device", "cpu"]
    made = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert made.stdout is not None
        line = made.stdout.readline()
        assert line.startswith(f"serving {folder}, asd at ws://127.0.0.1:"), made.communicate()
        yield made, int(line.rpartition(":")[2])
    finally:
        made.kill()
        made.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tiny_checkpoint()
    policy = DiffusionPolicy(made)
    for t in range(6):
        policy.act(observation(t))
    made.card["calibration"] = policy.calibration.to_dict()
    return save_checkpoint(tmp_path / "tiny", made)


def test_kill_9_in_mid_episode_is_named_and_gone_on_after(folder: Path) -> None:
    """A new server at the same address goes on with the stream where it was."""
    local = DiffusionPolicy.load(folder, window=4)
    local.reset(9)
    expected = [local.act(observation(t)) for t in range(12)]
    with process(folder) as (first, port):
        client = Client(f"ws://127.0.0.1:{port}")
        policy = RemotePolicy(client)
        policy.reset(9)
        got = [policy.act(observation(t)) for t in range(6)]
        first.kill()
        first.wait()
        with pytest.raises(ConnectionLostError, match=f"connection to ws://127.0.0.1:{port} ended"):
            policy.act(observation(6))
        with pytest.raises(ConnectionLostError, match="cannot be reached"):
            client.reconnect()
    with process(folder, port):
        policy.source.reconnect()
        got += [policy.act(observation(t)) for t in range(6, 12)]
        client.close()
    # The server's process may sum with another number of threads than this one.
    assert_same_draws(np.stack(got), np.stack(expected))


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_signal_drains(folder: Path, signal_name: str) -> None:
    with process(folder) as (made, port):
        client = Client(f"ws://127.0.0.1:{port}")
        client.infer(observation(0))
        made.send_signal(getattr(signal, signal_name))
        _out, errors = made.communicate(timeout=120)
        assert made.returncode == 0
        assert "ended; chunks drawn: 1, in 1 batch" in errors
        assert "Traceback" not in errors
        with pytest.raises(ConnectionLostError, match="the server is ending"):
            client.infer(observation(0))


def test_a_server_that_says_where_it_is_hears_a_signal(folder: Path) -> None:
    with process(folder) as (made, _port):
        made.send_signal(signal.SIGTERM)
        made.communicate(timeout=120)
        assert made.returncode == 0


class Watched:
    """A robot that keeps the actions of each step: None where it held still."""

    def __init__(self) -> None:
        self.done: list[np.ndarray | None] = []

    def observe(self) -> dict[str, np.ndarray]:
        self.done.append(None)
        return observation(len(self.done))

    def act(self, action: np.ndarray) -> None:
        self.done[-1] = action


@pytest.mark.parametrize("join", ["replace", "condition"])
def test_a_controller_outlives_its_server(folder: Path, join: str) -> None:
    """Killed in mid-episode: the chunk at hand is executed to its end, then the robot holds still,
    and goes on when there is a server again."""
    robot, stages = Watched(), list[int]()

    def moves(since: int) -> bool:
        return any(action is not None for action in robot.done[since:])

    with process(folder) as (first, port):
        policy = RemotePolicy(Client(f"ws://127.0.0.1:{port}"))
        controller = Controller(policy, join, retry_s=0.1)
        reports: list[Report] = []
        end = threading.Event()
        running = threading.Thread(
            target=lambda: reports.append(controller.run(robot, 20.0, seed=1, stop=end.is_set))
        )
        running.start()
        wait_until(lambda: len(robot.done) > 20 and moves(10))
        first.kill()
        first.wait()
        stages.append(len(robot.done))
        wait_until(lambda: len(robot.done) > stages[0] + 20)
    assert not moves(stages[0] + 9), "an action was executed past its time"
    with process(folder, port):
        stages.append(len(robot.done))
        wait_until(lambda: moves(stages[1]))
        end.set()
        running.join(30)
    assert reports[0].lost >= 2
    assert reports[0].held == sum(action is None for action in robot.done)


def wait_until(so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not so():
        assert time.monotonic() < until, "it did not come about within a minute"
        time.sleep(0.02)
