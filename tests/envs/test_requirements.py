"""What the simulator needs: what is asked of pip is what is said at run time."""

import gzip
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from asd_policy import cli
from asd_policy.envs import requirements
from asd_policy.envs.requirements import check_simulator, conflicts
from asd_policy.errors import IntegrationError, MissingExtraError, missing_extra, wrong_python

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def asked() -> dict[str, Requirement]:
    """What the extra asks for, by package."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    found = map(Requirement, project["optional-dependencies"]["sim"])
    return {requirement.name: requirement for requirement in found}


@pytest.mark.parametrize(
    ("package", "versions"),
    [
        ("gymnasium", ["0.29.1", "1.0.0", "1.1.0", "1.1.1", "1.4.0", "2.0"]),
        ("robosuite", ["1.4.1", "1.5.1", "1.5.2", "1.5.3", "2.0"]),
        ("mujoco", ["2.3.7", "3.2.7", "3.3.0", "3.9.0", "3.10.0", "4.0"]),
    ],
)
def test_versions_are_refused_that_the_extra_does_not_ask_for(package, versions):
    well = {"gymnasium": "1.1.0", "robosuite": "1.5.2", "mujoco": "3.9.0"}
    assert list(conflicts(well)) == []
    assert list(conflicts(dict.fromkeys(well))) == []
    for version in versions:
        found = list(conflicts(well | {package: version}))
        assert [conflict.package for conflict in found] == (
            [] if asked()[package].specifier.contains(version) else [package]
        )
        for conflict in found:
            assert version in conflict.text
            assert Requirement(conflict.requirement).specifier == asked()[package].specifier


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_the_pythons_that_are_said_are_those_of_the_markers(python):
    for package in ("robosuite", "mujoco", "numpy"):
        marker = asked()[package].marker
        assert marker is not None
        assert marker.evaluate({"python_version": python}) == (wrong_python(f"{python}.0") is None)
    assert all(asked()[name].marker is None for name in ("gymnasium", "zarr", "tyro", "rich"))


# --- said at run time ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(cli._SIMULATE))
def test_an_old_gymnasium_is_one_sentence(refused, monkeypatch, tmp_path, command):
    pytest.importorskip("robosuite")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requirements, "installed_version", {"gymnasium": "1.0.0"}.get)
    refused(r"error: the simulator .* gymnasium .*needs 1.1 or later, found 1.0.0", command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", sorted(cli._SIMULATE))
def test_another_python_is_one_sentence(refused, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(requirements.platform, "python_version", lambda: "3.13.0")
    refused("for Python 3.10 to 3.12 only, and this is 3.13.0 .* python3.12 -m venv", command)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_robosuite(monkeypatch):
    find = requirements.importlib.util.find_spec
    monkeypatch.setattr(
        requirements.importlib.util,
        "find_spec",
        lambda name: None if name == "robosuite" else find(name),
    )


@pytest.mark.parametrize("command", ["eval", "rates"])
def test_lerobots_checkpoint_is_refused_for_what_it_is(refused, no_robosuite, tmp_path, command):
    """In LeRobot's environment, where the extra is not to be had, and would not help."""
    (tmp_path / "config.json").write_text('{"type": "diffusion"}')
    refused("is a policy of LeRobot's, and no task here", command, "--checkpoint", tmp_path)
    refused("is a policy of LeRobot's, and no task here", command, f"--checkpoint={tmp_path}")
    refused("the simulator needs robosuite", command, "--checkpoint", "lift")


def test_verify_needs_no_simulator_where_nothing_is_simulated(no_robosuite, run, tmp_path):
    out = tmp_path / "out"
    words = "verify", "--checkpoint", "lift", "--out", out, "--threads", 1
    status, _, error = run(*words, "--source", "nowhere.npz")
    assert (status, "nowhere.npz" in error) == (2, True)
    status, _, error = run(*words, "--source", "episodes")
    assert (status, "the simulator needs robosuite" in error) == (2, True)
    packed = Path(__file__).parents[1] / "data" / "diffusion_policy.ckpt.gz"
    (tmp_path / "latest.ckpt").write_bytes(gzip.decompress(packed.read_bytes()))
    words = "verify", "--checkpoint", tmp_path / "latest.ckpt", *words[3:], "--observations", 2
    status, _, error = run(*words, "--chunks", 80, "--detect", 2)
    assert status == 0, error


def test_help_needs_no_simulator(run, monkeypatch):
    monkeypatch.setattr(requirements, "installed_version", {"gymnasium": "1.0.0"}.get)
    status, output, _ = run("eval", "--help")
    assert status == 0
    assert "--episodes" in output


def test_in_python_too(monkeypatch):
    pytest.importorskip("robosuite")
    check_simulator()
    monkeypatch.setattr(requirements, "installed_version", {"mujoco": "3.2.0"}.get)
    with pytest.raises(IntegrationError, match=r"mujoco .*needs 3.3 or later, found 3.2.0"):
        check_simulator()
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(requirements.platform, "python_version", lambda: "3.12.1")
    with pytest.raises(MissingExtraError, match=r"not installed: pip install 'asd-policy\[sim\]'"):
        check_simulator()


def test_making_an_environment_says_it_first():
    program = """
        import sys
        sys.modules["robosuite"] = sys.modules["mujoco"] = None
        import gymnasium
        gymnasium.make("asd_policy:asd_policy/Lift-v0")
    """
    pytest.importorskip("gymnasium")
    done = python(program)
    assert done.stderr.splitlines()[-1].startswith(
        "asd_policy.errors.MissingExtraError: the simulator needs robosuite; "
    )


def test_an_oracle_needs_no_simulator(run, monkeypatch):
    monkeypatch.setattr(requirements, "installed_version", {"gymnasium": "1.0.0"}.get)
    status, _, errors = run("verify", "--oracle", "--chunks", "nine")
    assert status == 2
    assert "gymnasium" not in errors
    assert "--chunks" in errors


def test_a_module_that_the_extra_does_not_bring_to_this_python(monkeypatch):
    monkeypatch.setattr("asd_policy.errors._PYTHON", "3.13.0")
    said = missing_extra(ModuleNotFoundError("…", name="mujoco"), "this")
    assert said is not None
    assert "needs mujoco; the extra 'sim' brings it for Python 3.10 to 3.12 only" in said
    said = missing_extra(ModuleNotFoundError("…", name="zarr"), "this")
    assert said == "this needs zarr, which is not installed: pip install 'asd-policy[sim]'"


def test_workers_need_no_name_that_gymnasium_got_lately():
    pytest.importorskip("robosuite")
    done = python("""
        import gymnasium.vector as vector
        vars(vector).pop("AutoresetMode", None)
        import asd_policy.eval.slots
    """)
    assert done.returncode == 0, done.stderr


def python(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
