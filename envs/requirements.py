"""Versions that the simulator needs, as the extra `sim` asks for them (a test holds the two equal).

Python's own library is all that this needs: `asd-policy doctor` tells it of any installation.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from asd_policy.errors import IntegrationError, MissingExtraError, wrong_python

Versions = Mapping[str, str | None]


class Conflict(NamedTuple):
    """A package of a version that does not go: `text` says so, `requirement` is what pip takes."""

    package: str
    text: str
    requirement: str


def conflicts(versions: Versions) -> Iterator[Conflict]:
    """Of these versions, those with which the simulator does not run (None: not installed)."""
    gymnasium, robosuite, mujoco = (versions.get(name) for name in SIMULATOR)
    if gymnasium is not None and () < release(gymnasium) < (1, 1):
        yield Conflict("gymnasium", f"needs 1.1 or later, found {gymnasium}", "gymnasium>=1.1")
    if robosuite is not None and release(robosuite) not in ((), (1, 5, 2)):
        text = f"the tasks are made for 1.5.2, found {robosuite}"
        yield Conflict("robosuite", text, "robosuite==1.5.2")
    if mujoco is not None and () < release(mujoco) < (3, 3):
        yield Conflict("mujoco", f"needs 3.3 or later, found {mujoco}", "mujoco>=3.3,<3.10")
    if robosuite is not None and mujoco is not None and release(mujoco) >= (3, 10):
        text = f"robosuite 1.5.2 breaks from MuJoCo 3.10 on, found {mujoco}"
        yield Conflict("mujoco", text, "mujoco>=3.3,<3.10")


SIMULATOR = ("gymnasium", "robosuite", "mujoco")


def check_simulator() -> None:
    """Raise unless the simulator can be had here, as far as versions tell.

    Raises:
        MissingExtraError: robosuite is not installed.
        IntegrationError: a package is there in another version.
    """
    if importlib.util.find_spec("robosuite") is None:
        install = "robosuite is not installed: pip install 'asd-policy[sim]'"
        raise MissingExtraError(
            f"the simulator needs robosuite; {wrong_python(platform.python_version()) or install}"
        )
    for conflict in conflicts({name: installed_version(name) for name in SIMULATOR}):
        raise IntegrationError(
            f"the simulator cannot be used with the {conflict.package} that is installed "
            f"({conflict.text}): pip install '{conflict.requirement}'"
        )


def installed_version(package: str) -> str | None:
    """Of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """3.10.1rc2+cpu → (3, 10, 1)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()
