"""The command line: `asd-policy COMMAND`, of those in `COMMANDS`.

Thin and lazy: a command is a function, imported when it is asked for, and its options are the
function's parameters. Exit status 0 done, 2 a mistake of the user's (said in one message on
stderr, after "error:"), 130 interrupted, 143 terminated; a fault of this package keeps its
traceback. replay, verify and compare answer by their status: 0 yes, 1 no, 2 could not tell.
"""

from __future__ import annotations

import codecs
import importlib
import importlib.metadata
import os
import re
import select
import signal
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from asd_policy.errors import AsdPolicyError, DatasetWarning, Terminated, did_you_mean, for_user
from asd_policy.leaving import process_of
from asd_policy.terminal import room_for_help
from asd_policy.threads import wait_passively

# name -> (module:function, one line)
COMMANDS = {
    "eval": (
        "asd_policy.eval.commands.evaluate:main_eval",
        "Roll a policy out and compare samplers: success, latency, cost.",
    ),
    "tasks": (
        "asd_policy.eval.studies.tasks.command:main_tasks",
        "Compare the samplers on every task that has a shipped policy, in one table.",
    ),
    "rates": (
        "asd_policy.eval.commands.evaluate:main_rates",
        "Success against control rate, the world going on while the policy thinks.",
    ),
    "report": (
        "asd_policy.eval.commands.evaluate:main_report",
        "Write report.html of an evaluation that is there already.",
    ),
    "replay": (
        "asd_policy.eval.commands.evaluate:main_replay",
        "Sample the chunks of a recorded evaluation again: are they bitwise the same?",
    ),
    "demos": (
        "asd_policy.training.collect:main_collect",
        "Make demonstrations with a scripted expert.",
    ),
    "train": (
        "asd_policy.training.main:main_train",
        "Train a diffusion policy on demonstrations.",
    ),
    "bench": (
        "asd_policy.eval.commands.bench:main_bench",
        "Measure what a chunk costs, by sampler, engine, batch, window, network and K.",
    ),
    "verify": (
        "asd_policy.eval.commands.verify:main_verify",
        "Test whether a sampler draws from the distribution of sequential DDPM.",
    ),
    "serve": (
        "asd_policy.serving.command:main_serve",
        "Serve a policy to robots elsewhere, by openpi's protocol.",
    ),
    "compare": (
        "asd_policy.eval.commands.compare:main_compare",
        "Compare two evaluations, or two samplers of one, on the same seeds.",
    ),
    "convert": (
        "asd_policy.integrations.robomimic_convert:main_convert",
        "Turn a policy of robomimic or diffusion_policy into a checkpoint folder.",
    ),
    "export": (
        "asd_policy.integrations.robomimic_convert:main_export",
        "Turn a checkpoint folder into a file that robomimic loads.",
    ),
    "doctor": (
        "asd_policy.eval.commands.doctor:main_doctor",
        "Say what works here, what does not, and the command that fixes it.",
    ),
}
# Functions of the words: doctor must run where tyro is missing, and the others take from the folder
# of a run that is continued what the words leave out.
_PARSE_THEMSELVES = {"doctor", "eval", "tasks", "rates"}
_SPLIT = {  # commands of which torchrun may start several ranks, with what uses them
    "eval": "--engine distributed",
    "verify": "--engine distributed",
    "bench": "--engines distributed",
}
_SIMULATE = {"eval", "tasks", "rates", "demos"}
_MAY_SIMULATE = {*_SIMULATE, "verify"}  # which looks itself, where it wants episodes
# Those whose files keep the words, in JSON, where everything is UTF-8.
_KEEP_WORDS = {"eval", "tasks", "rates", "report", "replay", "bench", "verify", "compare"}
# Of what is printed, where the encoding of the output has no such character (and no NFKD form of
# it either, as "..." is of "…").
_PLAIN = {"–": "-", "—": "-", "−": "-", "→": "->", "×": "x", "≤": "<=", "≥": ">=", "·": "-"}
_TRACEBACK = "ASD_POLICY_TRACEBACK"  # set it to see where a user error was raised


def program() -> NoReturn:
    """`asd-policy` as a process of its own, which ends with the command's status."""
    process_of(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        return _main(argv)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 128 + signal.SIGPIPE


def _reader_has_left() -> bool:
    """Whether nobody reads what is printed, as `| head` does not for long. If so, the rest goes
    nowhere, and Python has nothing to complain of when it ends."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    left = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if left:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return left


def _main(argv: Sequence[str] | None) -> int:
    wait_passively()
    room_for_help()
    _print_in_any_encoding()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), flush=True)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"asd-policy {importlib.metadata.version('asd-policy')}")
        return 0
    if words[0] not in COMMANDS:
        near = did_you_mean(words[0], COMMANDS)
        return _say(f"expected a command, one of {', '.join(COMMANDS)}; got {words[0]!r}{near}")
    try:
        with _warnings_on_one_line(), _ended_by_sigterm():
            return (_run_on_ranks if _of_torchrun() else _run)(words[0], words[1:])
    except KeyboardInterrupt as end:
        by_term = isinstance(end, Terminated)
        print("terminated" if by_term else "interrupted", file=sys.stderr)
        return 143 if by_term else 130
    except (AsdPolicyError, ModuleNotFoundError) as error:
        message = for_user(error, f"`asd-policy {words[0]}`")
        if os.environ.get(_TRACEBACK) or message is None:
            raise
        return _say(message)


def _of_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _run_on_ranks(command: str, words: Sequence[str]) -> int:
    """Rank 0 runs the command; the others evaluate the rows that it gives them, and say nothing."""
    ranks, first = os.environ["WORLD_SIZE"], os.environ["RANK"] == "0"
    if command not in _SPLIT or "distributed" not in " ".join(words):
        if ranks == "1":
            return _run(command, words)
        if not first:
            return 0  # a failure here would have torchrun end rank 0 before it has said why
        given = f"give it {_SPLIT[command]}, or" if command in _SPLIT else "please"
        return _say(
            f"torchrun has started {ranks} ranks, which only the distributed engine of "
            f"{', '.join(_SPLIT)} uses; {given} start `asd-policy {command}` without torchrun"
        )
    from asd_policy.eval.commands.ranks import on_ranks

    return on_ranks(lambda: _run(command, words))


def _run(command: str, words: Sequence[str]) -> int:
    odd = [word for word in words if re.search("[\ud800-\udfff]", word)]  # bytes that are no text
    if odd and command in _KEEP_WORDS:
        return _say(f"expected names in UTF-8, got {os.fsencode(odd[0])!r}; rename what it names")
    if command not in _PARSE_THEMSELVES:
        import tyro
    helps = {"-h", "--help"} & set(words)
    if command in _MAY_SIMULATE and os.environ.get("MUJOCO_GL") and not helps:
        from asd_policy.envs.opengl import before_mujoco

        before_mujoco()  # what it says may be wrong: said at once, not after seconds of loading
    module, _, name = COMMANDS[command][0].partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    if command in _SIMULATE and not helps:
        _check_simulator(words)
    if command in _PARSE_THEMSELVES:
        return int(function(words) or 0)
    function.__doc__ = _flowing(function.__doc__ or "")
    # tyro parses, then calls; its own complaints leave by SystemExit(2), with the usage.
    status = tyro.cli(
        function, args=words, prog=f"asd-policy {command}", config=(tyro.conf.FlagCreatePairsOff,)
    )
    return status if isinstance(status, int) else 0


def _check_simulator(words: Sequence[str]) -> None:
    """As ``check_simulator``; where it is missing, a checkpoint that could not be simulated with it
    either is refused in its place (LeRobot's: theirs is an environment without it)."""
    from asd_policy.envs.requirements import check_simulator

    try:
        check_simulator()
    except AsdPolicyError:
        named = re.search(r"--checkpoint[= \0]([^\0]+)", "\0".join(words))
        if named is not None:
            from asd_policy.eval.subject import task_of

            task_of(Path(named[1]))
        raise


def _flowing(docstring: str) -> str:
    """Each argument's description on one line: help keeps the line breaks of the source."""
    return re.sub(r"\n {12}(?=\S)", " ", docstring)


def _print_in_any_encoding() -> None:
    """What the terminal's or the file's encoding cannot hold (cp1252, ISO-8859-1, ASCII) is printed
    as something near it: no output ends a run."""
    codecs.register_error("asd_policy.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a caller has put something else there
            stream.reconfigure(errors="asd_policy.plain")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`, so that it ends a command as Ctrl-C does. (`serve` has
    a handler of its own.)"""

    def end(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # where none can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Those about demonstrations that may be incomplete: for the user, without the source."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, *rest: Any, **more: Any) -> None:
            if isinstance(message, DatasetWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                shown(message, *rest, **more)

        warnings.showwarning = show
        yield


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    near = (_PLAIN.get(c) or unicodedata.normalize("NFKD", c) for c in text)
    return "".join(n if n.isascii() else "?" for n in near), error.end


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: asd-policy {" + ",".join(COMMANDS) + "} [options]",
            "",
            "Diffusion policies for robots, sampled exactly and fast by autospeculative decoding.",
            "",
            *lines,
            "",
            "asd-policy COMMAND --help lists a command's options; --version says the version.",
        ]
    )


def _say(message: str) -> int:
    """One error on stderr, red on a terminal. Exit status 2."""
    red, plain = ("\x1b[31m", "\x1b[0m") if _colour() else ("", "")
    print(f"{red}error:{plain} {message}", file=sys.stderr)
    return 2


def _colour() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


if __name__ == "__main__":
    sys.exit(main())
