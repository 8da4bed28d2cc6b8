"""The command line: what it says, and its exit status."""

import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from asd_policy import cli
from asd_policy.errors import AsdPolicyError, DatasetError

COMMAND = [sys.executable, "-m", "asd_policy"]


# --- help, version, unknown words ---------------------------------------------------------------


def python(program: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | env,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        *([name, "--help"] for name in ("eval", "demos", "bench", "verify", "compare")),
        ["--version"],
    ],
)
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


def test_help_lists_the_commands(run):
    status, output, _ = run("--help")
    assert status == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z]", output, re.M)
    status, output, _ = run("eval", "--help")
    assert status == 0
    for option in ("task", "checkpoint", "samplers", "window", "device", "out", "video", "resume"):
        assert f"--{option} " in output


def test_no_command_shows_the_usage(run):
    status, output, _ = run()
    assert status == 2
    assert "usage: asd-policy" in output


def test_version(run):
    status, output, _ = run("--version")
    assert (status, bool(re.fullmatch(r"asd-policy \d+\.\d+\S*\n", output))) == (0, True)


def test_an_unknown_command_names_those_there_are(refused):
    refused(
        rf"error: expected a command, one of {', '.join(cli.COMMANDS)}; got 'evil'",
        "evil",
    )


# --- the other commands -------------------------------------------------------------------------


def test_demos_and_train_take_their_options(refused):
    refused(r"error: unknown task 'juggle'; expected one of", "demos", "--task", "juggle")
    refused(r"error: unknown task 'juggle'; expected one of", "train", "--task", "juggle")
    refused(r"--episodes.*'x'", "demos", "--episodes", "x")
    refused(r"Unrecognized options: --stesp", "train", "--stesp", "3")


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


def test_an_error_of_the_package_is_one_line(command, refused):
    command(ours)
    refused("^error: expected a store, got nothing$", "fault")


def test_the_traceback_can_be_had(command, monkeypatch):
    command(ours)
    monkeypatch.setenv("ASD_POLICY_TRACEBACK", "1")
    with pytest.raises(AsdPolicyError):
        cli.main(["fault"])


def test_an_error_is_red_on_a_terminal_only(command, run, monkeypatch):
    command(ours)
    assert "\x1b" not in run("fault")[2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31merror:" in run("fault")[2]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("fault")[2]


def test_an_interruption_exits_with_130(command, run):
    command(interrupted)
    assert run("fault") == (130, "", "interrupted\n")


def test_a_missing_package_names_the_extra(command, refused):
    command(lacks_an_extra)
    refused(r"needs robosuite, which is not .*pip install 'asd-policy\[sim\]'", "fault")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - {"doctor"}))
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


# --- output of any encoding ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("ascii", "-...->x?"),
        ("iso-8859-1", "-...->×?"),
        ("cp1252", "–…->×?"),
        ("utf-8", "–…→×δ"),
    ],
)
def test_no_encoding_of_the_output_ends_a_command(encoding, said):
    odd = "–…→×δ"
    done = subprocess.run(
        [*COMMAND, "report", odd],
        capture_output=True,
        timeout=120,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    errors = done.stderr.decode(encoding)
    assert done.returncode == 2
    assert errors == f"error: expected an evaluation's folder with a config.json, got {said}\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "iso-8859-1"])
def test_help_and_usage_are_printed_in_any_encoding(encoding):
    for words in (["--help"], ["train", "--help"], ["eval", "--help"], ["juggle–"]):
        done = subprocess.run(
            [*COMMAND, *words],
            capture_output=True,
            timeout=120,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )
        assert done.returncode == (2 if words == ["juggle–"] else 0), done.stderr
        assert b"Unicode" not in done.stderr
