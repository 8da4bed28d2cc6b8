"""LeRobot's asynchronous policy server: what it conditions chunks on, and that it answers."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
pytest.importorskip("grpc", reason="LeRobot's policy server needs grpcio and protobuf")
from asd_policy.errors import InputError
from asd_policy.integrations import lerobot as asd
from asd_policy.integrations.lerobot.history import keep_history
from integrations.lerobot.small_checkpoints import ENV, PICTURE, STATE, save

FEATURES = {
    STATE: {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    PICTURE: {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channels"]},
}
PEER = SimpleNamespace(peer=lambda: "test")


@pytest.fixture(scope="module", autouse=True)
def _logs_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imported, LeRobot's server opens a log file where it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("logs"))
        importlib.import_module("lerobot.async_inference.policy_server")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("lerobot") / "pictures", STATE, PICTURE, steps=3)


def instructions(checkpoint: Path, kind: str = "diffusion") -> Any:
    from lerobot.async_inference.helpers import RemotePolicyConfig
    from lerobot.transport import services_pb2

    config = RemotePolicyConfig(kind, str(checkpoint), FEATURES, 8, "cpu")
    return services_pb2.PolicySetup(data=pickle.dumps(config))


def seen(step: int, must_go: bool = True) -> Any:
    """What a robot sees at a time step; no two steps look alike."""
    from lerobot.async_inference.helpers import TimedObservation

    picture = np.full((32, 32, 3), 4 * step, np.uint8)
    raw = {"x": 20.0 * step, "y": 300.0 - 10 * step, "top": picture, "task": ""}
    return TimedObservation(timestamp=time.time(), timestep=step, observation=raw, must_go=must_go)


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Any:
    from lerobot.async_inference.configs import PolicyServerConfig

    from asd_policy.integrations.lerobot.server import PolicyServer

    made = PolicyServer(PolicyServerConfig(inference_latency=0), {"sampler": "asd", "window": 8})
    made.Ready(None, PEER)
    made.SendPolicyInstructions(instructions(checkpoint), PEER)
    return made


@pytest.fixture
def conditions(server: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """(1, 2, 2) the two states, as normalized, that each chunk is conditioned on."""
    made: list[Tensor] = []
    model = server.policy.diffusion
    encode = type(model)._prepare_global_conditioning

    def kept(batch: dict[str, Tensor]) -> Tensor:
        made.append(batch[STATE])
        return encode(model, batch)

    monkeypatch.setitem(vars(model), "_prepare_global_conditioning", kept)
    server.Ready(None, PEER)
    return made


def states(*steps: int) -> Tensor:
    rows = [[20.0 * step / 256 - 1, (300.0 - 10 * step) / 256 - 1] for step in steps]
    return torch.tensor([rows])


def test_chunks_are_conditioned_on_consecutive_observations(
    server: Any, conditions: list[Tensor]
) -> None:
    for steps, expected in [
        ([0], (0, 0)),  # as at the start of an episode
        ([1], (0, 1)),
        ([2, 3, 4], (3, 4)),  # the server is asked for the last only
        ([9], (9, 9)),  # 8 was not sent
        ([10], (9, 10)),
    ]:
        for step in steps:
            server._enqueue_observation(seen(step))
        answer = server.GetActions(None, PEER)
        actions = pickle.loads(answer.data)
        assert [action.get_timestep() for action in actions] == list(
            range(steps[-1], steps[-1] + 8)
        )
        assert all(bool(action.get_action().isfinite().all()) for action in actions)
        torch.testing.assert_close(conditions[-1], states(*expected), atol=1e-5, rtol=0)
    hook = vars(server.policy.diffusion)["conditional_sample"]
    assert int(hook.stats.calls.max()) < 60


def test_an_observation_that_is_not_asked_for_is_history_all_the_same(
    server: Any, conditions: list[Tensor]
) -> None:
    """LeRobot's server drops observations that look like the last one that it processed."""
    server._enqueue_observation(seen(4))
    server.GetActions(None, PEER)
    alike = seen(5, must_go=False)
    alike.observation = {**seen(4).observation, "x": 80.5}
    assert not server._enqueue_observation(alike)
    server._enqueue_observation(seen(6))
    server.GetActions(None, PEER)
    expected = states(4, 6)
    expected[0, 0, 0] = 80.5 / 256 - 1
    torch.testing.assert_close(conditions[-1], expected, atol=1e-5, rtol=0)


def test_a_new_client_starts_anew(server: Any, conditions: list[Tensor]) -> None:
    server._enqueue_observation(seen(6))
    server.Ready(None, PEER)
    server._enqueue_observation(seen(7))
    server.GetActions(None, PEER)
    torch.testing.assert_close(conditions[-1], states(7, 7), atol=1e-5, rtol=0)
    for step in range(8, 60):
        server._enqueue_observation(seen(step))
    assert len(server._received) == 10  # and not all that was ever sent


def test_lerobots_own_server_answers_with_nothing(checkpoint: Path) -> None:
    """The fault that is worked around: it says so here when a release has mended it."""
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.policy_server import PolicyServer

    own = PolicyServer(PolicyServerConfig(inference_latency=0))
    own.Ready(None, PEER)
    own.SendPolicyInstructions(instructions(checkpoint), PEER)
    own._enqueue_observation(seen(0))
    assert not own.GetActions(None, PEER).ByteSize()


def test_other_types_are_accepted_and_refused_by_name(server: Any) -> None:
    from asd_policy.integrations.lerobot.server import prepared, supported

    assert {"act", "diffusion", "asd_diffusion", "multi_task_dit"} <= set(supported())
    with pytest.raises(InputError, match="only diffusion has steps to save"):
        prepared(torch.nn.Linear(1, 1), {"sampler": "asd"})


def test_a_policy_alone_keeps_its_history(tmp_path: Path) -> None:
    """``predict_action_chunk`` gives what ``select_action`` would, whichever is called."""
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    policy = DiffusionPolicy.from_pretrained(
        save(tmp_path / "own", STATE, ENV, num_inference_steps=10)
    )
    asd.accelerate(policy, sampler="ddpm", verbose=False)
    frames = [{STATE: torch.rand(3, 2), ENV: torch.rand(3, 16)} for _ in range(3)]
    for frame in frames[:2]:
        policy.select_action(frame)
    policy._queues["action"].clear()
    torch.manual_seed(1)
    first = policy.select_action(frames[2])
    expected = torch.stack([first, *policy._queues["action"]], 1)
    policy.reset()
    keep_history(policy)
    for frame in frames[:2]:
        policy.predict_action_chunk(frame)
    for _ in range(2):  # the same observation once more is no other one
        torch.manual_seed(1)
        assert torch.equal(policy.predict_action_chunk(frames[2]), expected)
    policy.reset()
    for frame in frames[:2]:
        policy.select_action(frame)
    policy._queues["action"].clear()
    torch.manual_seed(1)
    assert torch.equal(policy.select_action(frames[2]), first)  # not put in twice


@pytest.fixture
def port() -> int:
    """One that is free, and is not given to others in the meantime: below those given by chance."""
    for number in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", number))
            return number
    raise AssertionError("no free port")


@pytest.fixture
def running(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    words = ["policy_server", "--sampler=asd", "--window=8", "--host=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "asd_policy.integrations.lerobot", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()


def test_over_the_network(checkpoint: Path, port: int, running: subprocess.Popen[str]) -> None:
    """As LeRobot's robot client calls it; Ctrl-C ends it without a traceback."""
    import grpc
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import send_bytes_in_chunks

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=120)
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        stub.SendPolicyInstructions(instructions(checkpoint))
        for step in (0, 1):
            data = pickle.dumps(seen(step))
            stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation, silent=True))
        actions = pickle.loads(stub.GetActions(services_pb2.Empty()).data)
        assert [action.get_timestep() for action in actions] == list(range(1, 9))
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=120)[0]
    assert running.returncode == 130, said
    assert "asd-policy: asd on a DDPM of 100 steps" in said
    assert "Traceback" not in said
