"""The output folder of one run: what is kept, and how it survives a kill.

The form of each file is a type in `asd_policy.eval.runs`.

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
import dataclasses
import json
import os
from pathlib import Path
from typing import IO, Any

from asd_policy.errors import InputError, OutputExistsError
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.runs.evaluation import Results
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.eval.runs.store import Store
from asd_policy.files import has_lock, writing

Json = dict[str, Any]
STORE = Store(
    what="a run",
    form="config",
    ours=lambda config: "num_envs" in config["settings"],  # a verification has none
    free=("video", "name"),
    may_grow=("episodes",),
    restores=True,
)


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
        there = STORE.check(path, config["settings"], resume)
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

    def kept(self) -> Run:
        """As the disk has it: results come from nowhere else. (Ctrl-C may
        fall between an episode's line and the list in memory.)"""
        return open_run(self.path)

    def write_results(self, results: Results) -> None:
        """Replace results.json."""
        write_json(self.path / "results.json", results)

    def close(self) -> None:
        """Let go of the folder."""
        self._lines.close()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as the disk has it."""

    path: Path
    config: Json
    episodes: list[Episode]

    @property
    def settings(self) -> Json:
        """The options that it was made with, and the checkpoint's hash."""
        settings: Json = self.config["settings"]
        return settings

    def env(self) -> Json:
        """Machine and versions.

        Raises:
            ValueError: they are missing, damaged, or of another version.
        """
        return read_json(self.path / "env.json", "env")


def open_run(path: Path) -> Run:
    """A run of this version.

    Raises:
        ValueError: as `read_run`, or it is of another version.
    """
    config, episodes = read_run(path)
    version = config.get("schema_version")
    if version != VERSION["config"]:
        raise InputError(
            f"expected a run of schema version {VERSION['config']}, got {version} in {path}; "
            "read it with the asd-policy that made it"
        )
    return Run(path, config, episodes)


def read_run(path: Path) -> tuple[Json, list[Episode]]:
    """The config and the whole episodes of a run; a torn last line is passed over.

    Raises:
        ValueError: `path` holds no run, or a line before the last is damaged.
    """
    config = STORE.read(path)
    if config is None:
        raise InputError(f"expected an evaluation's folder with a config.json, got {path}")
    try:
        lines = (path / "episodes.jsonl").read_bytes()
    except OSError as error:
        raise InputError(f"{path} holds no episodes: episodes.jsonl: {error.strerror}") from error
    return config, _parse(lines, path)[0]


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
    if not has_lock(lines, path):
        raise OutputExistsError(f"{path} is being written to by another process")


def is_held(path: Path) -> bool:
    """Whether another process is writing to the run in `path`."""
    try:
        with open(path / "episodes.jsonl", "rb") as lines:
            return not has_lock(lines, path, shared=True)
    except OSError:  # there is none, or no process can hold it
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
            raise InputError(f"line {number} of {path / 'episodes.jsonl'}: {error}") from error
        key = (episode.sampler, episode.seed)
        if key in episodes:
            raise InputError(
                f"line {number} of {path / 'episodes.jsonl'} repeats {key[0]}, seed {key[1]}"
            )
        episodes[key] = episode
        start += len(line)
    return list(episodes.values()), start
