"""What the figures of a run depend on besides its settings: versions, processor, threads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import asd_policy
from asd_policy.envs.requirements import installed_version

_PACKAGES = (
    "asd-policy",
    "torch",
    "numpy",
    "mujoco",
    "robosuite",
    "gymnasium",
    "safetensors",
    "scipy",
)


def describe_machine(resolved: dict[str, Any]) -> dict[str, Any]:
    """The content of env.json, for a policy with these resolved settings."""
    from asd_policy.engine.timing import cpu_model  # late: this module is also for the command line

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: installed_version(name) for name in _PACKAGES},
        "git_commit": git_commit(Path(asd_policy.__file__).parent),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": _usable_cpus(),
        "threads": resolved["threads"],
        "gpu": resolved["gpu"],
        "mujoco_gl": os.environ.get("MUJOCO_GL"),
    }


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout that holds `folder` ("-dirty" with uncommitted changes); None
    where it is not in this package's checkout, such as in site-packages."""
    if not (folder.parent / ".git").exists():
        return None
    command = ["git", "-C", str(folder.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def drawing_code(package: Path | None = None, evaluation: Path | None = None) -> str:
    """SHA-256 over all code that decides what chunks a verification draws: samplers, networks and
    what loads them, and the evaluation with its own samplers, controls and oracle. A commit would
    not do: most leave all that as it is, and what is changed since ("-dirty") may be anything.

    Args:
        package: its folder; None is this one's. evaluation: the folder of its `eval`, which is
            not inside it in a checkout; None is this one's.
    """
    package = package or Path(asd_policy.__file__).parent
    evaluation = evaluation or Path(__file__).parents[1]
    named = {f"eval/{file.relative_to(evaluation)}": file for file in evaluation.rglob("*.py")}
    named |= {file.name: file for file in package.glob("*.py")}
    for part in ("data", "engine", "integrations", "networks", "policy", "samplers"):
        for kind in ("*.py", "*.so"):
            found = (package / part).rglob(kind)
            named |= {str(file.relative_to(package)): file for file in found}
    digest = hashlib.sha256()
    for name in sorted(named):
        content = hashlib.sha256(named[name].read_bytes()).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def processor_wait_s() -> float | None:
    """Seconds that this process's threads, together, have been ready to run while other work had
    the processor. Direct, where the load average lags by a minute. None where the system keeps no
    such count (it is Linux's /proc/<pid>/task/<tid>/schedstat)."""
    if not Path("/proc/self/schedstat").exists():
        return None
    total_ns = 0
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            total_ns += int((thread / "schedstat").read_text().split()[1])
    return 1e-9 * total_ns


def _usable_cpus() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
