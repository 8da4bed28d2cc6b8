"""Collects demonstrations in parallel processes into a zarr store; survives being killed.

Every attempt is a pure function of (recipe, index), and is saved to a file of its own the moment
it ends, in `<out>.partial/`. The store is put together from those files when all are there. So a
run that was killed goes on where it was, and the store does not depend on whether it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.envs.tasks import get_task
from asd_policy.errors import DatasetError, OutputExistsError


@dataclass(frozen=True)
class Recipe:
    """All that decides what a store holds.

    Attributes:
        task: name of the task.
        episodes: successful episodes to store.
        noise: standard deviation of the noise on the executed actions, in action units.
        seed: of the whole collection.
    """

    task: str
    episodes: int
    noise: float
    seed: int

    def __post_init__(self) -> None:
        get_task(self.task)
        if self.episodes < 1:
            raise ValueError(f"expected at least 1 episode, got {self.episodes}")
        if not 0.0 <= self.noise <= 1.0:
            raise ValueError(f"expected noise between 0 and 1 (action units), got {self.noise}")
        if self.seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {self.seed}")


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


# --- worker processes ---------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(recipe: Recipe, folder: Path) -> None:
    from asd_policy.envs.world import RobosuiteEnv

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker.update(recipe=recipe, folder=folder, env=RobosuiteEnv(recipe.task))


def _exit_with_parent() -> None:
    # A killed parent cannot close the pool, and its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(index: int) -> bool:
    """Run attempt `index`, save it, and say whether it succeeded."""
    from asd_policy.envs.episodes import run_episode

    recipe: Recipe = _worker["recipe"]
    episode = run_episode(_worker["env"], recipe.noise, recipe.seed, index)
    path = _attempt_path(_worker["folder"], index)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, success=episode.success, **(episode.arrays() if episode.success else {}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)  # atomic: a file that is there is whole
    return episode.success


def _attempt_path(folder: Path, index: int) -> Path:
    return folder / f"attempt-{index:06d}.npz"


# --- the collection -----------------------------------------------------------------------------


def collect(
    task: str,
    episodes: int,
    noise: float,
    out: Path,
    workers: int,
    seed: int = 0,
    progress: bool = True,
) -> Summary:
    """Collect `episodes` successful demonstrations of `task` into the zarr store `out`.

    Attempts are numbered, and the store holds the successful ones of the shortest run of numbers
    that has enough of them; it is the same, bitwise, for any number of workers and however often
    the collection was stopped and started again.

    Args:
        task: name of the task.
        episodes: how many to store.
        noise: standard deviation of the noise on executed actions (recorded ones are the
            expert's own), in action units, 0 to 1.
        out: path of the store; work in progress is kept in `<out>.partial`.
        workers: processes.
        seed: of the whole collection.
        progress: show a bar.

    Raises:
        ValueError: an argument out of range.
        OutputExistsError: `out` is there already.
        DatasetError: `<out>.partial` is of another recipe, or the expert fails too often.
    """
    started = time.monotonic()
    recipe = Recipe(task, episodes, noise, seed)
    if workers < 1:
        raise ValueError(f"expected at least 1 worker, got {workers}")
    folder = _open_partial(recipe, out)
    done = _finished_attempts(folder)
    with _progress_bar(episodes, progress) as report:
        _run_attempts(recipe, folder, done, workers, report)
    lengths = _assemble(recipe, folder, done, out)
    shutil.rmtree(folder)
    dropped = len(done) - episodes
    return Summary(out, episodes, dropped, lengths, time.monotonic() - started)


def _open_partial(recipe: Recipe, out: Path) -> Path:
    """The folder of work in progress, new or that of an earlier run of the same recipe."""
    if out.exists():
        raise OutputExistsError(f"{out} exists; expected a path for a new store")
    folder = out.with_name(out.name + ".partial")
    note = folder / "recipe.json"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = asdict(recipe)
    if not note.exists():
        if any(folder.iterdir()):
            raise DatasetError(f"{folder} holds no recipe.json; expected unfinished demonstrations")
        _write_atomically(note, json.dumps(wanted))
        return folder
    found = json.loads(note.read_text())
    if found != wanted:
        raise DatasetError(
            f"{folder} holds unfinished demonstrations of another recipe: expected {wanted}, "
            f"found {found}; finish those first, or delete the folder, or choose another path"
        )
    for leftover in folder.glob("*.tmp"):  # of a process that was killed while writing
        leftover.unlink()
    return folder


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _finished_attempts(folder: Path) -> dict[int, bool]:
    """Index to success of every attempt that is saved."""
    done = {}
    for path in sorted(folder.glob("attempt-*.npz")):
        with np.load(path) as file:
            done[int(path.stem.split("-")[1])] = bool(file["success"])
    return done


def _run_attempts(
    recipe: Recipe, folder: Path, done: dict[int, bool], workers: int, report: Any
) -> None:
    """Run the attempts that are missing; `done` is completed in place.

    An attempt starts only while those before it cannot be enough, so that which ones are run
    does not depend on timing.
    """
    report(done)
    if sum(done.values()) >= recipe.episodes:
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(recipe, folder),
    )
    pending: dict[Future[bool], int] = {}
    try:
        while True:
            _submit(pool, recipe, done, pending)
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                done[pending.pop(future)] = future.result()
            report(done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor,
    recipe: Recipe,
    done: dict[int, bool],
    pending: dict[Future[bool], int],
) -> None:
    """Hand out the attempts needed if all those under way succeed."""
    limit = 20 + 3 * recipe.episodes
    taken = {*done, *pending.values()}
    index = hoped_for = 0
    while hoped_for < recipe.episodes:
        if index >= limit:
            raise DatasetError(
                f"expected {recipe.episodes} successes within {limit} attempts, got "
                f"{sum(done.values())}: the expert fails too often at noise {recipe.noise}"
            )
        if index not in taken:
            pending[pool.submit(_attempt, index)] = index
        hoped_for += done.get(index, True)
        index += 1


# --- the store ----------------------------------------------------------------------------------


def _assemble(recipe: Recipe, folder: Path, done: dict[int, bool], out: Path) -> np.ndarray:
    """Write the store beside its place, then move it there whole; lengths of its episodes."""
    kept = sorted(index for index, success in done.items() if success)
    columns: dict[str, list[np.ndarray]] = {}
    for index in kept:
        with np.load(_attempt_path(folder, index)) as file:
            for key in file.files:
                if key != "success":
                    columns.setdefault(key, []).append(file[key])
    lengths = np.array([len(part) for part in columns["action"]], dtype=np.int64)
    temporary = folder / "store"
    shutil.rmtree(temporary, ignore_errors=True)
    root = _open_group(temporary)
    for key, parts in columns.items():
        root[f"data/{key}"] = np.concatenate(parts)
    root["meta/episode_ends"] = np.cumsum(lengths)
    root["meta/episode_index"] = np.array(kept, dtype=np.int64)
    root.attrs.update(_attributes(recipe, len(done)))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(out)
    return lengths


def _open_group(path: Path) -> Any:
    """A new zarr group. Format 2, which every version of zarr reads."""
    import zarr

    version = int(zarr.__version__.split(".")[0])
    return zarr.open_group(str(path), mode="w", **{"zarr_format": 2} if version >= 3 else {})


def _attributes(recipe: Recipe, attempts: int) -> dict[str, Any]:
    """How the store was made. Nothing that differs between two runs of the same recipe."""
    from asd_policy.envs import episodes
    from asd_policy.envs.simulator import environment_arguments

    task = get_task(recipe.task)
    packages = ("asd-policy", "robosuite", "mujoco", "numpy", "gymnasium")
    return {
        "format": "asd-policy demonstrations 1",
        "task": task.name,
        "env_id": task.env_id,
        "env_args": environment_arguments(task),
        "observation_keys": dict(task.observation_keys),
        "expert": task.expert,
        "episodes": recipe.episodes,
        "attempts": attempts,
        "dropped": attempts - recipe.episodes,
        "success_rate": recipe.episodes / attempts,
        "seed": recipe.seed,
        "noise": {
            "std": recipe.noise,
            "kind": "first-order autoregressive, on executed actions, not on the gripper",
            "correlation": episodes.NOISE_CORRELATION,
        },
        "steps_after_success": episodes.STEPS_AFTER_SUCCESS,
        "max_steps": episodes.MAX_STEPS,
        "action": "the expert's own at the visited states; what was executed is executed_action",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "command": _command(recipe),
    }


def _command(recipe: Recipe) -> str:
    options = {
        "task": recipe.task,
        "episodes": recipe.episodes,
        "noise": recipe.noise,
        "seed": recipe.seed,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return shlex.join(["asd-policy", "demos", *words])


# --- the command line ---------------------------------------------------------------------------


@contextmanager
def _progress_bar(total: int, show: bool) -> Iterator[Callable[[dict[int, bool]], None]]:
    """Yields a function that redraws the bar from the attempts done."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("demonstrations"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("dropped {task.fields[dropped]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as bar:
        line = bar.add_task("", total=total, dropped=0)

        def report(done: dict[int, bool]) -> None:
            kept = sum(done.values())
            bar.update(line, completed=kept, dropped=len(done) - kept)

        yield report


def main_collect(
    task: str = "lift",
    episodes: int = 200,
    noise: float = 0.1,
    seed: int = 0,
    workers: int = os.cpu_count() or 1,
    out: Path | None = None,
    hdf5: Path | None = None,
) -> None:
    """Collect demonstrations by a scripted expert into a zarr store.

    A run that was stopped, however rudely, goes on where it was when the same command is given
    again. Failed attempts are dropped, counted and replaced.

    Args:
        task: name of the task.
        episodes: how many successful episodes to store.
        noise: standard deviation of the noise on executed actions, in action units (0 to 1).
        seed: of the whole collection; the same seed gives the same store.
        workers: processes to run in parallel.
        out: path of the store; outputs/demos/<task>.zarr when not given.
        hdf5: also export in robomimic's layout, to this path.
    """
    out = Path("outputs/demos") / f"{task}.zarr" if out is None else out
    try:
        summary = collect(task, episodes, noise, out, workers, seed)
    except KeyboardInterrupt:
        print(f"Stopped. What was finished is kept in {out}.partial; the same command goes on.")
        raise
    _print_summary(summary)


def _print_summary(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    lengths = summary.lengths
    attempts = summary.episodes + summary.dropped
    table = Table("", "", show_header=False)
    for name, value in {
        "episodes": summary.episodes,
        "steps": lengths.sum(),
        "success": f"{summary.episodes / attempts:.1%} of {attempts} attempts",
        "dropped": summary.dropped,
        "length": f"mean {lengths.mean():.1f}, min {lengths.min()}, max {lengths.max()}",
        "seconds": f"{summary.seconds:.0f}",
        "path": summary.path,
    }.items():
        table.add_row(name, str(value))
    Console().print(table)
