"""`asd-policy doctor`: what works here, what does not, and the command that fixes it.

It needs the core alone, and less where that is what is broken: it imports nothing that it looks at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from asd_policy.envs.opengl import BACKENDS
from asd_policy.envs.requirements import conflicts, release
from asd_policy.errors import wrong_python
from asd_policy.eval.commands.probes import CORE, NATIVE, SERVE, SIM, UNKNOWN, Facts, gather
from asd_policy.eval.runs.schemas import VERSION

# ok; note: works, with something to know; missing: optional, the rest works; broken.
Status = Literal["ok", "note", "missing", "broken"]
_COLOURS = {"ok": "32", "note": "36", "missing": "33", "broken": "31"}
_INSTALL = "pip install 'asd-policy[sim]'"
ROBOMIMIC = ("0.3", "0.5")
OPENVINO = (2025, 0)
_OPENGL = "apt-get install libosmesa6      # or, with a GPU driver: apt-get install libegl1"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the answer; `mend` is the command that fixes it."""

    name: str
    status: Status
    text: str
    mend: str | None = None


def main_doctor(words: Sequence[str]) -> int:
    """Look, print, and return the exit status: 0 all well, 1 something is broken."""
    parser = argparse.ArgumentParser(
        prog="asd-policy doctor",
        description="Say what works here, what does not, and the command that fixes it. "
        "Exit status 0: nothing is broken (an optional part may be missing); 1: something is.",
    )
    parser.add_argument("--json", action="store_true", help="print facts and findings as JSON")
    options = parser.parse_args(words)
    facts = gather()
    findings = diagnose(facts)
    broken = any(finding.status == "broken" for finding in findings)
    if options.json:
        print(json.dumps(as_json(facts, findings, not broken), indent=2))
    else:
        _show(findings)
    return int(broken)


def diagnose(facts: Facts) -> list[Finding]:
    """What the facts mean: a pure function, and of any facts."""
    return [finding for check in CHECKS for finding in check(facts)]


def as_json(facts: Facts, findings: Sequence[Finding], well: bool) -> Facts:
    """What --json prints; its form is `asd_policy.eval.runs.studies.Doctor`."""
    return {
        "schema_version": VERSION["doctor"],
        "well": well,
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "facts": facts,
    }


def _show(findings: Sequence[Finding]) -> None:
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for finding in findings:
        status = f"{finding.status:<8}"
        if coloured:
            status = f"\x1b[{_COLOURS[finding.status]}m{status}\x1b[0m"
        print(f"{status}{finding.name:<19}{finding.text}")
        if finding.mend:
            print(f"{'':<8}{'':<19}→ {finding.mend}")
    broken = sum(finding.status == "broken" for finding in findings)
    print()
    print(f"{broken} broken" if broken else "Nothing is broken.")


# --- checks: facts to findings ------------------------------------------------------------------


def _itself(facts: Facts) -> Iterator[Finding]:
    commit = f", commit {facts['git_commit']}" if facts["git_commit"] else ""
    version = facts["versions"]["asd-policy"]
    text = f"{version or 'not installed: run from a checkout'}{commit}"
    yield Finding("asd-policy", "ok", text)
    yield Finding("Python", "ok", f"{facts['python']}, {facts['platform']}")
    for name, error in facts["failed"].items():
        yield Finding(name, "broken", f"could not be looked at: {error}")


def _core(facts: Facts) -> Iterator[Finding]:
    for name, module in CORE.items():
        yield _package(facts, name, module, needed=True)
    torch = facts["versions"]["torch"]
    if torch is not None and () < release(torch) < (2, 4):
        yield Finding(
            "torch", "broken", f"needs 2.4 or later, found {torch}", _upgrade("torch>=2.4")
        )


def _package(facts: Facts, name: str, module: str, needed: bool) -> Finding:
    version, error = facts["versions"][name], facts["imports"].get(module)
    if version is None:
        status: Status = "broken" if needed else "missing"
        return Finding(name, status, "not installed", f"pip install {name}")
    if error is not None:
        exactly = "" if version == UNKNOWN else f"=={version.partition('+')[0]}"
        mend = f"pip install --force-reinstall {name}{exactly}"
        return Finding(name, "broken", f"{version}, cannot be imported: {error}", mend)
    return Finding(name, "ok", version)


def _gpu(facts: Facts) -> Iterator[Finding]:
    torch, there = facts["known"].get("torch"), facts["nvidia"] or []
    if torch is None:  # said already
        return
    if torch["gpus"]:
        yield Finding("GPU", "ok", f"{', '.join(torch['gpus'])} (CUDA {torch['cuda']})")
    elif there and torch["cuda"] is None:
        text = f"{', '.join(there)} is here, and this torch was built without CUDA"
        yield Finding("GPU", "broken", text, "pip install --force-reinstall torch")
    elif there:
        text = f"{', '.join(there)} is here, and torch for CUDA {torch['cuda']} cannot use it"
        mend = "nvidia-smi      # the CUDA version it names must not be lower: update the driver"
        yield Finding("GPU", "broken", text, mend)
    else:
        yield Finding("GPU", "ok", "none: policies run on the CPU")


def _kernels(facts: Facts) -> Iterator[Finding]:
    build = "apt-get install gcc python3-dev && pip install --force-reinstall --no-deps asd-policy"
    error = facts["imports"].get(NATIVE)
    if not facts["native_built"]:
        text = "not built (there was no C compiler): PyTorch does the same, more slowly"
        yield Finding("CPU kernels", "missing", text, build)
    elif error is None:
        yield Finding("CPU kernels", "ok", "compiled")
    elif facts["imports"].get("torch") is None and facts["versions"]["torch"] is not None:
        yield Finding("CPU kernels", "broken", f"cannot be loaded: {error}", build)
    triton, gpus = facts["versions"]["triton"], (facts["known"].get("torch") or {}).get("gpus")
    if triton is not None:
        yield _package(facts, "triton", "triton", needed=False)
    elif gpus:
        text = "not installed: on this GPU, rounds run as PyTorch operations, more slowly"
        yield Finding("triton", "missing", text, "pip install triton")
    else:
        yield Finding("triton", "ok", "not installed, and not needed without a GPU")


def _openvino(facts: Facts) -> Iterator[Finding]:
    found, gpus = facts["versions"]["openvino"], (facts["known"].get("torch") or {}).get("gpus")
    install = "pip install 'asd-policy[openvino]'"
    if found is None and gpus:
        yield Finding("openvino", "ok", "not installed, and not needed with a GPU")
    elif found is None:
        text = "not installed (optional): with it, a CPU takes little more than half the time"
        yield Finding("openvino", "missing", text, install)
    elif () < release(found) < OPENVINO:
        oldest = ".".join(map(str, OPENVINO))
        yield Finding("openvino", "broken", f"needs {oldest} or later, found {found}", install)
    else:
        yield _package(facts, "openvino", "openvino", needed=False)


def _simulation(facts: Facts) -> Iterator[Finding]:
    findings = [_package(facts, name, module, needed=False) for name, module in SIM.items()]
    missing = [finding.name for finding in findings if finding.status == "missing"]
    other_python = {"robosuite"} <= {*missing} and wrong_python(facts["python"]) is not None
    yield from (finding for finding in findings if finding.status == "broken")
    if missing:
        what = "nothing of it" if len(missing) == len(SIM) else f"without {', '.join(missing)}"
        text = f"{what} is installed" if len(missing) == len(SIM) else f"installed {what}"
        without = "no eval, demos" if other_python else "no eval, demos, train"
        why = f"; it is for Python 3.10 to 3.12, this is {facts['python']}" if other_python else ""
        yield Finding("extra: sim", "missing", f"{text}: {without}{why}", _install(facts))
    elif all(finding.status == "ok" for finding in findings):
        told = ("robosuite", "mujoco", "gymnasium", "matplotlib")
        versions = ", ".join(f"{name} {facts['versions'][name]}" for name in told)
        yield Finding("extra: sim", "ok", f"complete: {versions}, …")


def _conflicts(facts: Facts) -> Iterator[Finding]:
    numpy = facts["versions"]["numpy"]
    for conflict in conflicts(facts["versions"]):
        yield Finding(conflict.package, "broken", conflict.text, _upgrade(conflict.requirement))
    if facts["mink"] is not None and numpy is not None and release(numpy) >= (2,):
        text = f"robosuite's mink {facts['mink']} needs NumPy below 2, found {numpy}"
        yield Finding("numpy", "broken", text, _upgrade("numpy>=1.26,<2"))


def _robomimic(facts: Facts) -> Iterator[Finding]:
    version, probe = facts["versions"]["robomimic"], facts["versions"]["egl_probe"]
    old = facts["cmake"] is None or release(facts["cmake"]) < (4,)
    install = "pip install 'asd-policy[sim,robomimic]'"
    if probe is None and not old:
        install = f"pip install 'cmake<4' && {install}"
    if version is None:
        text = "not installed (optional)"
        if probe is None and not old:
            text += f"; its egl_probe cannot be built with CMake {facts['cmake']}"
        yield Finding("robomimic", "missing", text, install)
        return
    if ".".join(version.split(".")[:2]) not in ROBOMIMIC:
        text = f"known are {', '.join(f'{v}.x' for v in ROBOMIMIC)}; found {version}"
        if release(version)[:2] == (0, 4):
            text = f"{version} has no diffusion policy: 0.3.0 gets one here, 0.5 (source) has one"
        yield Finding("robomimic", "broken", text, "pip install robomimic==0.3.0 'cmake<4'")
    elif probe is None and release(version) < (0, 4):
        cmake = f" (CMake {facts['cmake']} cannot build it)" * (not old)
        text = f"{version} needs egl_probe, which is not installed{cmake}"
        yield Finding("robomimic", "broken", text, "pip install 'cmake<4' && pip install egl_probe")
    else:
        yield _package(facts, "robomimic", "robomimic", needed=False)


def _serving(facts: Facts) -> Iterator[Finding]:
    findings = [_package(facts, name, module, needed=False) for name, module in SERVE.items()]
    missing = [finding.name for finding in findings if finding.status == "missing"]
    yield from (finding for finding in findings if finding.status == "broken")
    websockets = facts["versions"]["websockets"]
    if missing:
        text = f"{', '.join(missing)} not installed (optional): no serve"
        yield Finding("extra: serve", "missing", text, "pip install 'asd-policy[serve]'")
    elif () < release(websockets) < (15,):
        text = f"needs websockets 15 or later, found {websockets}"
        yield Finding("extra: serve", "broken", text, _upgrade("websockets>=15"))
    elif all(finding.status == "ok" for finding in findings):
        versions = ", ".join(f"{name} {facts['versions'][name]}" for name in SERVE)
        yield Finding("extra: serve", "ok", f"complete: {versions}")


def _rendering(facts: Facts) -> Iterator[Finding]:
    rendering, asked = facts["backends"], facts["mujoco_gl"]
    if not rendering:
        text = "not tried: it needs MuJoCo (only pictures and films need it)"
        yield Finding("rendering", "missing", text, _install(facts))
        return
    good = [name for name, works in rendering.items() if works]
    tried = ", ".join(f"{name} {'renders' if ok else 'fails'}" for name, ok in rendering.items())
    name = (asked or "").strip().lower()
    if name and (name not in BACKENDS or not rendering.get(name)):
        why = "none of " + ", ".join(BACKENDS) if name not in BACKENDS else "does not render here"
        mend = f"export MUJOCO_GL={good[0]}" if good else f"unset MUJOCO_GL; {_OPENGL}"
        yield Finding("rendering", "broken", f"MUJOCO_GL={asked}: {why} ({tried})", mend)
    elif good:
        chosen = f"MUJOCO_GL={name}" if name else f"{good[0]} is used"
        yield Finding("rendering", "ok", f"{tried}; {chosen}")
    else:
        text = f"no OpenGL ({tried}); only pictures and films need it"
        yield Finding("rendering", "missing", text, _OPENGL)
    if facts["triton_after_opengl"] is False:
        text = (
            "software OpenGL and Triton each bring an LLVM, and Triton loaded second ends the "
            "process; this package loads it first, and a program of yours that renders must too"
        )
        yield Finding(
            "Triton and OpenGL", "note", text, "import triton      # in Python, at the top"
        )


def _install(facts: Facts) -> str:
    if wrong_python(facts["python"]) is None:
        return _INSTALL
    return f"python3.12 -m venv sim && sim/bin/{_INSTALL}"


def _upgrade(requirement: str) -> str:
    return f"pip install '{requirement}'"


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _itself, _core, _gpu, _kernels, _openvino, _simulation, _conflicts, _rendering, _robomimic,
    _serving,
)  # fmt: skip
