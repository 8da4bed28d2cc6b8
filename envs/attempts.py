"""One numbered attempt at a demonstration, and the folder in which attempts wait to be a store.

Every attempt is a pure function of (recipe, number), and is saved to a file of its own the moment
it ends. What is on disk is therefore always whole, and worth keeping.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from asd_policy.data.replay import DAMAGED_NPZ
from asd_policy.data.zarr_store import reason
from asd_policy.envs.episodes import Learner, run_episode
from asd_policy.envs.recipe import Recipe, check_same_recipe, check_same_settings, settings
from asd_policy.envs.workers import follow_parent
from asd_policy.envs.world import RobosuiteEnv
from asd_policy.errors import DatasetError
from asd_policy.files import LOCK_FILE, replacing


class LearnerSource(Protocol):
    """What can be sent to a process, and makes there what drives in interruptions."""

    @property
    def sha256(self) -> str:
        """Of all that decides what it does."""
        ...

    def load(self) -> Learner:
        """Make it."""
        ...


# --- worker processes ---------------------------------------------------------------------------


class Board(NamedTuple):
    """What the processes of a collection tell each other: shared memory, without locks, which a
    killed process could leave locked.

    Attributes:
        stopping: not 0 when no attempt is to begin any more.
        began: one number for each process, when its attempt began (`time.time`); 0 for none.
    """

    stopping: Any
    began: Any


_worker: dict[str, Any] = {}


def start_worker(recipe: Recipe, folder: Path, source: LearnerSource | None, board: Board) -> None:
    """What a process does before its first attempt."""
    follow_parent()
    learner = None if source is None else source.load()
    env = RobosuiteEnv(recipe.task)
    _worker.update(recipe=recipe, folder=folder, env=env, learner=learner, board=board)


def run_attempt(number: int, place: int) -> tuple[bool, float] | None:
    """Run one attempt, save it, and say whether it succeeded and how many seconds it took. None,
    and nothing is done, when the collection is being stopped."""
    board: Board = _worker["board"]
    board.began[place] = began = time.time()  # before the look: one of two sees the other's word
    if board.stopping.value:
        board.began[place] = 0.0
        return None
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
    with replacing(path, f".{os.getpid()}.tmp") as file:
        np.savez(file, success=episode.success, **(episode.arrays() if episode.success else {}))
    return episode.success, time.time() - began


# --- the folder of work in progress -------------------------------------------------------------

_NOTE, _NOTE_IN_WRITING = "recipe.json", "recipe.json.tmp"
STORES = ("old", "store")  # of a replacement; what is left of them is cleared away by the next run


@dataclass(frozen=True)
class Unfinished:
    """A collection that was stopped.

    Attributes:
        recipe: of its attempts.
        settings: what else decided them.
        episodes: how many the store was to have.
        attempts: numbers of those that ended.
    """

    recipe: Recipe
    settings: dict[str, Any]
    episodes: int
    attempts: Sequence[int]


def attempt_path(folder: Path, number: int) -> Path:
    """File of an attempt: its arrays and `success`, which stands alone where it failed."""
    return folder / f"attempt-{number:06d}.npz"


def read_attempt(
    folder: Path, number: int, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of an attempt, all or some.

    Raises:
        DatasetError: its file is damaged.
    """
    path = attempt_path(folder, number)
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names or file.files}
    except DAMAGED_NPZ as error:
        raise DatasetError(
            f"{path} is damaged and cannot be read: {reason(error)}; remove it, and its attempt is "
            "made again"
        ) from error


def saved_numbers(folder: Path) -> list[int]:
    """Numbers of the attempts in the folder, in order."""
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("attempt-*.npz"))


def read_folder(folder: Path) -> Unfinished | None:
    """What was left in the folder, None if nothing was. Writes nothing.

    Raises:
        DatasetError: it holds something else.
    """
    if not os.path.lexists(folder):
        return None
    try:
        note = json.loads((folder / _NOTE).read_text())
        recipe = Recipe.of(note["settings"])
        return Unfinished(recipe, note["settings"], int(note["episodes"]), saved_numbers(folder))
    except FileNotFoundError as error:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if names - {_NOTE_IN_WRITING, LOCK_FILE, *STORES}:
            raise DatasetError(
                f"{folder} holds no {_NOTE}; expected unfinished demonstrations"
            ) from error
        return None
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{folder} is there, and holds no unfinished demonstrations that this version of "
            f"asd-policy knows ({error}); move it away, or choose another --out"
        ) from error


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Raise DatasetError if the folder holds something else than attempts of this recipe."""
    there = read_folder(folder)
    if there is not None and there.attempts:
        check_same_recipe(f"what is unfinished in {folder}", there.recipe, recipe)
        check_same_settings(f"what is unfinished in {folder}", there.settings, recipe)


def open_folder(recipe: Recipe, episodes: int, folder: Path) -> dict[int, bool]:
    """Make the folder, or take up that of a stopped run; number to success of what it holds.

    Raises:
        DatasetError: it holds something else, the attempts of another recipe, or a damaged one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder, recipe)
    temporary = folder / _NOTE_IN_WRITING
    temporary.write_text(json.dumps({"episodes": episodes, "settings": settings(recipe)}))
    temporary.replace(folder / _NOTE)
    _clear_torn(folder)
    done = {}
    for number in saved_numbers(folder):
        done[number] = bool(read_attempt(folder, number, ["success"])["success"])
    return done


def close_folder(folder: Path, used: Sequence[int]) -> None:
    """Remove the attempts that a store has now, and the folder with the last of them."""
    for number in used:
        attempt_path(folder, number).unlink(missing_ok=True)
    _clear_torn(folder)
    if not saved_numbers(folder):
        for name in (_NOTE, _NOTE_IN_WRITING, LOCK_FILE):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # a desktop's own file is in it, or a network's of the open lock
            folder.rmdir()


def _clear_torn(folder: Path) -> None:
    for leftover in folder.glob("attempt-*.tmp"):  # of a process killed while writing
        leftover.unlink()
