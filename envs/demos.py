"""Collects demonstrations of a scripted expert into a zarr store.

Work in progress lives in `<out>.partial/`, one file per attempt; the store is put together from
those when all are there. So a run that was stopped, however rudely, goes on where it was, and the
store is the same, bitwise, whether or not that happened.
"""

from __future__ import annotations

import importlib.metadata
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
from asd_policy.envs.attempts import (
    LearnerSource,
    Recipe,
    attempt_path,
    open_folder,
    run_attempts,
)
from asd_policy.envs.simulator import environment_arguments
from asd_policy.envs.tasks import get_task
from asd_policy.errors import OutputExistsError

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
    interrupt_every: int = 0,
    learner: LearnerSource | None = None,
) -> Summary:
    """Collect `episodes` successful demonstrations of `task` into the zarr store `out`.

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
        resume: go on with what an earlier run left in `<out>.partial`; else start anew.
        progress: show a bar.
        interrupt_every: steps of the expert between two interruptions, see `run_episode`.
        learner: where to get what drives in half of them.

    Raises:
        ValueError: an argument out of range, an unknown task, or one without an expert.
        OutputExistsError: `out` is there already.
        DatasetError: `<out>.partial` is of another recipe, or the expert fails too often.
    """
    started = time.monotonic()
    drives = None if learner is None else learner.sha256
    recipe = Recipe(get_task(task).name, episodes, noise, seed, interrupt_every, drives)
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
        "interruptions": {
            "every": recipe.interrupt_every,
            "kind": "a push of the arm in a random direction, or the learner's turn, 1 to 1",
            "push_steps": list(_episodes.PUSH_STEPS),
            "push_strength": list(_episodes.PUSH_STRENGTH),
            "push_lets_go": _episodes.PUSH_LETS_GO,
            "learner_steps": list(_episodes.LEARNER_STEPS),
            "learner": recipe.learner,
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
    every = recipe.interrupt_every
    words += ["--interrupt-every", str(every)] if every else []
    return shlex.join([*words, *(["--learner", "CHECKPOINT"] if recipe.learner else [])])


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
