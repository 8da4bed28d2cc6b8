"""The output folder of one run: what is kept, and how it survives a kill.

Each file's form is a JSON Schema in schemas/.

config.json      what was asked, and what it resolved to
env.json         versions and machine
episodes.jsonl   one line an episode, written and flushed as it ends
results.json     computed from config.json and episodes.jsonl, nothing else
report.html      the run as a page, from the files above and the films
flight/          with --record: what every chunk was sampled from
videos/          <task>_seed<seed>_<sampler>_<outcome>.mp4
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from asd_policy.errors import OutputExistsError
from asd_policy.eval.records import Episode
from asd_policy.files import writing

try:
    import fcntl
except ImportError:  # Windows: two processes resuming one folder at once are not told apart
    fcntl = None  # type: ignore[assignment]

Json = dict[str, Any]
# Of config.json, env.json, results.json and episodes.jsonl together; a line of the last has none of
# its own. The form of each is in schemas/. Raise it when a reader of the old form would be misled.
SCHEMA_VERSION = 2
_FREE_TO_CHANGE = ("video", "name")  # on resuming
_MAY_GROW = ("episodes",)
_NO_OPTIONS = ("checkpoint_sha256", "schema_version")
_OF_A_MACHINE = ("device", "engine", "precision", "compile", "threads")


def default_folder(name: str, root: Path = Path("outputs/eval")) -> Path:
    """outputs/eval/<date>-<time>-<name>, numbered where that second already has one."""
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
    candidates = (root / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 1000))
    return next(path for path in candidates if not path.exists())


class RunFolder:
    """One run's folder, held by this process: `episodes` so far, and ways to add to it."""

    def __init__(self, path: Path, lines: IO[bytes], episodes: list[Episode]):
        self.path = path
        self.episodes = episodes
        self._keys = self.done  # of a hundred thousand episodes, each is looked up once
        self._lines = lines

    @classmethod
    def claim(cls, path: Path, config: Json, env: Json, resume: bool) -> RunFolder:
        """Start a run in `path`, or with `resume` continue the one there.

        Raises:
            OutputExistsError: the folder holds another run, or one that `resume` was not given for,
                or another process is writing to it.
            OutputError: the folder cannot be written to.
        """
        there = check_folder(path, config["settings"], resume)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refused must not be left in a buffer and written later.
            lines = open(path / "episodes.jsonl", "a+b", buffering=0)  # noqa: SIM115
        try:
            _lock(lines, path)
            # Before any line: a folder with lines but no config could not be resumed.
            write_json(path / "config.json", _merged(there, config))
            _keep_env(path / "env.json", env)
            with writing(path / "episodes.jsonl"):
                episodes = _repair(lines, path)
        except BaseException:
            lines.close()
            raise
        return cls(path, lines, episodes)

    @property
    def done(self) -> set[tuple[str, int]]:
        """(sampler, seed) of each finished episode."""
        return {(episode.sampler, episode.seed) for episode in self.episodes}

    def add(self, episode: Episode) -> None:
        """Keep a finished episode: on the disk before this returns.

        Raises:
            OutputError: the disk is full, or the like; nothing of the episode is kept then.
        """
        key = (episode.sampler, episode.seed)
        assert key not in self._keys, f"episode {key} is kept already"
        with writing(self.path / "episodes.jsonl"):
            _append(self._lines, episode.to_line().encode() + b"\n")
        self.episodes.append(episode)
        self._keys.add(key)

    def kept(self) -> tuple[Json, list[Episode]]:
        """Config and episodes as the disk has them: results come from nowhere else. (Ctrl-C may
        fall between an episode's line and the list in memory.)"""
        return read_run(self.path)

    def write_results(self, results: Json) -> None:
        """Replace results.json."""
        write_json(self.path / "results.json", results)

    def close(self) -> None:
        """Let go of the folder."""
        self._lines.close()


@contextlib.contextmanager
def reserved(path: Path) -> Iterator[None]:
    """An output folder that is there and can be written to, before anything is loaded. What was
    made for it and is still empty at the end is removed.

    Raises:
        OutputError: it cannot be made, or nothing can be written in it.
        OutputExistsError: a file has its name.
    """
    with writing(path):
        if path.exists() and not path.is_dir():
            raise OutputExistsError(f"the output must be a folder, but {path} is a file")
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    try:
        with writing(path), tempfile.TemporaryFile(dir=path):
            pass
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: so are those above it
            for folder in made:
                folder.rmdir()


def check_writable(path: Path) -> None:
    """Raise what `reserved` raises, and leave everything as it is."""
    with reserved(path):
        pass


def check_folder(path: Path, settings: Json, resume: bool) -> Json | None:
    """Raise OutputExistsError unless a run with these `settings` (or with some of them that are
    known so far) may start or continue in `path`. Writes nothing. Returns the config.json that is
    there, if any."""
    with writing(path):
        if path.exists() and not path.is_dir():
            raise OutputExistsError(f"the output must be a folder, but {path} is a file")
        if not path.exists() or _nothing_kept(path):
            return None
    config = read_config(path)
    if config is None:
        raise OutputExistsError(
            f"the output folder must be new, empty, or hold an evaluation; {path} holds other files"
        )
    version = {"schema_version": config.get("schema_version")}
    there, now = config["settings"] | version, settings | {"schema_version": SCHEMA_VERSION}
    check_same(path, there, now, _FREE_TO_CHANGE, _MAY_GROW)
    if not resume:
        raise OutputExistsError(
            f"{path} already holds a run with these settings; add --resume to continue it, "
            "or choose another --out"
        )
    return config


def check_same(
    path: Path, there: Json, now: Json, free: Sequence[str] = (), may_grow: Sequence[str] = ()
) -> None:
    """Raise OutputExistsError, naming each option, the value that is kept and the one that came,
    where the options `now` are not those of the run in `path`. `free` ones may be others; those
    that `may_grow` may be larger numbers, or lists with more in them."""
    found = [
        f"{_option(key)}: {_said(there.get(key))} there, {'only ' * grows}{_said(now[key])} now"
        for key in sorted(now.keys() - set(free))
        for grows in [key in may_grow and there.get(key) is not None]
        if not (_reaches(now[key], there[key]) if grows else now[key] == there.get(key))
    ]
    if not found:
        return
    keys = {key for key in now if there.get(key) != now[key]}
    why = "; a run has one machine setting, so that its latencies are of one" * bool(
        keys.intersection(_OF_A_MACHINE)
    )
    or_else = "" if keys.intersection(_NO_OPTIONS) else "leave them out to go on with --resume, or "
    raise OutputExistsError(
        f"{path} holds a run with other settings ({'; '.join(found)}){why}; "
        f"{or_else}choose another --out"
    )


def _reaches(now: Any, there: Any) -> bool:
    return set(there) <= set(now) if isinstance(there, list) else bool(now >= there)


def _option(key: str) -> str:
    return key if key in _NO_OPTIONS else "--" + key.replace("_", "-")


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def read_run(path: Path) -> tuple[Json, list[Episode]]:
    """The config and the whole episodes of a run; a torn last line is passed over.

    Raises:
        ValueError: `path` holds no run, or a line before the last is damaged.
    """
    config = read_config(path)
    if config is None:
        raise ValueError(f"expected an evaluation's folder with a config.json, got {path}")
    try:
        lines = (path / "episodes.jsonl").read_bytes()
    except OSError as error:
        raise ValueError(f"{path} holds no episodes: episodes.jsonl: {error.strerror}") from error
    return config, _parse(lines, path)[0]


def write_json(path: Path, value: Json) -> None:
    """Write a value as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one.

    Raises:
        OutputError: the disk is full, or the like; the old one is left.
    """
    partial = path.with_name(path.name + ".part")
    with writing(path):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def _append(lines: IO[bytes], line: bytes) -> None:
    """Write and flush a line, or leave the file as it was."""
    end = lines.seek(0, os.SEEK_END)
    try:
        left = line
        while left:  # a disk that fills takes a part first
            left = left[lines.write(left) :]
        os.fsync(lines.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # resuming would cut the torn line off, too
            lines.truncate(end)
        raise


def _nothing_kept(path: Path) -> bool:
    """Empty, or left by a run that was killed before its config.json was written."""
    sizes = {entry.name: entry.stat().st_size for entry in path.iterdir()}
    return sizes.keys() <= {"episodes.jsonl", "config.json.part"} and not sizes.get(
        "episodes.jsonl", 0
    )


def read_config(path: Path) -> Json | None:
    """The config.json of a run; None where there is none."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and isinstance(config.get("settings"), dict) else None


def _merged(there: Json | None, config: Json) -> Json:
    """The config to keep: this one, started when the one there was."""
    return config if there is None else config | {"started": there.get("started")}


def _keep_env(path: Path, env: Json) -> None:
    """Write env.json; a resumed run on another machine or other versions is added under `resumed`,
    so that latencies of two machines are never read as one's."""
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        first = env
    resumed = first.pop("resumed", [])
    if env not in (first, *resumed):
        resumed = [*resumed, env]
    write_json(path, {**first, "resumed": resumed} if resumed else first)


def _lock(lines: IO[bytes], path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputExistsError(f"{path} is being written to by another process") from error


def is_held(path: Path) -> bool:
    """Whether another process is writing to the run in `path`."""
    try:
        with open(path / "episodes.jsonl", "rb") as lines:
            _lock(lines, path)
    except OutputExistsError:
        return True
    except FileNotFoundError:
        pass
    return False


def _repair(lines: IO[bytes], path: Path) -> list[Episode]:
    """Read the episodes and cut a torn last line off the file (a kill while it was written)."""
    lines.seek(0)
    content = lines.read()
    episodes, whole = _parse(content, path)
    lines.truncate(whole)
    if whole and content[whole - 1 : whole] != b"\n":
        _append(lines, b"\n")  # the record is whole, only its end of line was lost
    return episodes


def _parse(content: bytes, path: Path) -> tuple[list[Episode], int]:
    """The episodes, and how many bytes of `content` they take."""
    episodes: dict[tuple[str, int], Episode] = {}
    start = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        last = start + len(line) == len(content)
        try:
            episode = Episode.from_line(line)
        except ValueError as error:
            if last:
                break
            raise ValueError(f"line {number} of {path / 'episodes.jsonl'}: {error}") from error
        key = (episode.sampler, episode.seed)
        if key in episodes:
            raise ValueError(
                f"line {number} of {path / 'episodes.jsonl'} repeats {key[0]}, seed {key[1]}"
            )
        episodes[key] = episode
        start += len(line)
    return list(episodes.values()), start
