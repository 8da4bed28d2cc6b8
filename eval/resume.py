"""Going on with a run: which one, and with the options that it was begun with.

The options of an evaluation are in its config.json. `rates` and `tasks`, which are made of
evaluations, keep theirs in a file of their own (`asd_policy.eval.runs.studies.Options`). What the
words of a command leave out comes from there; what they say otherwise is refused, by name
(`runs.store.Store`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import inspect
import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tyro

from asd_policy.console import say
from asd_policy.errors import InputError, OutputExistsError
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.runs.files import now, write_json
from asd_policy.eval.runs.folder import STORE, is_held
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.runs.store import Store

Json = dict[str, Any]
Options = TypeVar("Options", bound=EvalOptions)
AnyOptions = TypeVar("AnyOptions")
OPTIONS_FILE = "options.json"
# What names the run's place, or is spelled in another way.
_NOT_KEPT = (
    "out",
    "resume",
    "ray",
    "realtime",
    "control_rate",
    "execution",
    "merge",
    "shard",
)


# --- from words to options ----------------------------------------------------------------------


def parse(
    command: str,
    words: Sequence[str],
    kind: type[AnyOptions],
    text: str | None,
    find: Callable[[AnyOptions], AnyOptions | None],
) -> AnyOptions:
    """The options that a command's words ask for.

    Args:
        text: what the command's help says of it.
        find: of the options as they would be in a new run: those of the run that is continued, or
            None. What the words leave out is as in them.
    """
    read: Callable[..., AnyOptions] = functools.partial(
        tyro.cli,
        kind,
        args=words,
        prog=f"asd-policy {command}",
        description=inspect.cleandoc(text or ""),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    asked = read()
    kept = find(asked)
    if kept is None:
        return asked
    # A flag can be given, and cannot be taken back: as a default, "yes" would change its spelling.
    fields = dataclasses.fields(kept)  # type: ignore[arg-type]
    flags = [field.name for field in fields if isinstance(getattr(kept, field.name), bool)]
    given = read(default=dataclasses.replace(kept, **dict.fromkeys(flags, False)))  # type: ignore[type-var]
    both = {name: getattr(kept, name) or getattr(given, name) for name in flags}
    return dataclasses.replace(given, **both)  # type: ignore[type-var]


def find_evaluation(options: Options) -> Options | None:
    """The options of the evaluation that --resume continues; None without --resume.

    Raises:
        ValueError: there is none in --out, or without --out none that is unfinished.
    """
    if not options.resume:
        return None
    out = options.out or _newest(Path("outputs/eval"), _evaluation, "evaluation")
    config = STORE.begun(out)
    settings = dict(config["settings"])
    if options.realtime and options.delay is None:
        settings["delay"] = None  # says --delay itself
    return restored(type(options), settings | _place(config), out)


def evaluation_in(folder: Path) -> EvalOptions:
    """The options that the evaluation in a folder was run with.

    Raises:
        ValueError: there is none.
    """
    config = STORE.read(folder)
    if config is None:
        raise InputError(f"expected an evaluation of `asd-policy eval` in {folder}; found none")
    return restored(EvalOptions, config["settings"] | _place(config), folder)


def find_options(kind: type[Options], options: Options, root: Path, command: str) -> Options | None:
    """The same of a command that keeps its options in a file, with its runs in `root`."""
    if not options.resume:
        return None
    out = options.out or _newest(root, functools.partial(_of_parts, command), f"`{command}`")
    return restored(kind, store_of(command).begun(out)["options"], out)


def restored(kind: type[AnyOptions], kept: Json, out: Path) -> AnyOptions:
    """Options as they were kept, to continue the run in `out`."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: Json = {"out": out, "resume": True}
    values |= {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items() if k in names}
    if values.get("checkpoint") is not None:
        values["checkpoint"] = Path(values["checkpoint"])
    return kind(**values)


def _place(config: Json) -> Json:
    """Checkpoint and servers as they were given: config.json has a hash among the settings, and
    where it was in the command only, for it may have moved."""
    words = shlex.split(config["command"])
    after = words[words.index("--remote") + 1 :] if "--remote" in words else []
    remote = itertools.takewhile(lambda word: not word.startswith("--"), after)
    checkpoint = dict(itertools.pairwise(words)).get("--checkpoint")
    return {"checkpoint": checkpoint, "remote": tuple(remote)}


# --- which run ----------------------------------------------------------------------------------


class _Begun(NamedTuple):
    """A run that is there."""

    started: datetime.datetime
    finished: bool
    held: bool  # by a process that is at it


def _newest(root: Path, look: Callable[[Path], _Begun | None], what: str) -> Path:
    """The newest run in `root` that is unfinished, and that no process is at; says which."""
    there = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [(run, path) for path in there for run in [_looked(look, path)] if run is not None]
    left = [(run, path) for run, path in found if not run.finished]
    free = [(run.started, path) for run, path in left if not run.held]
    if not free:
        counts = {"finished": len(found) - len(left), "at work in another process": len(left)}
        others = ", ".join(f"{count} {how}" for how, count in counts.items() if count)
        raise InputError(
            f"--resume without --out continues the newest unfinished {what} in {root}, and there "
            f"is none ({others or 'nothing was run there'}); name a folder with --out"
        )
    newest = max(free)[1]
    say(f"The newest unfinished {what} in {root} is {newest.name}")
    return newest


def _looked(look: Callable[[Path], _Begun | None], path: Path) -> _Begun | None:
    try:
        return look(path)
    except ValueError:  # one that is damaged is not the one to continue
        return None


def _evaluation(path: Path) -> _Begun | None:
    config = STORE.read(path)
    if config is None or config.get("schema_version") != VERSION["config"]:
        return None
    results = _read(path / "results.json") or {"complete": False}
    finished = results["complete"] and results["seeds"]["count"] == config["settings"]["episodes"]
    return _Begun(datetime.datetime.fromisoformat(config["started"]), finished, is_held(path))


def _of_parts(command: str, path: Path) -> _Begun | None:
    kept = store_of(command).read(path)
    if kept is None:
        return None
    result = _read(path / "rates.json") or {"rates": []}
    done = {_part(entry) for entry in result["rates"] if entry["complete"]}
    wanted = kept["options"]
    parts = set(itertools.product(wanted["rates"], wanted.get("executions", ["late"])))
    finished = parts <= done and result["seeds"]["count"] == wanted["episodes"]
    held = any(is_held(run.parent) for run in path.glob("*/episodes.jsonl"))
    return _Begun(datetime.datetime.fromisoformat(kept["started"]), finished, held)


def _part(entry: Json) -> tuple[float, str]:
    return entry["control_rate_hz"], entry.get("execution", "late")


def _read(path: Path) -> Json | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


# --- the options of a command that is made of evaluations ---------------------------------------


def store_of(command: str, file: str = OPTIONS_FILE, may_grow: Sequence[str] = ()) -> Store:
    """Where a command that is made of evaluations keeps its options."""
    return Store(
        what=f"a run of `{command}`",
        form="options",
        file=file,
        key="options",
        ours=lambda content: bool(content.get("command") == command),
        # The hash of a checkpoint counts: see config.json.
        free=("video", "name", "checkpoint", "remote"),
        may_grow=may_grow,
        restores=True,
    )


def kept_form(options: Any) -> Json:
    """The options that make a run what it is, as they will be read back."""
    kept = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NOT_KEPT}
    return dict(json.loads(json.dumps(kept, default=str)))


def keep_options(
    folder: Path, store: Store, command: str, options: Any, beside: bool = False
) -> None:
    """Write the options, or raise OutputExistsError where others are kept, or other files where
    they may not stand ``beside`` such."""
    asked = kept_form(options)
    there = store.check(folder, asked, options.resume, beside)
    content = {
        "schema_version": VERSION["options"],
        "command": command,
        "started": now() if there is None else there["started"],
        "options": asked,
    }
    write_json(folder / store.file, content)


@contextlib.contextmanager
def continued_with(again: str, where: str, begun: Callable[[], bool]) -> Iterator[None]:
    """While a command runs: when it is cut short, say what goes on with what is kept `where`, if
    something has `begun`."""
    try:
        yield
    except BaseException as error:
        if begun() and not isinstance(error, (InputError, OutputExistsError)):  # refusals
            say(f"What was finished is kept{where}; continue with\n  {again}")
        raise


@contextlib.contextmanager
def evaluations_continued_with(again: str, file: Path) -> Iterator[None]:
    """:func:`continued_with` for evaluations in the folder of the options in `file`, which are
    removed where none has begun."""

    def begun() -> bool:
        return any(file.parent.rglob("config.json"))

    try:
        with continued_with(again, f" in {file.parent}", begun):
            yield
    except BaseException:
        if not begun():
            file.unlink(missing_ok=True)
        raise
