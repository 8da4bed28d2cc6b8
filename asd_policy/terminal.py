"""What the terminal must be like for the libraries that write on it."""

from __future__ import annotations

import os
import shutil

_LEAST_COLUMNS = 20


def room_for_help() -> None:
    """tyro's help does not end where a terminal has fewer than six columns."""
    if shutil.get_terminal_size().columns < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(_LEAST_COLUMNS)
