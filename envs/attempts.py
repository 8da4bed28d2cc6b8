"""Runs numbered demonstration attempts in parallel processes; survives being killed.

Every attempt is a pure function of (recipe, number), and is saved to a file of its own the moment
it ends. What is on disk is therefore always whole, and worth keeping.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asd_policy.envs.episodes import Learner, load_expert, run_episode
from asd_policy.envs.tasks import get_task
from asd_policy.envs.workers import follow_parent
from asd_policy.envs.world import RobosuiteEnv
from asd_policy.errors import DatasetError


class LearnerSource(Protocol):
    """What can be sent to a process, and makes there what drives in interruptions."""

    @property
    def sha256(self) -> str:
        """Of all that decides what it does."""
        ...

    def load(self) -> Learner:
        """Make it."""
        ...


@dataclass(frozen=True)
class Recipe:
    """All that decides what a store holds.

    Attributes:
        task: name of the task; it must have an expert.
        episodes: successful episodes to store.
        noise: standard deviation of the noise on the executed actions, in action units.
        seed: of the whole collection.
        interrupt_every: steps of the expert between two interruptions, in the mean; 0 for none.
        learner: SHA-256 of the policy that drives in half of the interruptions, if one does.
    """

    task: str
    episodes: int
    noise: float
    seed: int
    interrupt_every: int = 0
    learner: str | None = None

    def __post_init__(self) -> None:
        load_expert(get_task(self.task))
        if self.episodes < 1:
            raise ValueError(f"expected at least 1 episode, got {self.episodes}")
        if not 0.0 <= self.noise <= 1.0:
            raise ValueError(f"expected noise between 0 and 1 (action units), got {self.noise}")
        if self.interrupt_every < 0:
            raise ValueError(
                f"expected 0 or more steps between interruptions, got {self.interrupt_every}"
            )
        if self.learner is not None and self.interrupt_every == 0:
            raise ValueError("a learner drives in interruptions: expected interrupt_every above 0")
        if self.seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {self.seed}")

    @property
    def attempt_limit(self) -> int:
        """Attempts after which the expert is considered broken."""
        return 20 + 3 * self.episodes


# --- worker processes ---------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(recipe: Recipe, folder: Path, source: LearnerSource | None) -> None:
    follow_parent()
    learner = None if source is None else source.load()
    _worker.update(recipe=recipe, folder=folder, env=RobosuiteEnv(recipe.task), learner=learner)


def _run_attempt(number: int) -> bool:
    """Run one attempt, save it, and say whether it succeeded."""
    recipe: Recipe = _worker["recipe"]
    episode = run_episode(
        _worker["env"],
        recipe.noise,
        recipe.seed,
        number,
        recipe.interrupt_every,
        _worker["learner"],
    )
    path = attempt_path(_worker["folder"], number)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, success=episode.success, **(episode.arrays() if episode.success else {}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)  # atomic: a file that is there is whole
    return episode.success


# --- the folder of work in progress -------------------------------------------------------------

_NOTE_IN_WRITING = "recipe.json.tmp"


def attempt_path(folder: Path, number: int) -> Path:
    """File of an attempt: its arrays and `success`, which stands alone where it failed."""
    return folder / f"attempt-{number:06d}.npz"


def open_folder(recipe: Recipe, folder: Path) -> dict[int, bool]:
    """Make the folder, or take up that of a stopped run; number to success of what it holds.

    Raises:
        DatasetError: it holds something else, or the attempts of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note, wanted = folder / "recipe.json", asdict(recipe)
    if note.exists():
        found = json.loads(note.read_text())
        if found != wanted:
            raise DatasetError(
                f"{folder} holds unfinished demonstrations of another recipe: expected {wanted}, "
                f"found {found}; finish those first, delete the folder, or choose another path"
            )
        for leftover in folder.glob("attempt-*.tmp"):  # of a process killed while writing
            leftover.unlink()
        return _saved_attempts(folder)
    if any(path.name != _NOTE_IN_WRITING for path in folder.iterdir()):
        raise DatasetError(f"{folder} holds no recipe.json; expected unfinished demonstrations")
    temporary = folder / _NOTE_IN_WRITING
    temporary.write_text(json.dumps(wanted))
    temporary.replace(note)
    return {}


def _saved_attempts(folder: Path) -> dict[int, bool]:
    done = {}
    for path in sorted(folder.glob("attempt-*.npz")):
        with np.load(path) as file:
            done[int(path.stem.split("-")[1])] = bool(file["success"])
    return done


# --- the run ------------------------------------------------------------------------------------


def run_attempts(
    recipe: Recipe,
    folder: Path,
    done: dict[int, bool],
    workers: int,
    report: Callable[[dict[int, bool]], None],
    learner: LearnerSource | None = None,
) -> None:
    """Run the attempts that are missing; `done` (number to success) is completed in place.

    Attempts 0, 1, 2, ... are made until enough have succeeded. One starts only if those before
    it cannot be enough, so that which ones are made does not depend on timing, on the number of
    workers, or on having been stopped.

    Raises:
        DatasetError: the expert fails too often.
    """
    report(done)
    if not _missing(recipe, done):
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(recipe, folder, learner),
    )
    under_way: dict[Future[bool], int] = {}
    try:
        while missing := _missing(recipe, done):
            for number in missing.difference(under_way.values()):
                under_way[pool.submit(_run_attempt, number)] = number
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                done[under_way.pop(future)] = future.result()
            report(done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _missing(recipe: Recipe, done: dict[int, bool]) -> set[int]:
    """The attempts yet to be made, if all of them were to succeed."""
    missing: set[int] = set()
    number = hoped_for = 0
    while hoped_for < recipe.episodes:
        if number >= recipe.attempt_limit:
            raise DatasetError(
                f"expected {recipe.episodes} successes within {recipe.attempt_limit} attempts, "
                f"got {sum(done.values())} at noise {recipe.noise}: the expert fails too often"
            )
        if number not in done:
            missing.add(number)
        hoped_for += done.get(number, True)
        number += 1
    return missing
