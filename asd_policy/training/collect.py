"""``asd-policy demos``: demonstrations of an expert, on its own or where a policy has driven.

The simulator and PyTorch take seconds to load: they are loaded where they are needed, and that is
said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from asd_policy.envs.tasks import agreed_task, get_task
from asd_policy.envs.workers import available_cores
from asd_policy.errors import InputError, OutputExistsError
from asd_policy.files import check_writable, writing
from asd_policy.progress import Stage

if TYPE_CHECKING:
    from asd_policy.envs.demos import Summary
    from asd_policy.envs.recipe import Recipe
    from asd_policy.policy import DiffusionPolicy

EPISODES = 200  # where neither the user nor what is there says another number


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
        from asd_policy.policy import DiffusionPolicy
        from asd_policy.policy.checkpoint import find_checkpoint

        folder = find_checkpoint(folder)
        policy = DiffusionPolicy.load(folder)
        policy.check_observation_space(get_task(task).observation_keys)
        get_task(task).check_action_dim(policy.action_dim, folder)
        return cls(folder, str(policy.card["sha256"]))

    def load(self) -> DiffusionPolicy:
        """The policy, on one thread: the processes share the cores, and what is drawn must depend
        neither on how many there are, nor on which engine was timed to be the fastest."""
        import torch

        from asd_policy.policy import DiffusionPolicy
        from asd_policy.samplers.acceptance import DEFAULT_WINDOW

        torch.set_num_threads(1)
        return DiffusionPolicy.load(self.folder, window=DEFAULT_WINDOW, engine="eager")


def main_collect(
    task: Annotated[str | None, arg(metavar="NAME")] = None,
    episodes: Annotated[int | None, arg(metavar="INT")] = None,
    noise: Annotated[float | None, arg(metavar="FLOAT")] = None,
    interrupt_every: Annotated[int | None, arg(metavar="INT")] = None,
    learner: Annotated[Path | None, arg(metavar="NAME|DIR")] = None,
    seed: Annotated[int | None, arg(metavar="INT")] = None,
    workers: int = available_cores(),
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    hdf5: Annotated[Path | None, arg(metavar="FILE.hdf5")] = None,
    figure: Annotated[Path | None, arg(metavar="FILE")] = None,
    render: Annotated[Path | None, arg(metavar="FILE.mp4")] = None,
) -> None:
    """Collect demonstrations of a scripted expert into a zarr store, or let a store grow.

    A store that is there is plotted, filmed or exported without being made again, and grows where
    --episodes is larger. Options that are left out are taken from it. A run that was stopped,
    however rudely, goes on where it was when the same command is given again. Failed attempts are
    dropped, counted and replaced.

    Args:
        task: The task to demonstrate; None is the store's or the learner's, else lift.
        episodes: How many successful episodes the store is to have; None is as many as it has, 200
            for a new one.
        noise: Standard deviation of the noise on what is executed, in action units, 0 to 1; None
            is the store's, 0.1 for a new one. The recorded action is the expert's own, so that the
            data shows how to recover.
        interrupt_every: Interrupt the expert again and again, after so many steps in the mean, and
            push the arm off in a random direction; the data then shows how to recover from more
            than noise. None is the store's, never for a new one (0).
        learner: A policy that drives in every other interruption, for 8 to 64 steps (DAgger): the
            data shows how to recover from its errors. The name of one that ships, or a checkpoint
            folder.
        seed: Seed of the whole collection; the same seed gives the same store. None is the
            store's, 0 for a new one.
        workers: How many processes run in parallel.
        out: The store; None is outputs/demos/<task>.zarr.
        hdf5: Also export the demonstrations to this file, in robomimic's layout.
        figure: Also plot the variety of the demonstrations to this file (png, pdf or svg).
        render: Also film the first demonstration to this file; needs OpenGL.
    """
    task = agreed_task(task, _trained_task(learner), learner)
    out = Path("outputs/demos") / f"{task or 'lift'}.zarr" if out is None else out
    extras = {"HDF5": hdf5, "figure": figure, "film": render}
    _check_extras(figure, render, hdf5)
    with Stage("loading the simulator"):
        from asd_policy.envs import demos
    there = demos.standing(out)
    source = None
    if learner is not None:
        with Stage("loading the policy"):
            source = CheckpointLearner.of(learner, task or (there[0].task if there else "lift"))
    given = {"task": task, "noise": noise, "seed": seed, "interrupt_every": interrupt_every}
    given["learner"] = None if source is None else source.sha256
    recipe = _completed(given, None if there is None else there[0])
    if episodes is None:
        episodes = EPISODES if there is None else there[1]
    _check_hdf5(hdf5, out, episodes)
    try:
        summary = demos.make_store(recipe, episodes, out, workers, source)
    except KeyboardInterrupt:
        print(demos.what_is_kept(out))
        raise
    try:
        _write_extras(summary, hdf5, figure, render)
    except KeyboardInterrupt:
        print(f"Stopped. {out} is whole; the same command makes what is missing.")
        raise
    _print_summary(summary, extras)


def _trained_task(learner: Path | None) -> str | None:
    """What a policy was trained for, if there is one and its card says it."""
    if learner is None:
        return None
    from asd_policy.policy.checkpoint import find_checkpoint, read_card

    task: str | None = read_card(find_checkpoint(learner)).get("task")
    return task


def _completed(given: dict[str, Any], there: Recipe | None) -> Recipe:
    """The recipe, of what the user gave, and else of what is there."""
    from asd_policy.envs.recipe import Recipe

    base = Recipe() if there is None else there
    if given["interrupt_every"] == 0:  # then nobody drives in interruptions either
        base = replace(base, interrupt_every=0, learner=None)
    return replace(base, **{key: value for key, value in given.items() if value is not None})


def _check_extras(figure: Path | None, render: Path | None, hdf5: Path | None) -> None:
    """Refuse before the collection what would fail after it."""
    for path in (figure, render, hdf5):
        if path is not None:
            check_writable(path)
            if path.is_dir():
                raise OutputExistsError(f"{path} is a folder; expected a path for a file")
    if figure is not None and figure.suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"expected a figure ending in .png, .pdf or .svg, got {figure}")
    if render is not None:
        if render.suffix != ".mp4":
            raise InputError(f"expected a film ending in .mp4, got {render}")
        with Stage("looking for OpenGL"):
            from asd_policy.envs.stored import check_rendering

            check_rendering()


def _check_hdf5(path: Path | None, store: Path, episodes: int) -> None:
    """People add to such files: one that is there is kept if it is of this store, else refused."""
    if path is None or not path.exists():
        return
    from asd_policy.data.robomimic_hdf5 import is_export_of
    from asd_policy.envs.store import read_store

    kept = read_store(store)
    if kept is None or len(kept.numbers) != episodes or not is_export_of(path, store):
        raise OutputExistsError(
            f"{path} exists already, and does not hold the {episodes} episodes of {store}; "
            "expected a path for a new file"
        )
    print(f"{path} holds these episodes already, and is left as it is.")


def _write_extras(
    summary: Summary, hdf5: Path | None, figure: Path | None, render: Path | None
) -> None:
    store = summary.path
    if hdf5 is not None and not hdf5.exists():
        from asd_policy.data.robomimic_hdf5 import export_hdf5
        from asd_policy.envs.stored import StoredEpisodes

        with Stage(f"exporting to {hdf5}", summary.episodes) as stage, writing(hdf5):
            models = StoredEpisodes(store).model
            export_hdf5(store, hdf5, lambda episode: _told(stage, episode, models))
            stage.update(summary.episodes)
    if figure is not None:
        with Stage(f"plotting {figure}"), writing(figure):
            from asd_policy.envs.variety import draw_variety

            draw_variety(store, figure)
    if render is not None:
        from asd_policy.envs.stored import film

        pictures = int(summary.lengths[0]) + 1
        with Stage(f"filming {render}", pictures) as stage, writing(render):
            film(store, 0, render, report=lambda done, total: stage.update(done))


def _told(stage: Stage, episode: int, models: Callable[[int], str]) -> str:
    stage.update(episode)
    return models(episode)


def _print_summary(summary: Summary, extras: dict[str, Path | None]) -> None:
    from rich.table import Table
    from rich.text import Text

    from asd_policy.console import plain_console

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
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))  # a path may look like markup
    plain_console().print(table)
