"""Collects demonstrations of a scripted expert into a zarr store.

Work in progress lives in `<out>.partial/`, one file per attempt; the store is put together from
those when all are there. So a run that was stopped, however rudely, goes on where it was, and the
store is the same, bitwise, whether or not that happened.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.envs import episodes as _episodes
from asd_policy.envs.attempts import Recipe, attempt_path, open_folder, run_attempts
from asd_policy.envs.simulator import environment_arguments
from asd_policy.envs.stored import EpisodeModels, check_rendering, film
from asd_policy.envs.tasks import get_task
from asd_policy.errors import OutputExistsError
from asd_policy.policy.checkpoint import read_card

FORMAT = "asd-policy demonstrations 1"


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
    resume: bool = True,
    progress: bool = True,
    pushed: float = 0.0,
    learner: Path | None = None,
) -> Summary:
    """Collect `episodes` successful demonstrations of `task` into the zarr store `out`.

    The store: `data/<observation key>` (T, dim) float32, `data/action` (T, action_dim) float32
    (the expert's own), `data/executed_action` likewise (with noise), `data/reward` (T,) float32,
    `data/state` (T, n) float64 (MuJoCo time, qpos, qvel), `meta/episode_ends` (episodes,) int64,
    cumulative, `meta/attempt` (episodes,) int64, and attributes that say how it was made. Row t
    is what held before action t.

    Args:
        task: name of the task.
        episodes: how many to store.
        noise: standard deviation of the noise on executed actions, in action units, 0 to 1.
        out: path of the store; work in progress is kept in `<out>.partial`.
        workers: processes.
        seed: of the whole collection.
        resume: go on with what an earlier run left in `<out>.partial`; else start anew.
        progress: show a bar.
        pushed: probability that an episode begins after a push, see `run_episode`.
        learner: checkpoint folder of a policy that drives until the record begins.

    Raises:
        ValueError: an argument out of range, an unknown task, or one without an expert.
        OutputExistsError: `out` is there already.
        DatasetError: `<out>.partial` is of another recipe, or the expert fails too often.
    """
    started = time.monotonic()
    card = {} if learner is None else read_card(learner)
    recipe = Recipe(task, episodes, noise, seed, pushed, card.get("sha256"))
    if workers < 1:
        raise ValueError(f"expected at least 1 worker, got {workers}")
    if out.exists():
        raise OutputExistsError(f"{out} exists already; expected a path for a new store")
    folder = out.with_name(out.name + ".partial")
    if not resume and (folder / "recipe.json").exists():
        shutil.rmtree(folder)
    done = open_folder(recipe, folder)
    with _progress_bar(episodes, progress) as report:
        run_attempts(recipe, folder, done, workers, report, learner)
    lengths = _assemble(recipe, folder, done, out)
    shutil.rmtree(folder)
    return Summary(out, episodes, len(done) - episodes, lengths, time.monotonic() - started)


# --- the store ----------------------------------------------------------------------------------


def _assemble(recipe: Recipe, folder: Path, done: dict[int, bool], out: Path) -> np.ndarray:
    """Write the store inside `folder`, then move it to its place whole; episode lengths."""
    kept = sorted(number for number, success in done.items() if success)
    columns: dict[str, list[np.ndarray]] = {}
    for number in kept:
        with np.load(attempt_path(folder, number)) as file:
            for key in file.files:
                if key != "success":
                    columns.setdefault(key, []).append(file[key])
    lengths = np.array([len(part) for part in columns["action"]], dtype=np.int64)
    unfinished = folder / "store"
    shutil.rmtree(unfinished, ignore_errors=True)
    root = _new_group(unfinished)
    for key, parts in columns.items():
        root[f"data/{key}"] = np.concatenate(parts)
    root["meta/episode_ends"] = np.cumsum(lengths)
    root["meta/attempt"] = np.array(kept, dtype=np.int64)
    root.attrs.update(_attributes(recipe, len(done)))
    unfinished.rename(out)
    return lengths


def _new_group(path: Path) -> Any:
    """A new zarr group, of format 2: every version of zarr reads that."""
    import zarr

    version = int(zarr.__version__.split(".")[0])
    return zarr.open_group(str(path), mode="w", **({"zarr_format": 2} if version >= 3 else {}))


def _attributes(recipe: Recipe, attempts: int) -> dict[str, Any]:
    """How the store was made. Nothing that differs between two runs of the same recipe."""
    task = get_task(recipe.task)
    packages = ("asd-policy", "robosuite", "mujoco", "numpy", "gymnasium")
    return {
        "format": FORMAT,
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
            "correlation": _episodes.NOISE_CORRELATION,
        },
        "pushed": {
            "share": recipe.pushed,
            "kind": "the record begins after a push of the arm in a random direction",
            "steps": list(_episodes.PUSH_STEPS),
            "strength": list(_episodes.PUSH_STRENGTH),
            "lets_go": _episodes.PUSH_LETS_GO,
        },
        "learner": recipe.learner,
        "begins_before": {
            "expert leads": _episodes.EXPERT_LEADS,
            "learner leads": _episodes.LEARNER_LEADS,
        },
        "steps_after_success": _episodes.STEPS_AFTER_SUCCESS,
        "max_steps": task.demonstration_limit,
        "action": "the expert's own at the visited states; what was executed is executed_action",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "command": _command(recipe),
    }


def _command(recipe: Recipe) -> str:
    words = ["asd-policy", "demos", "--task", recipe.task, "--episodes", str(recipe.episodes)]
    words += ["--noise", str(recipe.noise), "--seed", str(recipe.seed)]
    words += ["--pushed", str(recipe.pushed)] if recipe.pushed else []
    return shlex.join([*words, *(["--learner", "CHECKPOINT"] if recipe.learner else [])])


# --- the command line ---------------------------------------------------------------------------


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main_collect(
    task: str = "lift",
    episodes: int = 200,
    noise: float = 0.1,
    pushed: float = 0.0,
    learner: Path | None = None,
    seed: int = 0,
    workers: int = available_cores(),
    out: Path | None = None,
    hdf5: Path | None = None,
    figure: Path | None = None,
    render: Path | None = None,
) -> None:
    """Collect demonstrations of a scripted expert into a zarr store.

    A run that was stopped, however rudely, goes on where it was when the same command is given
    again. Failed attempts are dropped, counted and replaced.

    Args:
        task: Name of the task.
        episodes: How many successful episodes to store.
        noise: Standard deviation of the noise on what is executed, in action units (0 to 1). The
            recorded action is the expert's own, so the data shows how to recover.
        pushed: Share of the episodes that begin at some moment of the task, just after the arm was
            pushed off in a random direction: the data shows how to recover from more than noise.
        learner: Checkpoint folder of a policy that drives, unrecorded, to some moment of the task,
            where the expert takes over (DAgger): the data shows how to recover from its errors.
        seed: Seed of the whole collection; the same seed gives the same store.
        workers: Processes to run in parallel.
        out: Path of the store; outputs/demos/<task>.zarr when not given.
        hdf5: Also export to this path in robomimic's layout.
        figure: Also draw the variety of the demonstrations to this path (png, pdf or svg).
        render: Also film the first demonstration to this path (mp4); needs OpenGL.
    """
    out = Path("outputs/demos") / f"{task}.zarr" if out is None else out
    extras = {"HDF5": hdf5, "figure": figure, "film": render}
    _check_extras(extras)
    try:
        summary = collect(task, episodes, noise, out, workers, seed, pushed=pushed, learner=learner)
    except KeyboardInterrupt:
        print(f"Stopped. What was finished is kept in {out}.partial; the same command goes on.")
        raise
    if hdf5 is not None:
        from asd_policy.data.robomimic_hdf5 import export_hdf5

        export_hdf5(out, hdf5, EpisodeModels(out))
    if figure is not None:
        from asd_policy.envs.variety import draw_variety

        draw_variety(out, figure)
    if render is not None:
        film(out, 0, render)
    _print_summary(summary, extras)


def _check_extras(extras: dict[str, Path | None]) -> None:
    """Refuse before the collection what would fail after it."""
    for path in extras.values():
        if path is not None and path.exists():
            raise OutputExistsError(f"{path} exists already; expected a path for a new file")
    figure, film_path = extras["figure"], extras["film"]
    if figure is not None and figure.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"expected a figure ending in .png, .pdf or .svg, got {figure}")
    if film_path is not None:
        if film_path.suffix != ".mp4":
            raise ValueError(f"expected a film ending in .mp4, got {film_path}")
        check_rendering()


def _print_summary(summary: Summary, extras: dict[str, Path | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    lengths = summary.lengths
    attempts = summary.episodes + summary.dropped
    rows = {
        "episodes": summary.episodes,
        "steps": lengths.sum(),
        "success": f"{summary.episodes / attempts:.1%} of {attempts} attempts",
        "dropped": summary.dropped,
        "length": f"mean {lengths.mean():.1f}, min {lengths.min()}, max {lengths.max()}",
        "seconds": f"{summary.seconds:.0f}",
        "path": summary.path,
        **{name: path for name, path in extras.items() if path is not None},
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)


@contextmanager
def _progress_bar(total: int, show: bool) -> Iterator[Callable[[dict[int, bool]], None]]:
    """Yields a function that redraws the bar from the attempts done."""
    from rich import progress

    columns = (
        progress.TextColumn("demonstrations"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("dropped {task.fields[dropped]}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, disable=not show) as bar:
        line = bar.add_task("", total=total, dropped=0)

        def report(done: dict[int, bool]) -> None:
            kept = sum(done.values())
            bar.update(line, completed=kept, dropped=len(done) - kept)

        yield report
