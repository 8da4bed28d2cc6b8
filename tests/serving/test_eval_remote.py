"""`asd-policy eval --remote`: the same episodes, seed by seed, and where their time went."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("websockets")
pytest.importorskip("robosuite")
from asd_policy.errors import InputError
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.rollout.remote import _check as check
from asd_policy.eval.samplers import sampler_settings
from asd_policy.policy import DiffusionPolicy
from asd_policy.samplers.names import SAMPLER_NAMES
from reference.served import address, served, tiny_policy

WORDS = ["--samplers", "asd", "--episodes", 2, "--horizon", 40]
OF_THE_MACHINE = ("wall_s", "processor_wait_s", "policy_s", "simulation_s", "rendering_s")
COUNTS = ("batch", "calls", "evaluations", "rejections", "accepted", "decided", "window")


@pytest.fixture(scope="module")
def server():
    policy = DiffusionPolicy.load("lift", window=12)
    metadata = {"policy": "lift", "precision": "fp32", "compile": False}
    with served(policy, metadata=metadata) as made:
        yield made


def episodes(folder):
    kept = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return sorted(kept, key=lambda each: each["seed"])


def done(each):
    """What does not depend on the clock."""
    rest = {k: v for k, v in each.items() if k not in (*OF_THE_MACHINE, "control_step_s", "chunks")}
    return rest, [{k: chunk[k] for k in COUNTS} for chunk in each["chunks"]]


def test_episodes_are_the_local_policy_s(server, run, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    status, _, errors = run("eval", *WORDS, "--window", 12, "--out", here)
    assert status == 0, errors
    remote = ["--remote", address(server), "--window", 12]
    status, _, errors = run("eval", *WORDS, *remote, "--out", there)
    assert status == 0, errors
    assert [done(e) for e in episodes(there)] == [done(e) for e in episodes(here)]
    for each in episodes(there):
        for chunk in each["chunks"]:
            spent = chunk["remote"]
            assert 0 < spent["draw_s"] <= sum(spent.values()) <= chunk["latency_s"]
    results = json.loads((there / "results.json").read_text())
    mean = results["samplers"]["asd"]["remote_ms_per_chunk"]
    assert mean["draw"] > mean["network"] > 0
    page = (there / "report.html").read_text()
    assert "asd was drawn by a server" in page
    assert "drawn by a server" not in (here / "report.html").read_text()
    assert results["resolved"]["checkpoint"] == f"lift at {address(server)}"


def test_chunks_that_come_late_come_over_the_network(server, run, tmp_path):
    words = [*WORDS, "--window", 12, "--remote", address(server), "--delay", 100]
    status, _, errors = run("eval", *words, "--out", tmp_path / "late")
    assert status == 0, errors
    assert all(
        "delay_s" in c and "remote" in c for e in episodes(tmp_path / "late") for c in e["chunks"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "--device is of a policy in this process"),
        (["--checkpoint", "lift"], "--checkpoint is of a policy in this process"),
        (["--record"], "--record is of a policy in this process"),
        (["--samplers", "asd", "ddpm"], "--remote takes one address for each of --samplers"),
        (
            ["--window", "8"],
            "draws otherwise than asd is asked for: window is 12 there, and 8 here",
        ),
        (["--samplers", "ddpm"], "draws otherwise than ddpm is asked for: name is 'asd' there"),
        (["--task", "can", "--window", "12"], "has a policy of the task 'lift'; --task says 'can'"),
    ],
)
def test_what_is_not_the_server_s_is_said(server, refused, tmp_path, words, message):
    given = ["--samplers", "asd"] if "--samplers" not in words else []
    refused(message, "eval", *given, *words, "--remote", address(server), "--out", tmp_path / "x")


def test_nobody_there_is_said(refused, tmp_path):
    words = ["--samplers", "asd", "--remote", "ws://127.0.0.1:1", "--out", tmp_path / "x"]
    refused("ws://127.0.0.1:1 cannot be reached", "eval", *words)


@pytest.mark.parametrize("name", [n for n in SAMPLER_NAMES if n != "asd-ddim"] + ["ddim-4"])
def test_every_sampler_s_server_is_what_the_same_name_asks_for(name):
    policy = tiny_policy(name, 20)
    told = {
        "sampler_config": dataclasses.asdict(policy.source.sampler.config), "task": "lift",
        "steps": policy.schedule.num_steps, "checkpoint_sha256": "x",
    }  # fmt: skip
    window = policy.source.sampler.config.window
    settings = sampler_settings(name, EvalOptions(samplers=(name,), window=window))
    check(told, name, settings, "ws://h", "lift")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ddim-4", {"sampler": "ddim-5"}, "steps is 4 there, and 5 here"),
        ("ddim-4", {"sampler": "ddim-4", "eta": 0.5}, "eta is 0.0 there, and 0.5 here"),
        ("asd", {"sampler": "asd", "window": 4, "steps": 10}, "steps is None there, and 10 here"),
    ],
)
def test_another_chain_than_the_server_s_is_refused(name, settings, message):
    policy = tiny_policy(name, 20)
    told = {
        "sampler_config": dataclasses.asdict(policy.source.sampler.config), "task": "lift",
        "steps": policy.schedule.num_steps, "checkpoint_sha256": "x",
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        check(told, name, settings, "ws://h", "lift")
    if name == "asd":
        check(told, name, settings | {"steps": 20}, "ws://h", "lift")
