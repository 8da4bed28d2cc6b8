"""Options of `asd-policy serve`, and every checkpoint that it takes."""

from __future__ import annotations

import copy
import errno
import gzip
import importlib.util
import math
import shutil
import socket
from pathlib import Path

import pytest

pytest.importorskip("websockets")
pytest.importorskip("tyro")
from asd_policy.cli import main
from asd_policy.engine import ENGINES
from asd_policy.errors import CheckpointError, CopyError, InputError, ServerError
from asd_policy.integrations.loaders import open_policies
from asd_policy.policy import save_checkpoint
from asd_policy.policy.warmup import warm_up
from asd_policy.serving import Client
from asd_policy.serving.server import Limits
from reference.served import address, observation, served
from reference.tiny import tiny_checkpoint

DATA = Path(__file__).parents[1] / "data"
PLACE = {"device": "cpu", "engine": "eager", "precision": "fp32", "compile": False, "threads": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--robots", "0"], "--robots must be 1 or more, got 0"),
        (["--wait-ms", "-1"], "--wait-ms must be from 0 to 1000, got -1"),
        (["--max-message-mb", "0"], "--max-message-mb must be positive, got 0"),
        (["--max-message-mb", "inf"], "--max-message-mb must be positive, got inf"),
        (["--window", "²"], 'window must be "auto" or a whole number'),
        (["--idle-s", "0"], "--idle-s must be positive, got 0"),
        (["--max-rate", "0"], "--max-rate must be positive, got 0"),
        (["--token-file", "nowhere"], "--token-file nowhere cannot be read"),
        (["--checkpoint", "nowhere"], "no checkpoint at nowhere"),
        (["--sampler", "asdf"], "sampler must be one of asd, .*did you mean 'asd'"),
        (["--window", "wide"], 'window must be "auto" or a whole number'),
        (["--steps", "1000"], "asd takes 1 to 100 denoising steps"),  # before anything is loaded
        (["--sampler", "ddim-1000"], "ddim-1000 takes 1 to 100 denoising steps"),
        (["--device", "tpu"], "--device must be auto or one that torch can use"),
    ],
)
def test_what_cannot_be_served_is_said(refused, words, message):
    refused(message, "serve", *words)


def test_tokens_are_one_word(refused, tmp_path):
    for text in (b"", b"two words", "ü".encode(), b"\xff\xfe\x00"):
        (tmp_path / "token").write_bytes(text)
        refused("must hold one word", "serve", "--token-file", tmp_path / "token")


def test_the_help_names_every_engine_that_serves(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "{" + ",".join(e for e in ENGINES if e != "distributed") + "}" in told
    assert "openvino on a CPU, where it is installed and faster" in told


def test_an_address_of_a_kind_that_is_switched_off_is_left_out(monkeypatch):
    """As "localhost" is in containers, which /etc/hosts gives an address of IPv6 as well."""
    made, create = [], socket.create_server

    def without_v6(address, family):
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        made.append(create(address, family=family))
        return made[-1]

    both = [
        (family, socket.SOCK_STREAM, 6, "", (host, 0))
        for family, host in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1"))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: both)
    monkeypatch.setattr(socket, "create_server", without_v6)
    with served(host="localhost") as server:
        assert server.port == made[0].getsockname()[1]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: both[:1])
    with pytest.raises(ServerError, match="Cannot assign requested address"), served():
        pass


def test_a_port_that_is_taken_is_said(refused, tmp_path):
    folder = save_checkpoint(tmp_path / "tiny", tiny_checkpoint())
    with served() as server:
        words = ["--checkpoint", folder, "--port", server.port, "--device", "cpu"]
        refused(f"cannot listen at 127.0.0.1:{server.port}", "serve", *words)
        missing = ["--checkpoint", tmp_path / "none", *words[2:]]  # said before it is opened
        refused(f"cannot listen at 127.0.0.1:{server.port}", "serve", *missing)


def test_for_ever_is_a_time():
    with served(limits=Limits(idle_s=math.inf)) as server:
        with Client(address(server), timeout_s=math.inf) as client:
            assert client.infer(observation(0))["actions"].ndim == 2
            with pytest.raises(CopyError, match="can be neither copied nor pickled"):
                copy.deepcopy(client)
        for seconds in (0, -1, math.nan, None):
            with pytest.raises(InputError, match="timeout_s must be seconds, more than 0"):
                Client(address(server), timeout_s=seconds)


def test_a_policy_of_diffusion_policy_is_served(tmp_path):
    path = tmp_path / "latest.ckpt"
    with gzip.open(DATA / "diffusion_policy.ckpt.gz") as packed, path.open("wb") as out:
        shutil.copyfileobj(packed, out)
    policy = open_policies(path, PLACE)({"sampler": "ddim", "steps": 3})
    warm_up(policy, 2)
    with served(policy) as server, Client(f"ws://127.0.0.1:{server.port}") as client:
        assert client.metadata["observations"] == {"obs": [3]}
        assert len(client.metadata["checkpoint_sha256"]) == 64
        assert client.infer({"obs": [0.0, 0.1, 0.2]})["actions"].shape == (15, 2)


def test_other_files_are_refused(tmp_path):
    for name in ("x.pt", "x.pkl", "x.zip"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match="never opened"):
            open_policies(tmp_path / name, PLACE)


def test_a_folder_of_lerobot_needs_lerobot(refused, tmp_path):
    """With it, it is served: tests/integrations/lerobot/test_serve.py."""
    if importlib.util.find_spec("lerobot"):
        pytest.skip("LeRobot is installed")
    (tmp_path / "config.json").write_text('{"type": "diffusion", "horizon": 16}')
    message = "is a policy of LeRobot's, .* not installed: pip install 'asd-policy"
    refused(message, "serve", "--checkpoint", tmp_path, "--device", "cpu")
