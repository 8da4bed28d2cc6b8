"""``asd-policy demos``: demonstrations of an expert, on its own or where a policy has driven."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from asd_policy.envs.demos import Summary, collect
from asd_policy.envs.stored import EpisodeModels, check_rendering, film
from asd_policy.envs.tasks import agreed_task, get_task
from asd_policy.errors import OutputExistsError
from asd_policy.policy import DiffusionPolicy
from asd_policy.policy.checkpoint import find_checkpoint, read_card
from asd_policy.samplers.calibration import DEFAULT_WINDOW


@dataclass(frozen=True)
class CheckpointLearner:
    """A policy that each process of a collection loads for itself: `LearnerSource`.

    Attributes:
        folder: of the checkpoint.
        sha256: of its weights.
    """

    folder: Path
    sha256: str

    @classmethod
    def of(cls, folder: Path, task: str) -> CheckpointLearner:
        """Raises CheckpointError if there is none, it is damaged, or is not for this task."""
        folder = find_checkpoint(folder)
        policy = DiffusionPolicy.load(folder)
        policy.check_observation_space(get_task(task).observation_keys)
        return cls(folder, str(policy.card["sha256"]))

    def load(self) -> DiffusionPolicy:
        """The policy, on one thread: the processes share the cores, and what is drawn must not
        depend on how many there are."""
        torch.set_num_threads(1)
        return DiffusionPolicy.load(self.folder, window=DEFAULT_WINDOW)


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main_collect(
    task: str | None = None,
    episodes: int = 200,
    noise: float = 0.1,
    interrupt_every: int = 0,
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
        task: Name of the task; None is the learner's, else lift.
        episodes: How many successful episodes to store.
        noise: Standard deviation of the noise on what is executed, in action units (0 to 1). The
            recorded action is the expert's own, so the data shows how to recover.
        interrupt_every: Interrupt the expert after this many steps, in the mean, again and again
            (0: never): the arm is pushed off in a random direction, and the data shows how to
            recover from more than noise.
        learner: Checkpoint folder (or name, if it ships) of a policy that drives in every other
            interruption, for 8 to 64 steps (DAgger): the data shows how to recover from its errors.
        seed: Seed of the whole collection; the same seed gives the same store.
        workers: Processes to run in parallel.
        out: Path of the store; outputs/demos/<task>.zarr when not given.
        hdf5: Also export to this path in robomimic's layout.
        figure: Also draw the variety of the demonstrations to this path (png, pdf or svg).
        render: Also film the first demonstration to this path (mp4); needs OpenGL.
    """
    own = None if learner is None else read_card(find_checkpoint(learner)).get("task")
    task = get_task(agreed_task(task, own, learner) or "lift").name
    out = Path("outputs/demos") / f"{task}.zarr" if out is None else out
    extras = {"HDF5": hdf5, "figure": figure, "film": render}
    _check_extras(extras)
    source = None if learner is None else CheckpointLearner.of(learner, task)
    try:
        summary = collect(
            task,
            episodes,
            noise,
            out,
            workers,
            seed,
            interrupt_every=interrupt_every,
            learner=source,
        )
    except KeyboardInterrupt:
        print(f"Stopped. What was finished is kept in {out}.partial; the same command goes on.")
        raise
    _write_extras(out, hdf5, figure, render)
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


def _write_extras(store: Path, hdf5: Path | None, figure: Path | None, render: Path | None) -> None:
    if hdf5 is not None:
        from asd_policy.data.robomimic_hdf5 import export_hdf5

        export_hdf5(store, hdf5, EpisodeModels(store))
    if figure is not None:
        from asd_policy.envs.variety import draw_variety

        draw_variety(store, figure)
    if render is not None:
        film(store, 0, render)


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
