"""`asd-policy tasks`: evaluations of every task, and the table of them all.

A table is a set of evaluation runs under one folder, each resumable and held by one process:

    <out>/<task>/success-<i>of<n>/   every sampler on the seeds of this shard, many robots at once
    <out>/<task>/latency/            every sampler on the first few seeds, one robot (shard 0 only)
    <out>/options-<i>of<n>.json      what was asked of a shard
    <out>/tasks.json, tasks.png      computed from the runs, whatever there is of them
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from asd_policy.checkpoints import shipped, shipped_names
from asd_policy.console import plain_console, say
from asd_policy.envs.tasks import TASKS, get_task
from asd_policy.errors import InputError, OutputExistsError
from asd_policy.eval.options import HELD_OUT_SEED, THREADS_HELP, EvalOptions, arg, command_line
from asd_policy.eval.resume import (
    evaluations_continued_with,
    keep_options,
    kept_form,
    parse,
    restored,
    store_of,
)
from asd_policy.eval.runs.files import reserved
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.studies.tasks import REFERENCE

CONTESTANTS = (REFERENCE, "asd", "asd-paper", "asd-frozen", "paradigms", "ddim-10", "ddim-16")

_TASKS_HELP = "Tasks of the table; none named: all that have a shipped policy."
_SAMPLERS_HELP = (
    "Lines of the table; ddpm, which the others are compared with, is one of them. Names are those "
    "of `asd-policy eval`."
)
_SHARD_HELP = (
    "Do the i-th of n equal parts of the seeds (i from 0), here or on another machine, at the same "
    "time as others or not. --merge, or one --out, puts them together."
)
_MERGE_HELP = "Run nothing; make the table of the runs in these folders, into --out."
_RESUME_HELP = (
    "Refuse where --out holds no table. (One that is there goes on without this too; options that "
    "are left out are its own, --episodes, --latency-episodes and --tasks may grow.)"
)
_OF_THE_TABLE = ("episodes", "window", "precision", "samplers")  # the same in all of its shards


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """What the table is made of. A run that was stopped goes on where it was."""

    tasks: Annotated[tuple[str, ...], arg("NAME [NAME ...]", _TASKS_HELP)] = ()
    samplers: Annotated[tuple[str, ...], arg("NAME [NAME ...]", _SAMPLERS_HELP)] = CONTESTANTS
    episodes: int = 200
    """Episodes of each sampler on each task, on the same held-out seeds."""
    num_envs: int = 8
    """Robots driven at once where success is counted."""
    window: int = 32
    """Steps that the ASD forms and ParaDiGMS put into one network call."""
    latency_episodes: int = 4
    """Episodes of each sampler with one robot, for the latency that it feels (shard 0)."""
    shard: Annotated[str, arg("I/N", _SHARD_HELP)] = "0/1"
    merge: Annotated[tuple[Path, ...], arg("DIR [DIR ...]", _MERGE_HELP)] = ()
    out: Path = Path("outputs/tasks")
    """Folder of the runs and of the table."""
    device: str = "auto"
    """Where the policies run: auto, cpu, cuda, cuda:1."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Number format of the networks (tf32 on a GPU only)."""
    threads: Annotated[int | None, arg("INT", THREADS_HELP)] = None
    resume: Annotated[bool, arg(None, _RESUME_HELP)] = False


def main_tasks(words: Sequence[str]) -> None:
    """Compare the samplers on every task that has a shipped policy, and make the table.

    Success is counted on the same held-out seeds for every sampler, with many robots in one batch;
    latency is measured apart, with one. The table (tasks.json, tasks.png) is computed from the
    episodes that were kept, and made again whenever a shard ends.
    """
    options = parse("tasks", words, TableOptions, main_tasks.__doc__, find_table)
    make_table(options)


def find_table(options: TableOptions) -> TableOptions | None:
    """The options of the shard in --out that is continued, or of the other shards in it, as far as
    all are alike; None where there is none.

    Raises:
        ValueError: --resume and no table, or several shards and none named.
    """
    there = _shards(options.out)
    if options.resume and not there:
        raise InputError(
            f"--resume: expected a table of `asd-policy tasks` in {options.out}; found none"
        )
    if options.merge:
        _check_merged(options)
    if options.merge or not there:
        return None
    if options.shard not in there and options.shard != TableOptions.shard:
        one = next(iter(there.values()))
        alike = {name: one[name] for name in (*_OF_THE_TABLE, "tasks") if name in one}
        return restored(TableOptions, alike | {"shard": options.shard}, options.out)
    if options.shard not in there and len(there) > 1:
        raise InputError(f"--shard: {options.out} holds {', '.join(there)}; name one of them")
    shard = options.shard if options.shard in there else next(iter(there))
    return restored(TableOptions, there[shard] | {"shard": shard}, options.out)


def _check_merged(options: TableOptions) -> None:
    """What is merged was decided when it was run."""
    given = {f.name for f in dataclasses.fields(options)} - {"merge", "out"}
    changed = [name for name in given if getattr(options, name) != getattr(TableOptions, name)]
    if changed:
        listed = ", ".join("--" + name.replace("_", "-") for name in sorted(changed))
        raise InputError(f"--merge makes the table of runs that are there; {listed} changes none")


def _shards(out: Path) -> dict[str, dict[str, Any]]:
    """Shard → its options."""
    found = {}
    for file in sorted(out.glob("options-*of*.json")):
        content = store_of("tasks", file.name).read(out)
        if content is not None:
            found[file.stem.removeprefix("options-").replace("of", "/")] = content["options"]
    return found


def _check_shards(options: TableOptions) -> None:
    """Raise OutputExistsError where other shards in --out are of another table."""
    now = kept_form(options)
    _, parts = _shard(options)
    for shard, there in _shards(options.out).items():
        if int(shard.split("/")[1]) != parts:
            raise OutputExistsError(
                f"{options.out} holds shard {shard} of a table, and {options.shard} is of another "
                "number of parts; choose another --out"
            )
        if shard != options.shard:
            check_same(options.out, there, {name: now[name] for name in _OF_THE_TABLE})


def make_table(
    options: TableOptions,
    run: Callable[[EvalOptions], object] | None = None,
    console: Console | None = None,
) -> None:
    """Do the runs of `options`, unless it only merges, and write and print the table.

    Args:
        run: does one evaluation (default: `asd_policy.eval.studies.evaluate.evaluate`).

    Raises:
        ValueError: an option out of range, or folders that do not belong together.
        OutputExistsError: the folder holds another table.
        KeyboardInterrupt: passed on, when the command that continues has been said.
        Others: as `evaluate`.
    """
    from asd_policy.eval.studies.evaluate import evaluate
    from asd_policy.eval.studies.tasks.compute import compute_table
    from asd_policy.eval.studies.tasks.tables import show_table

    runs = [] if options.merge else list(evaluations(options))
    with reserved(options.out):
        say(f"Output folder: {options.out}")
        if runs:
            _run(options, runs, run or functools.partial(evaluate, part=True))
        table = compute_table(options.merge or (options.out,))
        show_table(dict(table), options.out, console or plain_console())


def _run(
    options: TableOptions, runs: Sequence[EvalOptions], run: Callable[[EvalOptions], object]
) -> None:
    part, parts = _shard(options)
    _check_shards(options)
    file = f"options-{part}of{parts}.json"
    options = dataclasses.replace(options, tasks=_tasks(options), resume=True)
    may_grow = ("tasks", "latency_episodes", *(("episodes",) if parts == 1 else ()))
    beside = bool(_shards(options.out))
    keep_options(options.out, store_of("tasks", file, may_grow), "tasks", options, beside)
    with evaluations_continued_with(command_line(options, "tasks"), options.out / file):
        for evaluation in runs:
            run(evaluation)


def evaluations(options: TableOptions) -> Iterator[EvalOptions]:
    """The evaluations of a shard, in order.

    Raises:
        ValueError: an option out of range.
    """
    for name in ("episodes", "num_envs", "window", "latency_episodes"):
        if getattr(options, name) < 1:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} must be 1 or more, got {getattr(options, name)}")
    if REFERENCE not in options.samplers:
        raise InputError(
            f"--samplers: {REFERENCE} is one of them; got {', '.join(options.samplers)}"
        )
    part, parts = _shard(options)
    start, stop = (options.episodes * i // parts for i in (part, part + 1))
    for task in _tasks(options):
        common = EvalOptions(
            task=task,
            samplers=options.samplers,
            window=options.window,
            device=options.device,
            precision=options.precision,
            threads=options.threads,
            resume=True,
        )
        yield dataclasses.replace(
            common,
            seed=HELD_OUT_SEED + start,
            episodes=stop - start,
            num_envs=options.num_envs,
            out=options.out / task / f"success-{part}of{parts}",
        )
        if part == 0:
            yield dataclasses.replace(
                common, episodes=options.latency_episodes, out=options.out / task / "latency"
            )


def _shard(options: TableOptions) -> tuple[int, int]:
    part, _, parts = options.shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts) <= options.episodes):
        raise InputError(
            "--shard must be i/n with i from 0 to n-1 and n at most the number of episodes, such "
            f"as 0/2; got {options.shard}"
        )
    return int(part), int(parts)


def _tasks(options: TableOptions) -> tuple[str, ...]:
    tasks = tuple(dict.fromkeys(get_task(name).name for name in options.tasks))
    for name in tasks:
        shipped(name)
    return tasks or tuple(name for name in TASKS if name in shipped_names())
