"""How the process of a command ends."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

# Libraries whose native code may take a process down while it ends: software OpenGL (Mesa, "double
# free", one film in eighty that was interrupted soon after its first picture), and gRPC (1.85, one
# of eleven of LeRobot's policy servers that Ctrl-C ended).
_ABORTING = {"OpenGL", "grpc"}


def process_of(main: Callable[[], int]) -> NoReturn:
    """Run ``main``, and end the process with the status that it returns."""
    status: list[int] = []
    atexit.register(_leave, status)  # the first to be registered is the last to run
    status.append(main())
    sys.exit(status[0])


def _leave(status: Sequence[int]) -> None:
    """End here, once a command has ended and one of ``_ABORTING`` was loaded: everything has been
    done and said."""
    if not status or not _ABORTING & set(sys.modules):
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # gone, closed, or there was none
            stream.flush()
    os._exit(status[0])
