"""A policy in a Ray actor: it rolls out the episodes it is given, and tells as they end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from asd_policy.errors import AsdPolicyError
from asd_policy.eval.plan import Parts
from asd_policy.eval.rollout.loop import Film, Listener, Setup
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.slots import picklable_errors

Job: TypeAlias = tuple[str, int]
_CHECKPOINT_SUFFIXES = (".json", ".safetensors")
_ANSWER_S = 1.0  # the driver is answered at least so often, and may bring more episodes


@dataclasses.dataclass(frozen=True)
class Parcel:
    """A checkpoint's bytes on their way: a folder's files by name, or the one file `name`."""

    name: str
    files: dict[str, bytes]
    is_folder: bool

    @classmethod
    def of(cls, path: Path) -> Parcel:
        """A file, or what of a folder may be a card or weights."""
        if path.is_file():
            return cls(path.name, {path.name: path.read_bytes()}, False)
        there = [file for file in path.iterdir() if file.suffix in _CHECKPOINT_SUFFIXES]
        return cls(path.name, {file.name: file.read_bytes() for file in there}, True)

    def unpack(self, place: Path) -> Path:
        """Write it below `place`; returns the folder or file."""
        folder = place / self.name if self.is_folder else place
        folder.mkdir(exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return place / self.name


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a policy's actor tells of itself when it is loaded and has an environment."""

    checkpoint_sha256: str
    render_fps: float
    resolved: dict[str, Any]
    machine: dict[str, Any]
    host: str


@dataclasses.dataclass(frozen=True)
class Started:
    """An episode that begins."""

    sampler: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Finished:
    """An episode that has ended, and its films by file name."""

    episode: Episode
    films: dict[str, bytes]


Told: TypeAlias = "Started | Finished"


class PolicyHost:
    """What a policy's actor runs. The rollout has a thread of its own, so that the actor can be
    given more episodes meanwhile; the environments are beside it, in processes of their own."""

    def __init__(self) -> None:
        self._jobs = _Jobs()
        self._told: queue.SimpleQueue[Told | Exception] = queue.SimpleQueue()
        self._setup: Setup | None = None

    def up(self) -> None:
        """Answers when the actor has its place."""

    def prepare(
        self,
        parts: Parts,
        prepare: Callable[[Parts], Setup] | None,
        parcel: Parcel | None,
        environ: Mapping[str, str],
    ) -> Prepared:
        """Load the policies and open the environments.

        Args:
            prepare: as `asd_policy.eval.rollout.setup.prepare`, which is the default.
            parcel: the checkpoint; None: `parts.checkpoint` is a path on this node.
            environ: variables that are set unless this node has its own.
        """
        for name, value in environ.items():
            os.environ.setdefault(name, value)
        with picklable_errors():
            try:
                if prepare is None:
                    from asd_policy.eval.rollout.setup import prepare as real

                    prepare = real
                with tempfile.TemporaryDirectory() as place:
                    if parcel is not None:
                        here = parcel.unpack(Path(place))
                        parts = dataclasses.replace(parts, checkpoint=here)
                    self._setup = setup = prepare(parts)
                if parts.video:
                    setup.check_rendering()
                machine = setup.describe_machine()
            except AsdPolicyError:
                raise
            except ValueError as error:  # such as a setting that the sampler refuses
                raise AsdPolicyError(str(error)) from error
        return Prepared(
            setup.checkpoint_sha256, setup.render_fps, setup.resolved, machine, platform.node()
        )

    def begin(self, film: Film) -> None:
        """Start to roll out what `exchange` will bring."""
        threading.Thread(target=self._roll_out, args=(film,), daemon=True).start()

    def exchange(self, jobs: Sequence[Job]) -> list[Told]:
        """Take more episodes, and tell what has happened: nothing, after a second of that. Raises
        what ended the rollout."""
        self._jobs.add(jobs)
        told: list[Told] = []
        with contextlib.suppress(queue.Empty), picklable_errors():
            one = self._told.get(timeout=_ANSWER_S)
            while not isinstance(one, Exception):
                told.append(one)
                one = self._told.get_nowait()
            if not told:
                raise one
            self._told.put(one)  # what was finished before comes first
        return told

    def _roll_out(self, film: Film) -> None:
        assert self._setup is not None
        listener = Listener(started=lambda *job: self._told.put(Started(*job)))
        try:
            with tempfile.TemporaryDirectory() as place:
                for episode in self._setup.roll_out(self._jobs, film, Path(place), listener):
                    self._jobs.running -= 1
                    self._told.put(Finished(episode, _taken(Path(place))))
        except Exception as error:
            self._told.put(error)


class _Jobs(Iterator[Job]):
    """The episodes to roll out, as they are brought. Ends for now where there is none; while none
    runs either, waits for one."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.running = 0

    def add(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._waiting.put(job)

    def __next__(self) -> Job:
        try:
            job = self._waiting.get(block=self.running == 0)
        except queue.Empty:
            raise StopIteration from None
        self.running += 1
        return job


def _taken(place: Path) -> dict[str, bytes]:
    """The finished films of a folder, taken out of it."""
    paths = [path for path in place.rglob("*.mp4") if not path.name.startswith(".")]
    films = {path.name: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    return films
