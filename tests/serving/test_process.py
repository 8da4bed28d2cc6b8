"""`asd-policy serve` as a process: killed, ended, started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets")
from asd_policy.errors import ConnectionLostError
from asd_policy.policy import DiffusionPolicy, save_checkpoint
from asd_policy.serving import Client, RemotePolicy
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
        client.reconnect()
        got += [policy.take([0])[0]]  # what was observed is observed
        got += [policy.act(observation(t)) for t in range(7, 12)]
        client.close()
    np.testing.assert_array_equal(np.stack(got), np.stack(expected))


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_signal_drains(folder: Path, signal_name: str) -> None:
    with process(folder) as (made, port):
        client = Client(f"ws://127.0.0.1:{port}")
        client.infer(observation(0))
        made.send_signal(getattr(signal, signal_name))
        _out, errors = made.communicate(timeout=30)
        assert made.returncode == 0
        assert "ended, 1 chunks in 1 batches were drawn" in errors
        assert "Traceback" not in errors
        with pytest.raises(ConnectionLostError, match="the server is ending"):
            client.infer(observation(0))
