"""Consoles that print text as it is: a folder named `runs[/b]x` or `:smile:` stays that."""

from __future__ import annotations

import os
import sys

from rich.console import Console

_WIDE = 110  # columns where the output is no terminal and COLUMNS says none: no table is squeezed


def plain_console(stderr: bool = False) -> Console:
    """A console without rich's markup, emoji codes and highlighting, which would read a user's text
    as commands.

    Args:
        stderr: print there, and not on stdout.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if stream.isatty() or os.environ.get("COLUMNS") else _WIDE,
    )


def say(message: str) -> None:
    """One message on stderr, as it is."""
    plain_console(stderr=True).print(message, soft_wrap=True)
