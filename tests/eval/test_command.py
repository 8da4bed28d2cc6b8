"""`asd-policy eval` as a user types it, with the real world and small untrained policies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from gymnasium.error import DependencyNotInstalled

from asd_policy.envs.tasks import get_task
from asd_policy.policy import Checkpoint, Normalizer, PolicyConfig, save_checkpoint
from asd_policy.schedule import Schedule

COMMAND = [sys.executable, "-m", "asd_policy"]


# --- options of eval ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "juggle"], r"error: unknown task 'juggle'; expected one of: lift"),
        (["--samplers", "asd", "euler"], r"error: --samplers .* of asd, .*, ddim-N; got euler"),
        (["--samplers", "ddim-0"], r"error: --samplers .* ddim-N; got ddim-0"),
        (["--samplers"], r"error: --samplers takes one or more of asd, .*; got none"),
        (["--samplers", "asd", "asd"], r"error: --samplers names each sampler once; got asd"),
        (["--episodes", "0"], r"error: --episodes must be a whole number, 1 or more; got 0"),
        (["--episodes", "many"], r"--episodes.*'many'"),
        (["--episodes", "1.5"], r"--episodes.*'1.5'"),
        (["--seed", "-1"], r"error: --seed must be a whole number, 0 or more; got -1"),
        (["--window", "0"], r"error: --window must be auto or a whole number, 1 or more; got 0"),
        (["--window", "wide"], r"--window.*'auto'.*'wide'"),
        (["--steps", "0"], r"error: --steps must be a whole number, 1 or more; got 0"),
        (["--steps", "-3"], r"error: --steps must be a whole number, 1 or more; got -3"),
        (["--num-envs", "0"], r"error: --num-envs must be a whole number, 1 or more; got 0"),
        (["--horizon", "0"], r"error: --horizon must be a whole number, 1 or more; got 0"),
        (["--threads", "0"], r"error: --threads must be a whole number, 1 or more; got 0"),
        (["--video", "-1"], r"error: --video must be a whole number, 0 or more; got -1"),
        (["--eta", "2"], r"error: --eta must be from 0 to 1, got 2"),
        (["--eta", "nan"], r"error: --eta must be from 0 to 1, got nan"),
        (["--tolerance", "0"], r"error: --tolerance must be a positive number, got 0"),
        (["--device", "tpu"], r"error: --device must be auto or one .*cpu.*; got 'tpu'"),
        (["--control-rate", "40"], r"error: --control-rate needs --delay or --realtime; got 40"),
        (["--realtime", "--num-envs", "2"], r"error: --delay measured needs --num-envs 1.*got 2"),
        (["--realtime", "--delay", "5"], r"error: --realtime is --delay measured; got --delay 5"),
        (["--delay", "soon"], r"--delay.*'soon'"),
        (["--record", "--seed", str(2**63)], r"error: --seed: with --record .* below 2\^63, got"),
        (["--name", "a/b"], r"error: --name must be a plain file name, got 'a/b'"),
        (["--epsiodes", "3"], r"Unrecognized options: --epsiodes"),
    ],
)
def test_a_bad_option_is_named_with_what_was_expected(refused, words, message):
    refused(message, "eval", *words)


@pytest.mark.parametrize("command", ["eval", "tasks", "rates", "bench", "verify", "compare"])
def test_a_name_that_is_no_text_is_refused_at_once(refused, command, tmp_path, monkeypatch):
    """No file of a run could be read that names it: an evaluation was lost when it had ended."""
    monkeypatch.chdir(tmp_path)
    refused(r"^error: expected names in UTF-8, got b'caf\\xe9'", command, "--out", "caf\udce9")
    assert not any(tmp_path.iterdir())


# --- checkpoints --------------------------------------------------------------------------------


def make_checkpoint(folder: Path, keys=None, action_dim: int = 7, fill: float | None = None):
    """A small untrained policy."""
    torch.manual_seed(0)
    keys = keys or dict(get_task("lift").observation_keys)
    config = PolicyConfig(keys, action_dim, down_dims=(16, 32), step_embed_dim=16)
    network = config.build_network()
    if fill is not None:
        for parameter in network.parameters():
            torch.nn.init.constant_(parameter, fill)
    bounds = [torch.ones(config.observation_dim), torch.ones(action_dim)]
    normalizers = [Normalizer(-bound, bound) for bound in bounds]
    return save_checkpoint(
        folder, Checkpoint(network, config, Schedule.ddpm(10), *normalizers, {"task": "lift"})
    )


@pytest.fixture
def checkpoint(tmp_path):
    return make_checkpoint(tmp_path / "policy")


def refused_checkpoint(refused, folder: Path, message: str, *words: object) -> None:
    out = folder.parent / "out"
    refused(message, "eval", "--checkpoint", folder, "--out", out, *words)
    assert not out.exists(), "refused before anything was written"


def test_a_missing_checkpoint(refused, tmp_path):
    refused_checkpoint(refused, tmp_path / "none", r"error: no checkpoint at .*none.*card\.json")


def test_a_truncated_checkpoint(refused, checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused_checkpoint(refused, checkpoint, r"error: .*changed or cut short: expected SHA-256")


def test_a_checkpoint_that_was_tampered_with(refused, checkpoint):
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    refused_checkpoint(refused, checkpoint, r"error: .*changed or cut short: .* got [0-9a-f]{64}")


def test_a_pickle_is_never_opened(refused, tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "policy.ckpt")
    refused_checkpoint(
        refused, tmp_path / "policy.ckpt", r"error: .*pickled files are never opened"
    )


def test_a_checkpoint_for_other_observations_is_one_table(refused, tmp_path):
    folder = make_checkpoint(
        tmp_path / "p", {"object": 14, "robot0_eef_pos": 3, "robot0_gripper_qpos": 2, "camera": 5}
    )
    refused_checkpoint(
        refused,
        folder,
        r"error: the policy was made for other observations: name problem expected got .*"
        r"camera missing \(5,\).*robot0_eef_quat unexpected - \(4,\).*"
        r"object wrong shape \(14,\) \(10,\)",
    )


def test_a_checkpoint_with_other_actions(refused, tmp_path):
    folder = make_checkpoint(tmp_path / "p", action_dim=9)
    refused_checkpoint(refused, folder, r"error: task 'lift' takes actions of 7 .* actions of 9")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "11"], r"error: asd takes 1 to 10 denoising steps .*11"),
        (["--samplers", "ddim", "--ddim-steps", "11"], r"error: ddim takes 1 to 10 .*11"),
        (["--samplers", "asd-ddim"], r"error: asd-ddim needs noise .* --eta above 0"),
    ],
)
def test_a_chain_that_the_policy_does_not_allow(refused, checkpoint, words, message, monkeypatch):
    """Before anything is loaded."""
    monkeypatch.setattr("asd_policy.eval.studies.evaluate._really_prepare", None)
    refused_checkpoint(refused, checkpoint, message, *words)


def test_a_network_that_returns_nan_ends_the_run(refused, tmp_path):
    folder = make_checkpoint(tmp_path / "p", fill=float("nan"))
    out = tmp_path / "out"
    words = ["--checkpoint", folder, "--out", out, "--episodes", 1]
    refused(r"0 of 2 episodes were finished.*error: .*NaN", "eval", *words)
    assert (out / "episodes.jsonl").read_text() == ""
    assert json.loads((out / "results.json").read_text())["complete"] is False


def test_an_output_folder_in_use(refused, checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    words = ["--checkpoint", checkpoint, "--out", out]
    refused(r"error: the output folder must be new.*holds other files", "eval", *words)


# --- the whole way, with an untrained policy ----------------------------------------------------


def test_an_evaluation_of_every_sampler_and_its_continuation(run, checkpoint, tmp_path):
    names = ["asd", "asd-slope", "asd-memory", "asd-frozen", "asd-paper", "ddpm", "ddim"]
    names += ["paradigms", "asd-ddim", "ddim-3"]
    words = ["eval", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--horizon", 9]
    words += ["--ddim-steps", 5, "--eta", 0.5, "--threads", 1, "--samplers", *names]
    status, output, errors = run(*words, "--episodes", 1)
    assert status == 0, errors
    assert "\x1b" not in output + errors, "no control characters where there is no terminal"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["samplers"]) == names
    calls = {name: s["network_calls_per_chunk"] for name, s in results["samplers"].items()}
    assert calls["ddpm"] == 10
    assert calls["ddim"] == 5
    assert calls["ddim-3"] == 3
    assert calls["asd"] <= 10
    assert results["resolved"]["steps"] == (
        {name: 5 if "ddim" in name else 10 for name in names} | {"ddim-3": 3}
    )
    status, output, errors = run(*words, "--episodes", 1)
    assert status == 2
    assert "add --resume" in errors
    status, output, errors = run(*words, "--episodes", 2, "--num-envs", 1, "--resume")
    assert status == 0, errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {s["success"]["n"] for s in results["samplers"].values()} == {2}


@pytest.mark.slow
def test_the_shipped_policy_lifts_the_cube(tmp_path):
    done = subprocess.run(
        [*COMMAND, "eval", "--episodes", "2", "--window", "16", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["samplers"]) == ["asd", "ddpm"]
    for summary in results["samplers"].values():
        assert summary["success"]["count"] == 2
    assert results["samplers"]["ddpm"]["network_calls_per_chunk"] == 100
    assert results["samplers"]["asd"]["network_calls_per_chunk"] < 20
    assert results["samplers"]["asd"]["speedup"]["algorithmic"] > 5


# --- videos -------------------------------------------------------------------------------------


def has_opengl() -> bool:
    from asd_policy.envs.rendering import choose_backend

    try:
        choose_backend()
    except DependencyNotInstalled:
        return False
    return True


@pytest.mark.slow
def test_a_film_of_the_real_world(run, checkpoint, tmp_path):
    if not has_opengl():
        pytest.skip("no OpenGL here")
    words = ["--checkpoint", checkpoint, "--out", tmp_path / "out", "--samplers", "ddpm"]
    status, output, errors = run(
        "eval", *words, "--episodes", 2, "--horizon", 3, "--threads", 1, "--video", 1
    )
    assert status == 0, errors
    films = [path.name for path in (tmp_path / "out" / "videos").iterdir()]
    assert films == ["lift_seed100000_ddpm_failure.mp4"]
    with imageio.get_reader(tmp_path / "out" / "videos" / films[0]) as film:
        frames = [np.asarray(frame) for frame in film]
    assert len(frames) == 4
    assert np.ptp(frames[0]) > 100, "a picture of something"
    assert "rendering" in output


@pytest.mark.skipif(sys.platform != "linux", reason="GLFW needs a display on Linux only")
def test_without_opengl_a_film_is_refused_before_the_run(checkpoint, tmp_path):
    out = tmp_path / "out"
    words = ["eval", "--checkpoint", str(checkpoint), "--out", str(out), "--video", "1"]
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [*COMMAND, *words], env=env | {"MUJOCO_GL": "glfw"}, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "error: --video cannot be recorded: rendering needs OpenGL" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
