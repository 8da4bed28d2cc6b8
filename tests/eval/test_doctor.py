"""`asd-policy doctor`: each thing that can be wrong is named with the command that mends it, and
nothing that is wrong keeps it from answering."""

import copy
import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest

from asd_policy.errors import EXTRAS
from asd_policy.eval.commands import doctor, probes
from asd_policy.eval.commands.doctor import diagnose

WELL = {
    "python": "3.11.7",
    "platform": "Linux",
    "versions": {
        "asd-policy": "0.1.0", "torch": "2.13.0+cpu", "numpy": "1.26.4", "safetensors": "0.8.0",
        "triton": None, "openvino": "2026.4.1", "robomimic": "0.3.0", "egl_probe": "1.0.2",
        **dict.fromkeys(probes.SIM, "3.0.0"),
        "msgpack": "1.2.4", "websockets": "17.4",
        "mujoco": "3.9.0", "robosuite": "1.5.2",
    },
    "mink": "0.0.5",
    "git_commit": "0123",
    "imports": {
        **dict.fromkeys([*probes.CORE, *probes.SIM.values(), *probes.SERVE]),
        **dict.fromkeys(["openvino", "robomimic", "egl_probe"]),
        probes.NATIVE: None,
    },
    "known": {"torch": {"cuda": None, "gpus": []}},
    "native_built": True,
    "nvidia": [],
    "mujoco_gl": None,
    "backends": {"egl": False, "osmesa": True},
    "triton_after_opengl": None,
    "cmake": "3.25.1",
    "failed": {},
}  # fmt: skip


def facts(changes):
    """WELL with changes: a/b → value."""
    changed = copy.deepcopy(WELL)
    for place, value in changes.items():
        *way, last = place.split("/")
        where = changed
        for key in way:
            where = where[key]
        where[last] = value
    return changed


def ill(findings):
    return {f.name: f for f in findings if f.status == "broken"}


def test_where_all_is_well_nothing_is_wrong():
    findings = diagnose(WELL)
    assert {f.status for f in findings} == {"ok"}
    assert {f.mend for f in findings} == {None}


@pytest.mark.parametrize(
    ("changes", "name", "said", "mend"),
    [
        ({"versions/torch": None}, "torch", "not installed", "pip install torch"),
        ({"imports/torch": "OSError: libcudart.so.12"}, "torch", "OSError: libcudart",
         "pip install --force-reinstall torch==2.13.0"),
        ({"versions/torch": "2.3.1"}, "torch", "needs 2.4 or later, found 2.3.1",
         "pip install 'torch>=2.4'"),
        ({"imports/mujoco": "importing it ends the process (signal 11)"}, "mujoco", "signal 11",
         "pip install --force-reinstall mujoco==3.9.0"),
        ({"imports/" + probes.NATIVE: "ImportError: GLIBC"}, "CPU kernels", "GLIBC",
         "apt-get install gcc python3-dev && pip install --force-reinstall --no-deps asd-policy"),
        ({"versions/mujoco": "3.10.1"}, "mujoco", "breaks from MuJoCo 3.10 on, found 3.10.1",
         "pip install 'mujoco>=3.3,<3.10'"),
        ({"versions/robosuite": "1.4.1"}, "robosuite", "made for 1.5.2, found 1.4.1",
         "pip install 'robosuite==1.5.2'"),
        ({"versions/gymnasium": "1.0.0"}, "gymnasium", "needs 1.1 or later, found 1.0.0",
         "pip install 'gymnasium>=1.1'"),
        ({"versions/numpy": "2.1.0"}, "numpy", "mink 0.0.5 needs NumPy below 2, found 2.1.0",
         "pip install 'numpy>=1.26,<2'"),
        ({"versions/openvino": "2024.6.0"}, "openvino", "needs 2025.0 or later, found 2024.6.0",
         "pip install 'asd-policy[openvino]'"),
        ({"imports/openvino": "ImportError: libtbb"}, "openvino", "cannot be imported: ImportError",
         "pip install --force-reinstall openvino==2026.4.1"),
        ({"versions/robomimic": "0.6.0"}, "robomimic", "found 0.6.0",
         "pip install robomimic==0.3.0"),
        ({"versions/robomimic": "0.4.0"}, "robomimic", "0.4.0 has no diffusion policy",
         "pip install robomimic==0.3.0"),
        ({"versions/egl_probe": None, "cmake": "4.1.0"}, "robomimic", "CMake 4.1.0 cannot build it",
         "pip install 'cmake<4' && pip install egl_probe"),
        ({"mujoco_gl": "egl"}, "rendering", "MUJOCO_GL=egl: does not render here",
         "export MUJOCO_GL=osmesa"),
        ({"mujoco_gl": "vulkan"}, "rendering", "none of egl, osmesa", "export MUJOCO_GL=osmesa"),
        ({"mujoco_gl": "egl", "backends/osmesa": False}, "rendering", "egl fails, osmesa fails",
         "unset MUJOCO_GL; apt-get install libosmesa6"),
        ({"nvidia": ["NVIDIA H100"]}, "GPU", "H100 is here, and this torch was built without CUDA",
         "pip install --force-reinstall torch"),
        ({"nvidia": ["NVIDIA H100"], "known/torch/cuda": "13.0"}, "GPU", "cannot use it",
         "nvidia-smi"),
        ({"versions/websockets": "12.0"}, "extra: serve", "15 or later, found 12.0",
         "pip install 'websockets>=15'"),
        ({"imports/msgpack": "ImportError: x"}, "msgpack", "cannot be imported: ImportError",
         "pip install --force-reinstall msgpack==1.2.4"),
        ({"failed": {"cmake": "TimeoutExpired: 60 s"}}, "cmake", "could not be looked at", None),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_with_what_mends_it(changes, name, said, mend):
    found = ill(diagnose(facts(changes)))
    assert list(found) == [name]
    assert said in found[name].text
    assert (found[name].mend or "").startswith(mend or "")
    assert (mend is None) == (found[name].mend is None)


@pytest.mark.parametrize(
    ("changes", "name", "said", "mend"),
    [
        ({f"versions/{n}": None for n in probes.SIM}, "extra: sim", "nothing of it is installed",
         "pip install 'asd-policy[sim]'"),
        ({"versions/rich": None, "versions/zarr": None}, "extra: sim", "without rich, zarr",
         "pip install 'asd-policy[sim]'"),
        ({"native_built": False}, "CPU kernels", "no C compiler", "apt-get install gcc"),
        ({"backends/osmesa": False}, "rendering", "no OpenGL", "apt-get install libosmesa6"),
        ({"backends": {}}, "rendering", "needs MuJoCo", "pip install 'asd-policy[sim]'"),
        ({"known/torch": {"cuda": "13.0", "gpus": ["NVIDIA H100"]}}, "triton", "more slowly",
         "pip install triton"),
        ({"versions/robomimic": None}, "robomimic", "optional",
         "pip install 'asd-policy[sim,robomimic]'"),
        ({"versions/msgpack": None}, "extra: serve", "msgpack not installed (optional)",
         "pip install 'asd-policy[serve]'"),
        ({"versions/robomimic": None, "versions/egl_probe": None, "cmake": "4.0"}, "robomimic",
         "egl_probe cannot be built with CMake 4.0", "pip install 'cmake<4' && pip install"),
        ({"versions/openvino": None}, "openvino", "optional",
         "pip install 'asd-policy[openvino]'"),
    ],
)  # fmt: skip
def test_an_optional_part_may_be_missing(changes, name, said, mend):
    findings = diagnose(facts(changes))
    assert not ill(findings)
    missing = {f.name: f for f in findings if f.status == "missing"}
    assert said in missing[name].text
    assert missing[name].mend.startswith(mend)


def test_a_package_without_metadata_is_there(packages, monkeypatch):
    packages(unpacked_here="")
    monkeypatch.syspath_prepend(os.environ["PYTHONPATH"])
    assert probes.version_of("unpacked-here", "unpacked_here") == probes.UNKNOWN
    assert probes.version_of("absent", "absent_module") is None
    unknown = dict.fromkeys(["versions/torch", "versions/robosuite"], probes.UNKNOWN)
    assert not ill(diagnose(facts(unknown)))
    broken = ill(diagnose(facts(unknown | {"imports/torch": "OSError: x"})))
    assert broken["torch"].mend == "pip install --force-reinstall torch"


def test_triton_after_opengl_is_a_note():
    changes = {"versions/triton": "3.7.1", "imports/triton": None, "triton_after_opengl": False}
    note = next(f for f in diagnose(facts(changes)) if f.status == "note")
    assert "LLVM" in note.text
    assert note.mend.startswith("import triton")
    assert all(f.status != "note" for f in diagnose(facts(changes | {"triton_after_opengl": True})))


def test_a_probe_that_fails_is_a_finding(monkeypatch, run):
    """Every probe at once: the command still answers."""

    def broken(*_):
        raise OSError("no such thing")

    for name in (
        "version_of", "installed_version", "git_commit", "try_imports", "nvidia_gpus",
        "cmake_version", "native_is_built", "works",
    ):  # fmt: skip
        monkeypatch.setattr(probes, name, broken)
    status, output, errors = run("doctor", "--json")
    assert (status, errors) == (1, "")
    answer = json.loads(output)
    assert answer["well"] is False
    assert "OSError: no such thing" in answer["facts"]["failed"]["imports"]
    assert {f["name"] for f in answer["findings"]} >= {"torch", "imports", "extra: sim"}


def test_here_every_probe_answers():
    """As they are: no stand-in of a probe takes what its caller does not give."""
    assert probes.gather()["failed"] == {}


def test_what_it_prints(monkeypatch, run):
    monkeypatch.setattr(doctor, "gather", lambda: facts({"versions/mujoco": "3.10.1"}))
    status, output, _ = run("doctor")
    assert status == 1
    assert "broken  mujoco " in output
    assert "→ pip install 'mujoco>=3.3,<3.10'" in output
    assert output.endswith("1 broken\n")
    assert "\x1b" not in output
    monkeypatch.setattr(doctor, "gather", lambda: WELL)
    status, output, _ = run("doctor")
    assert status == 0
    assert output.endswith("Nothing is broken.\n")


def test_its_help_and_a_wrong_option(run):
    status, output, _ = run("doctor", "--help")
    assert status == 0
    assert "--json" in output
    assert run("doctor", "--jason")[0] == 2


# --- with packages that are really broken ---------------------------------------------------------


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """packages(name=source): modules that are found before the installed ones, in children."""

    def write(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


def test_imports_that_raise_print_exit_or_crash(packages):
    packages(
        raising="raise RuntimeError('first line\\nsecond')",
        leaving="raise SystemExit(3)",
        crashing="import os; os.abort()",
        exiting="import os; os._exit(7)",
        talking="print('@end nonsense of its own'.replace('@', ''))",
    )
    names = ["raising", "crashing", "talking", "leaving", "exiting", "absent_module", "json"]
    errors, known = probes.try_imports(names)
    assert errors == {
        "raising": "RuntimeError: first line",
        "crashing": "importing it ends the process (signal 6)",
        "talking": None,
        "leaving": "SystemExit: 3",
        "exiting": "importing it ends the process (status 7)",
        "absent_module": "ModuleNotFoundError: No module named 'absent_module'",
        "json": None,
    }
    assert known == {}


def test_an_import_that_does_not_end(packages, monkeypatch):
    packages(waiting="import time; time.sleep(600)", good="")
    monkeypatch.setattr(probes, "_ABOUT_S", 5.0)
    errors, _ = probes.try_imports(["waiting"])
    assert errors == {"waiting": "importing it does not end within 5 s"}


def test_programs_that_answer_nonsense(tmp_path, monkeypatch):
    for name in ("nvidia-smi", "cmake"):
        (tmp_path / name).write_text("#!/bin/sh\necho nonsense\nexit 9\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert probes.nvidia_gpus() == []
    assert probes.cmake_version() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100'\necho 'NVIDIA T4'\n")
    (tmp_path / "cmake").write_text("#!/bin/sh\necho 'cmake version 4.1.0-rc2'\n")
    assert probes.nvidia_gpus() == ["NVIDIA H100", "NVIDIA T4"]
    assert probes.cmake_version() == "4.1.0"


def test_a_real_answer_with_a_broken_simulator(packages):
    """MuJoCo takes its process down, gymnasium cannot be imported, tyro and rich are not needed."""
    packages(
        mujoco="import os; os.abort()",
        gymnasium="raise AttributeError('module numpy has no attribute bool8')",
        tyro="raise ImportError('tyro is broken')",
        rich="raise ImportError('rich is broken')",
    )
    done = subprocess.run(
        [sys.executable, "-m", "asd_policy", "doctor", "--json"],
        env=os.environ | {"MUJOCO_GL": "vulkan"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    broken = {f["name"]: f["text"] for f in answer["findings"] if f["status"] == "broken"}
    assert {"gymnasium", "mujoco", "tyro", "rich"} <= broken.keys()
    assert "ends the process (signal 6)" in broken["mujoco"]
    assert "bool8" in broken["gymnasium"]
    assert answer["facts"]["imports"]["torch"] is None
    assert answer["facts"]["backends"] == {}


# --- the lists ------------------------------------------------------------------------------------


def test_the_modules_of_the_extra_are_listed_alike():
    assert set(probes.SIM.values()) - {"imageio_ffmpeg"} == EXTRAS["sim"]
    assert set(probes.SERVE.values()) == EXTRAS["serve"]


def test_the_distributions_are_those_of_the_extra():
    wanted = [r for r in importlib.metadata.requires("asd-policy") if "sim" in r.partition(";")[2]]
    names = {re.match(r"[\w-]+", requirement).group() for requirement in wanted}
    assert names == set(probes.SIM) - {"imageio-ffmpeg"} | {"numpy"}


def test_the_robomimic_releases_are_those_of_the_integration():
    pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")
    from asd_policy.integrations.robomimic.compat import KNOWN_VERSIONS

    assert doctor.ROBOMIMIC == KNOWN_VERSIONS
