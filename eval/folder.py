"""The output folder of one run: what is kept, and how it survives a kill.

Each file's form is a JSON Schema in schemas/.

config.json      what was asked, and what it resolved to
env.json         versions and machine
episodes.jsonl   one line an episode, written and flushed as it ends
results.json     computed from config.json and episodes.jsonl, nothing else
report.html      the run as a page, from the files above and the films
flight/          with --record: what every chunk was drawn from
videos/          <task>_seed<seed>_<sampler>_<outcome>.mp4
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from asd_policy.errors import OutputError, OutputExistsError
from asd_policy.eval.records import Episode

try:
    import fcntl
except ImportError:  # Windows: two processes resuming one folder at once are not told apart
    fcntl = None  # type: ignore[assignment]

Json = dict[str, Any]
# Of config.json, env.json, results.json and episodes.jsonl together; a line of the last has none of
# its own. The form of each is in schemas/. Raise it when a reader of the old form would be misled.
SCHEMA_VERSION = 2
_FREE_TO_CHANGE = ("episodes", "video", "name")  # on resuming; `episodes` only upwards


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


def check_folder(path: Path, settings: Json, resume: bool) -> Json | None:
    """Raise OutputExistsError unless a run with these `settings` (or with some of them that are
    known so far) may start or continue in `path`. Writes nothing. Returns the config.json that is
    there, if any."""
    if path.exists() and not path.is_dir():
        raise OutputExistsError(f"the output must be a folder, but {path} is a file")
    if not path.exists() or _nothing_kept(path):
        return None
    config = _read_config(path)
    if config is None:
        raise OutputExistsError(
            f"the output folder must be new, empty, or hold an evaluation; {path} holds other files"
        )
    differences = _differences(config["settings"], settings)
    if config.get("schema_version") != SCHEMA_VERSION:
        differences.append(
            f"schema_version: {config.get('schema_version')} there, {SCHEMA_VERSION} now"
        )
    if differences:
        raise OutputExistsError(
            f"{path} holds a run with other settings ({'; '.join(differences)}); "
            "choose another --out"
        )
    if not resume:
        raise OutputExistsError(
            f"{path} already holds a run with these settings; add --resume to continue it, "
            "or choose another --out"
        )
    return config


def read_run(path: Path) -> tuple[Json, list[Episode]]:
    """The config and the whole episodes of a run; a torn last line is passed over.

    Raises:
        ValueError: `path` holds no run, or a line before the last is damaged.
    """
    config = _read_config(path)
    if config is None:
        raise ValueError(f"expected an evaluation's folder with a config.json, got {path}")
    with open(path / "episodes.jsonl", "rb") as lines:
        return config, _parse(lines.read(), path)[0]


def write_json(path: Path, value: Json) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one.

    Raises:
        OutputError: the disk is full, or the like; the old one is left.
    """
    partial = path.with_name(path.name + ".part")
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with writing(path):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what the system refuses as an OutputError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputExistsError):
            raise
        raise OutputError(f"{path} could not be written: {error.strerror or error}") from error


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


def _read_config(path: Path) -> Json | None:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and isinstance(config.get("settings"), dict) else None


def _differences(there: Json, now: Json) -> list[str]:
    fixed = sorted(now.keys() - set(_FREE_TO_CHANGE))
    found = [
        f"{key}: {there.get(key)} there, {now.get(key)} now"
        for key in fixed
        if there.get(key) != now.get(key)
    ]
    if now.get("episodes", 0) < there.get("episodes", 0):
        found.append(f"episodes: {there['episodes']} there, only {now['episodes']} now")
    return found


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
