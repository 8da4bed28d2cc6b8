"""How a study runs as a script: `python -m asd_policy.eval.studies.NAME …`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from asd_policy.console import say
from asd_policy.errors import AsdPolicyError, say_to_user
from asd_policy.terminal import room_for_help


def run_script(
    study: str,
    work: Callable[..., Any] | Mapping[str, Callable[..., Any]] | Sequence[str],
    about: str | None,
    words: Sequence[str] | None = None,
) -> int:
    """Do what the words ask for; returns the exit status: 0 done, 2 a mistake of the user's, 130
    stopped by Ctrl-C.

    Args:
        study: its module, below ``asd_policy.eval.studies``. work: one function; several by the
            names of commands; or these names alone, of modules of the study and of the function
            in each: what they need and what is not installed is then said in a sentence, too.
        about: of the help. words: of the command line; None: this one's.
    """
    module = f"asd_policy.eval.studies.{study}"
    room_for_help()
    options: dict[str, Any] = {
        "args": words, "prog": f"python -m {module}", "description": about,
        "config": (tyro.conf.FlagCreatePairsOff,),
    }  # fmt: skip
    try:
        if callable(work):
            tyro.cli(work, **options)
            return 0
        commands = {
            name: work[name]
            if isinstance(work, Mapping)
            else getattr(importlib.import_module(f"{module}.{name}"), name)
            for name in work
        }
        tyro.extras.subcommand_cli_from_dict(commands, **options)
    except (AsdPolicyError, ModuleNotFoundError) as error:
        status = say_to_user(error, f"`python -m {module}`")
        if not {"-h", "--help"} & {*(sys.argv[1:] if words is None else words)}:
            return status
        print(f"\n{about}")  # options can be told only where there is what they are of
    except KeyboardInterrupt:
        say("Stopped; the same command goes on.")
        return 130
    return 0
