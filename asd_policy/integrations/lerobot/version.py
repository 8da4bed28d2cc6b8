"""Which LeRobot is installed."""

from __future__ import annotations

import importlib.metadata
import re

from asd_policy.errors import IntegrationError

FIRST, LAST = (0, 4), (0, 6)  # (major, minor): read and tested
_INSTALL = "pip install 'asd-policy[lerobot]', in an environment of its own, brings one that is"


def check_version() -> tuple[int, ...]:
    """(major, minor, …) of the LeRobot that is installed.

    Raises:
        ImportError: there is none, or of a version that is not known.
    """
    try:
        found = importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        raise IntegrationError(f"LeRobot is not installed: {_INSTALL}") from None
    version = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if not FIRST <= version[:2] <= LAST:
        raise IntegrationError(f"LeRobot 0.4 to 0.6 are known, and this is {found}: {_INSTALL}")
    return version
