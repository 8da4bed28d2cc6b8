"""The command line: what it says, and its exit status."""

import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from asd_policy import cli
from asd_policy.errors import AsdPolicyError, DatasetError, InputError

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
        """,
        MUJOCO_GL="egl",  # with which MuJoCo loads OpenGL as soon as it is imported
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="processor time of one child: POSIX only")
def test_help_takes_little_processor_time():
    def processor_s(*words: str) -> float:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        _, process.returncode, used = os.wait4(process.pid, 0)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    assert processor_s(*COMMAND, "--help") < 4 * processor_s(sys.executable, "-c", "import numpy")


def test_help_lists_the_commands(run):
    status, output, _ = run("--help")
    assert status == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z]", output, re.M)
    status, output, _ = run("eval", "--help")
    assert status == 0
    for option in ("task", "checkpoint", "samplers", "window", "device", "out", "video", "resume"):
        assert f"--{option} " in output


@pytest.mark.parametrize("words", [["--help"], ["rates", "--help"]])
def test_a_reader_that_leaves_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + 13, "")


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


def refuses() -> None:
    raise InputError("steps must be 1 or more, got 0")


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


def test_a_value_that_is_refused_is_one_line_and_a_value_error(command, refused):
    command(refuses)
    refused("^error: steps must be 1 or more, got 0$", "fault")
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        refuses()


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


@pytest.fixture
def without(tmp_path):
    """without(package): the environment of a process in which, and in whose children, a package
    looks as if it were not installed, its metadata too."""

    def environment(package: str) -> dict[str, str]:
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            textwrap.dedent(
                f"""
                import importlib.metadata, sys
                class Finder:
                    def find_spec(self, name, path=None, target=None):
                        if name.partition(".")[0] == {package!r}:
                            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
                sys.meta_path.insert(0, Finder())
                version = importlib.metadata.version
                def installed(name):
                    if name == {package!r}:
                        raise importlib.metadata.PackageNotFoundError(name)
                    return version(name)
                importlib.metadata.version = installed
                """
            )
        )
        return os.environ | {"PYTHONPATH": str(folder)}

    return environment


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("robosuite", ["eval", "--episodes", "1"], "sim"),
        ("robosuite", ["eval", "--episodes", "1", "--num-envs", "2"], "sim"),
        ("robosuite", ["rates", "--episodes", "1"], "sim"),
        ("robosuite", ["tasks", "--tasks", "lift", "--episodes", "1"], "sim"),
        ("mujoco", ["demos", "--episodes", "1"], "sim"),
        ("robosuite", ["demos", "--episodes", "1"], "sim"),
        ("mujoco", ["verify", "--chunks", "64"], "sim"),
        ("h5py", ["train", "--data", "demos.hdf5"], "sim"),
        ("numba", ["eval", "--episodes", "1"], "sim"),  # which robosuite imports
        ("ray", ["eval", "--episodes", "1", "--ray"], "ray"),
        ("robomimic", ["export", "lift", "model.pth"], "sim,robomimic"),
    ],
)
def test_a_module_that_is_missing_deep_down_names_its_extra(
    without, tmp_path, package, words, extra
):
    pytest.importorskip("robosuite")
    (tmp_path / "demos.hdf5").write_bytes(b"")
    done = subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env=without(package),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"pip install 'asd-policy[{extra}]'" in errors[0]
    assert package in errors[0]


def test_the_robomimic_command_says_what_it_lacks(without):
    words = [sys.executable, "-m", "asd_policy.integrations.robomimic", "overhead"]
    env = without("robomimic")
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: robomimic is not installed")
    assert "pip install 'asd-policy[sim,robomimic]'" in done.stderr
    imported = python("import asd_policy.integrations.robomimic", **env)
    assert imported.returncode == 1, "an import is no command: it raises"
    assert "IntegrationError: robomimic is not installed" in imported.stderr


@pytest.mark.parametrize(
    ("command", "package", "message"),
    [
        ("integrations.lerobot eval", "lerobot", "LeRobot is not installed: pip install 'asd-p"),
        ("integrations.lerobot --help", "lerobot", "LeRobot is not installed: pip install 'asd-p"),
        ("eval.studies.pusht demos", "pymunk", "PushT needs pymunk, which is not installed: pip i"),
        ("eval.studies.modes show", "scipy", "needs scipy, which is not installed: pip install"),
        ("eval.studies.modes --help", "scipy", "needs scipy, which is not installed: pip install"),
    ],
)
def test_a_module_that_is_run_says_what_it_lacks(without, command, package, message):
    words = [sys.executable, "-m", *f"asd_policy.{command}".split()]
    env = without(package)
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=env)
    helps = "eval" in command and "--help" in command
    assert done.returncode == (0 if helps else 2), done.stderr
    assert helps == ("measure" in done.stdout), "the commands that there are"
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "--episodes", "1"],
        ["eval", "--episodes", "1", "--num-envs", "2"],
        ["rates", "--episodes", "1"],
        ["tasks", "--tasks", "lift", "--episodes", "1"],
        ["demos", "--episodes", "1"],
        ["verify", "--chunks", "64"],
    ],
    ids=" ".join,
)
def test_a_wrong_opengl_is_one_line(words, tmp_path):
    pytest.importorskip("mujoco")
    done = subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env=os.environ | {"MUJOCO_GL": "foo"},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: MUJOCO_GL=foo cannot be used here")
    assert "expected one of egl, osmesa, glfw, cgl that works, or unset it" in line


def test_a_wrong_opengl_is_a_clear_exception_in_python():
    pytest.importorskip("mujoco")
    done = python(
        "import gymnasium; gymnasium.make('asd_policy:asd_policy/Lift-v0')", MUJOCO_GL="foo"
    )
    assert done.returncode == 1
    assert "EnvironmentVariableError: MUJOCO_GL=foo cannot be used here" in done.stderr


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
    assert re.search(f"error: `asd-policy {name}` needs (tyro|rich)", done.stderr), done.stderr
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
            env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "4"},
        )
        assert done.returncode == (2 if words == ["juggle–"] else 0), done.stderr
        assert b"Unicode" not in done.stderr
