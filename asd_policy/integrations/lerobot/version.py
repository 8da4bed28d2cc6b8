"""Which LeRobot is installed."""

from __future__ import annotations

import importlib.metadata
import re
import warnings

from asd_policy.errors import IntegrationError

FIRST, LAST = (0, 4), (0, 6)  # (major, minor): read and tested
_INSTALL = "pip install 'asd-policy[lerobot]' (best in an environment of its own)"


def check_version() -> tuple[int, ...]:
    """(major, minor, …) of the LeRobot that is installed; a newer one than is known may do, and a
    warning says so.

    Raises:
        ImportError: there is none, or an older one than is known.
    """
    try:
        found = importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        raise IntegrationError(f"LeRobot is not installed: {_INSTALL}") from None
    version = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if version[:2] < FIRST:
        raise IntegrationError(f"LeRobot 0.4 to 0.6 are known, and this is {found}: {_INSTALL}")
    if version[:2] > LAST:
        warnings.warn(
            f"LeRobot 0.4.4 and 0.6.1 were tested, and this is {found}: accelerate(check=True) "
            "tells whether its own loop and this package's agree",
            stacklevel=2,
        )
    return version
