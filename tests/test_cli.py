"""The command line: what it says, and its exit status."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import cli
from asd_policy.envs.tasks import get_task
from asd_policy.errors import AsdPolicyError, DatasetError
from asd_policy.policy import Checkpoint, Normalizer, PolicyConfig, save_checkpoint
from asd_policy.schedule import Schedule

COMMAND = [sys.executable, "-m", "asd_policy"]


def run(capsys, *words: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a command, in this process."""
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as leave:  # tyro's own complaints
        status = int(leave.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, message: str, *words: object) -> None:
    """The command exits with 2 and says `message` (a regex), with no traceback."""
    status, _, errors = run(capsys, *words)
    plain = " ".join(re.sub(r"[│╭╮╰╯─]", " ", errors).split())
    assert status == 2, errors
    assert re.search(message, plain), plain
    assert "Traceback" not in errors


# --- help, version, unknown words ---------------------------------------------------------------


def python(program: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | env,
    )


@pytest.mark.parametrize("words", [["--help"], ["eval", "--help"], ["--version"]])
def test_help_needs_neither_torch_nor_the_simulator(words):
    done = python(
        f"""
        import sys
        from asd_policy.cli import main
        try:
            status = main({words!r})
        except SystemExit as leave:
            status = leave.code
        assert status == 0, status
        loaded = {{"torch", "robosuite", "mujoco", "scipy", "numba"}} & set(sys.modules)
        assert not loaded, loaded
        """
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="processor time of one child: POSIX only")
def test_help_is_quick():
    """Processor time, not wall-clock: the machine that tests may be busy."""
    process = subprocess.Popen([*COMMAND, "--help"], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert used.ru_utime + used.ru_stime < 1.5


def test_help_lists_the_commands(capsys):
    status, output, _ = run(capsys, "--help")
    assert status == 0
    for name in ("eval", "demos", "train"):
        assert re.search(rf"^  {name} +[A-Z]", output, re.M)
    status, output, _ = run(capsys, "eval", "--help")
    assert status == 0
    for option in ("task", "checkpoint", "samplers", "window", "device", "out", "video", "resume"):
        assert f"--{option} " in output


def test_no_command_shows_the_usage(capsys):
    status, output, _ = run(capsys)
    assert status == 2
    assert "usage: asd-policy" in output


def test_version(capsys):
    status, output, _ = run(capsys, "--version")
    assert (status, bool(re.fullmatch(r"asd-policy \d+\.\d+\S*\n", output))) == (0, True)


def test_an_unknown_command_names_those_there_are(capsys):
    refused(capsys, r"error: expected a command, one of eval, demos, train; got 'evil'", "evil")


# --- options of eval ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "juggle"], r"error: unknown task 'juggle'; expected one of: lift"),
        (["--samplers", "asd", "euler"], r"invalid choice 'euler'.*Expected one of \('asd'"),
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
        (["--name", "a/b"], r"error: --name must be a plain file name, got 'a/b'"),
        (["--resume"], r"error: --resume needs --out.*got none"),
        (["--epsiodes", "3"], r"Unrecognized options: --epsiodes"),
    ],
)
def test_a_bad_option_is_named_with_what_was_expected(capsys, words, message):
    refused(capsys, message, "eval", *words)


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


def refused_checkpoint(capsys, folder: Path, message: str, *words: object) -> None:
    out = folder.parent / "out"
    refused(capsys, message, "eval", "--checkpoint", folder, "--out", out, *words)
    assert not out.exists(), "refused before anything was written"


def test_a_missing_checkpoint(capsys, tmp_path):
    refused_checkpoint(capsys, tmp_path / "none", r"error: no checkpoint at .*none.*card\.json")


def test_a_truncated_checkpoint(capsys, checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused_checkpoint(capsys, checkpoint, r"error: .*changed or cut short: expected SHA-256")


def test_a_checkpoint_that_was_tampered_with(capsys, checkpoint):
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    refused_checkpoint(capsys, checkpoint, r"error: .*changed or cut short: .* got [0-9a-f]{64}")


def test_a_pickle_is_never_opened(capsys, tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "policy.ckpt")
    refused_checkpoint(capsys, tmp_path / "policy.ckpt", r"error: .*pickled files are never opened")


def test_a_checkpoint_for_other_observations_is_one_table(capsys, tmp_path):
    folder = make_checkpoint(
        tmp_path / "p", {"object": 14, "robot0_eef_pos": 3, "robot0_gripper_qpos": 2, "camera": 5}
    )
    refused_checkpoint(
        capsys,
        folder,
        r"error: the policy was made for other observations: name problem expected got .*"
        r"camera missing \(5,\).*robot0_eef_quat unexpected - \(4,\).*"
        r"object wrong shape \(14,\) \(10,\)",
    )


def test_a_checkpoint_with_other_actions(capsys, tmp_path):
    folder = make_checkpoint(tmp_path / "p", action_dim=9)
    refused_checkpoint(capsys, folder, r"error: task 'lift' takes actions of 7 .* actions of 9")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "11"], r"error: .*11"),
        (["--samplers", "ddim", "--ddim-steps", "11"], r"error: .*11"),
        (["--samplers", "asd-ddim"], r"error: ASD needs noise .*eta=0 has none"),
    ],
)
def test_a_chain_that_the_policy_does_not_allow(capsys, checkpoint, words, message):
    refused_checkpoint(capsys, checkpoint, message, *words)


def test_a_network_that_returns_nan_ends_the_run(capsys, tmp_path):
    folder = make_checkpoint(tmp_path / "p", fill=float("nan"))
    out = tmp_path / "out"
    words = ["--checkpoint", folder, "--out", out, "--episodes", 1]
    refused(capsys, r"0 of 2 episodes were finished.*error: .*NaN", "eval", *words)
    assert (out / "episodes.jsonl").read_text() == ""
    assert json.loads((out / "results.json").read_text())["complete"] is False


def test_an_output_folder_in_use(capsys, checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    words = ["--checkpoint", checkpoint, "--out", out]
    refused(capsys, r"error: the output folder must be new.*holds other files", "eval", *words)


# --- the whole way, with an untrained policy ----------------------------------------------------


def test_an_evaluation_of_every_sampler_and_its_continuation(capsys, checkpoint, tmp_path):
    names = ["asd", "asd-slope", "asd-memory", "asd-frozen", "asd-paper", "ddpm", "ddim"]
    names += ["paradigms", "asd-ddim"]
    words = ["eval", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--horizon", 9]
    words += ["--ddim-steps", 5, "--eta", 0.5, "--threads", 1, "--samplers", *names]
    status, output, errors = run(capsys, *words, "--episodes", 1)
    assert status == 0, errors
    assert "\x1b" not in output + errors, "no control characters where there is no terminal"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["samplers"]) == names
    calls = {name: s["network_calls_per_chunk"] for name, s in results["samplers"].items()}
    assert calls["ddpm"] == 10
    assert calls["ddim"] == 5
    assert calls["asd"] <= 10
    assert results["resolved"]["steps"] == {name: 5 if "ddim" in name else 10 for name in names}
    status, output, errors = run(capsys, *words, "--episodes", 1)
    assert status == 2
    assert "add --resume" in errors
    status, output, errors = run(capsys, *words, "--episodes", 2, "--num-envs", 1, "--resume")
    assert status == 0, errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {s["success"]["n"] for s in results["samplers"].values()} == {2}


@pytest.mark.skipif(
    not (Path(cli.__file__).parent.parent / "checkpoints" / "lift").exists(),
    reason="no checkpoint is shipped for lift yet",
)
@pytest.mark.slow
def test_the_shipped_policy_lifts_the_cube(tmp_path):
    done = subprocess.run(
        [*COMMAND, "eval", "--episodes", "2", "--out", str(tmp_path / "out")],
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


# --- the other commands -------------------------------------------------------------------------


def test_demos_and_train_take_their_options(capsys):
    refused(capsys, r"error: unknown task 'juggle'; expected one of", "demos", "--task", "juggle")
    refused(capsys, r"error: unknown task 'juggle'; expected one of", "train", "--task", "juggle")
    refused(capsys, r"--episodes.*'x'", "demos", "--episodes", "x")
    refused(capsys, r"Unrecognized options: --stesp", "train", "--stesp", "3")


# --- what is an error of the user's, and what is a fault ----------------------------------------


def of_a_library() -> None:
    np.zeros(2).reshape(3)


def of_an_operation() -> None:
    _, _ = (1, 2, 3)


def ours() -> None:
    raise DatasetError("expected a store, got nothing")


def interrupted() -> None:
    raise KeyboardInterrupt


def lacks_an_extra() -> None:
    raise ModuleNotFoundError("No module named 'robosuite'", name="robosuite")


def lacks_something_else() -> None:
    raise ModuleNotFoundError("No module named 'asd_policy.typo'", name="asd_policy.typo")


@pytest.fixture
def command(monkeypatch):
    """Makes a function of this file the command `fault`."""

    def install(function):
        module = "test_cli_functions"
        monkeypatch.setitem(sys.modules, module, sys.modules[function.__module__])
        monkeypatch.setitem(cli.COMMANDS, "fault", (f"{module}:{function.__name__}", "fails"))

    return install


@pytest.mark.parametrize("function", [of_a_library, of_an_operation, lacks_something_else])
def test_a_fault_keeps_its_traceback(command, function):
    command(function)
    with pytest.raises((ValueError, ModuleNotFoundError)):
        cli.main(["fault"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise ValueError('steps must be 1 or more, got 0')", True),
        ("a, b = (1, 2, 3)", False),
        ("int('x')", False),
        ("import numpy; numpy.zeros(2).reshape(3)", False),
    ],
)
@pytest.mark.parametrize("module", ["asd_policy.somewhere", "elsewhere"])
def test_only_a_raise_of_this_package_is_a_message_to_the_user(module, body, expected):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (any)
        exec(body, {"__name__": module})
    assert cli._is_ours(caught.value) is (expected and module != "elsewhere")


def test_an_error_of_the_package_is_one_line(command, capsys):
    command(ours)
    refused(capsys, "^error: expected a store, got nothing$", "fault")


def test_the_traceback_can_be_had(command, monkeypatch):
    command(ours)
    monkeypatch.setenv("ASD_POLICY_TRACEBACK", "1")
    with pytest.raises(AsdPolicyError):
        cli.main(["fault"])


def test_an_error_is_red_on_a_terminal_only(command, capsys, monkeypatch):
    command(ours)
    assert "\x1b" not in run(capsys, "fault")[2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31merror:" in run(capsys, "fault")[2]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run(capsys, "fault")[2]


def test_an_interruption_exits_with_130(command, capsys):
    command(interrupted)
    assert run(capsys, "fault") == (130, "", "interrupted\n")


def test_a_missing_package_names_the_extra(command, capsys):
    command(lacks_an_extra)
    refused(capsys, r"needs robosuite, which is not .*pip install 'asd-policy\[sim\]'", "fault")


@pytest.mark.parametrize("name", ["eval", "demos", "train"])
def test_with_the_core_alone_each_command_names_the_extra(name):
    done = python(
        f"""
        import sys
        for package in ("tyro", "rich", "gymnasium", "robosuite", "zarr", "scipy"):
            sys.modules[package] = None
        from asd_policy.cli import main
        sys.exit(main([{name!r}]))
        """
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "error: `asd-policy " + name + "` needs tyro" in done.stderr
    assert "pip install 'asd-policy[sim]'" in done.stderr


def test_ctrl_c_of_an_evaluation_exits_with_130(checkpoint, tmp_path):
    out = tmp_path / "out"
    words = ["--checkpoint", checkpoint, "--out", out, "--episodes", 500, "--horizon", 9]
    process = subprocess.Popen(
        [*COMMAND, "eval", "--threads", "1", *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    lines = out / "episodes.jsonl"
    while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") > 1):
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert re.search(r"(\d+) of 1000 episodes were finished and are kept in", errors)
    assert errors.endswith("interrupted\n")
