"""Collects demonstrations of a scripted expert into a zarr store, and lets a store grow.

Work in progress lives in `<out>.partial/`, one file per attempt; the store is put together from
those, and from what an earlier store holds, when all are there. So a run that was stopped, however
rudely, goes on where it was, and the store is the same, bitwise, whether or not that happened, and
whether it was made at once or has grown.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asd_policy.envs.attempts import (
    LearnerSource,
    check_folder,
    close_folder,
    open_folder,
    read_folder,
)
from asd_policy.envs.crew import run_attempts
from asd_policy.envs.recipe import Recipe, check_same_recipe, check_same_settings
from asd_policy.envs.store import (
    KeptStore,
    check_nothing_else,
    put_back,
    read_store,
    replace_store,
    write_store,
)
from asd_policy.envs.tasks import get_task
from asd_policy.errors import DatasetError, InputError, OutputExistsError, counted
from asd_policy.files import check_writable, claimed, writing
from asd_policy.progress import Stage


@dataclass(frozen=True)
class Summary:
    """What a collection came to.

    Attributes:
        path: of the store.
        episodes: stored.
        dropped: attempts that failed, and were left out.
        lengths: steps of each stored episode, (episodes,) int64.
        seconds: of wall clock, of this run alone.
    """

    path: Path
    episodes: int
    dropped: int
    lengths: np.ndarray
    seconds: float


def collect(
    task: str,
    episodes: int,
    noise: float,
    out: Path,
    workers: int,
    seed: int = 0,
    progress: bool = True,
    interrupt_every: int = 0,
    learner: LearnerSource | None = None,
) -> Summary:
    """Collect `episodes` successful demonstrations of `task` into the zarr store `out`.

    A store that is there is left as it is if it has that many, and grows if it has fewer.

    The store: `data/<observation key>` (T, dim) float32, `data/action` (T, action_dim) float32
    (the expert's own), `data/executed_action` likewise (with noise), `data/interrupted` (T,) bool
    (something else than the expert drove), `data/reward` (T,) float32, `data/state` (T, n) float64
    (MuJoCo time, qpos, qvel), `meta/episode_ends` (episodes,) int64, cumulative, `meta/attempt`
    (episodes,) int64, and attributes that say how it was made. Row t is what held before action t.

    Args:
        task: name of the task.
        episodes: how many to store.
        noise: standard deviation of the noise on executed actions, in action units, 0 to 1.
        out: path of the store; work in progress is kept in `<out>.partial`.
        workers: processes.
        seed: of the whole collection.
        progress: say what is done, and how far it is.
        interrupt_every: steps of the expert between two interruptions, see `run_episode`.
        learner: where to get what drives in half of them.

    Raises: see `make_store`.
    """
    drives = None if learner is None else learner.sha256
    recipe = Recipe(get_task(task).name, noise, seed, interrupt_every, drives)
    return make_store(recipe, episodes, out, workers, learner, progress)


def make_store(
    recipe: Recipe,
    episodes: int,
    out: Path,
    workers: int,
    learner: LearnerSource | None = None,
    progress: bool = True,
) -> Summary:
    """`collect`, of a recipe.

    Raises:
        ValueError: an argument out of range, an unknown task, or one without an expert.
        OutputExistsError: `out` is something else than a store, or another process makes it.
        OutputError: it cannot be written.
        DatasetError: `out` or `<out>.partial` is of another recipe, `out` has more episodes or is
            damaged, or the expert fails too often.
        KeyboardInterrupt: it was stopped; the same call goes on.
    """
    started = time.monotonic()
    if episodes < 1:
        raise InputError(f"expected at least 1 episode, got {episodes}")
    if workers < 1:
        raise InputError(f"expected at least 1 worker, got {workers}")
    out = _where(out)
    folder = _folder(out)
    kept = _check(recipe, episodes, out, learner)
    if progress:
        print(_intention(recipe, episodes, out, workers, kept), flush=True)
    if kept is None or len(kept.numbers) < episodes:
        check_writable(out)
        with claimed(folder):
            with writing(out):
                put_back(out, folder)
            kept = _check(recipe, episodes, out, learner)  # nobody else writes to it from here on
            _grow(recipe, episodes, out, workers, learner, progress, kept)
            kept = read_store(out)
    else:
        _clear_away(out, kept)
    assert kept is not None
    dropped = kept.attempts - len(kept.numbers)
    return Summary(out, len(kept.numbers), dropped, kept.lengths, time.monotonic() - started)


def standing(out: Path) -> tuple[Recipe, int] | None:
    """Recipe and number of the episodes that `out` has, or is to have once a stopped run is gone on
    with. None: nothing is there.

    Raises:
        OutputExistsError, DatasetError: something else is there.
    """
    out = _where(out)
    kept, unfinished = read_store(out), read_folder(_folder(out))
    have = 0 if kept is None else len(kept.numbers)
    if unfinished is not None and unfinished.attempts and unfinished.episodes > have:
        return unfinished.recipe, unfinished.episodes
    return None if kept is None else (kept.recipe, have)


def what_is_kept(out: Path) -> str:
    """What a run that was stopped leaves, in a sentence or two."""
    out = _where(out)
    kept, waiting = read_store(out), _waiting(out)
    said = "Stopped."
    if kept is not None:
        said += f" {out} has {counted(len(kept.numbers), 'demonstration')}."
    if not waiting:
        return f"{said} No new attempt was finished; the same command begins again."
    finished = counted(waiting, "finished attempt")
    return f"{said} Kept in {_folder(out)}: {finished}; the same command goes on."


def _waiting(out: Path) -> int:
    """How many attempts wait to be part of the store."""
    kept, unfinished = read_store(out), read_folder(_folder(out))
    made = 0 if kept is None else kept.attempts
    return 0 if unfinished is None else sum(n >= made for n in unfinished.attempts)


def _where(out: Path) -> Path:
    """Where a store is that `out` may be a link to: there it grows, and the link stays."""
    return out.resolve() if out.is_symlink() else out


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _check(
    recipe: Recipe, episodes: int, out: Path, learner: LearnerSource | None
) -> KeptStore | None:
    """What is there already, if it can be gone on with."""
    kept = read_store(out)
    if kept is not None:
        check_same_recipe(str(out), kept.recipe, recipe)
        kept.columns()  # raises where a part of it is lost: before attempts are made
        have = len(kept.numbers)
        if episodes < have:
            raise DatasetError(
                f"{out} has {have} episodes already, and a store never shrinks: expected "
                f"--episodes {have} or more, got {episodes} (without the option it is used as it "
                "is); or choose another --out"
            )
        if episodes == have:
            return kept
        check_same_settings(str(out), kept.attributes, recipe)
        check_nothing_else(out)
    check_folder(_folder(out), recipe)
    if recipe.learner is not None and learner is None:
        raise DatasetError(
            f"a policy drove when {out} was begun (SHA-256 {recipe.learner[:12]}...): expected its "
            "folder, --learner DIR, for the attempts that are missing"
        )
    return kept


def _intention(
    recipe: Recipe, episodes: int, out: Path, workers: int, kept: KeptStore | None
) -> str:
    """What `make_store` will do, in a sentence."""
    have, waiting = 0 if kept is None else len(kept.numbers), _waiting(out)
    if have == episodes:
        return f"{out} is there, with {counted(have, 'demonstration')} of {recipe.task}."
    how = f"noise {recipe.noise}, seed {recipe.seed}"
    if recipe.interrupt_every:
        how += f", interrupted every {recipe.interrupt_every} steps"
    how += f"; {counted(workers, 'worker')}"
    if waiting:
        how += f"; kept of an earlier run: {counted(waiting, 'attempt')}"
    if have:
        there = f"{out} has {counted(have, 'demonstration')} of {recipe.task}"
        return f"{there}: collecting up to {episodes} ({how})."
    wanted = counted(episodes, "demonstration")
    return f"Collecting {wanted} of {recipe.task} into {out} ({how})."


def _grow(
    recipe: Recipe,
    episodes: int,
    out: Path,
    workers: int,
    learner: LearnerSource | None,
    progress: bool,
    kept: KeptStore | None,
) -> None:
    """Make the attempts that are missing, and then the store."""
    folder = _folder(out)
    with writing(folder):
        done = open_folder(recipe, episodes, folder)
    if kept is not None:
        done |= kept.outcomes()
    try:
        run_attempts(recipe, episodes, folder, done, workers, learner, progress)
    except BaseException:
        with suppress(OSError):  # what has no attempts is nothing to go on with
            close_folder(folder, ())
        raise
    numbers = _needed(episodes, done)
    with Stage("writing the store", show=progress), writing(out):
        write_store(folder / "store", recipe, {n: done[n] for n in numbers}, folder, kept)
        replace_store(folder / "store", out, folder)
        close_folder(folder, numbers)


def _clear_away(out: Path, kept: KeptStore) -> None:
    """Remove what was left by a run that was killed after it had put the store in its place."""
    folder = _folder(out)
    unfinished = read_folder(folder)
    numbers = () if unfinished is None else unfinished.attempts
    if not folder.exists() or (numbers and min(numbers) >= kept.attempts):
        return
    with suppress(OutputExistsError), claimed(folder), writing(folder):  # another run does it
        put_back(out, folder)
        close_folder(folder, range(kept.attempts))


def _needed(episodes: int, done: dict[int, bool]) -> list[int]:
    """Numbers of the first attempts that came to so many episodes: a stopped run may have made
    more, for a larger number."""
    numbers: list[int] = []
    successes = 0
    while successes < episodes:
        numbers.append(len(numbers))
        successes += done[numbers[-1]]
    return numbers
