"""What a command is about: a checkpoint and its task, each known from the other."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, TypeVar

from asd_policy.checkpoints import find_checkpoint, shipped
from asd_policy.envs.tasks import TASKS, agreed_task, get_task
from asd_policy.errors import CheckpointError
from asd_policy.samplers.names import sampler_form

ROBOMIMIC_SUFFIX = ".pth"
DEFAULT_TASK = "lift"

Options = TypeVar("Options", bound=Any)


def with_its_task(options: Options) -> Options:
    """Options that have a `task` and a `checkpoint`, with the name of the task they mean.

    Steps of ddim that were not asked for are those of a robomimic checkpoint that has some.

    Raises: as `chosen_task`.
    """
    task = chosen_task(options.task, options.checkpoint)
    steps = None if options.checkpoint is None else _ddim_steps_of(options.checkpoint)
    names = {field.name: field.default for field in dataclasses.fields(options)}
    if steps is not None and getattr(options, "ddim_steps", None) == names.get("ddim_steps", 0):
        options = dataclasses.replace(options, ddim_steps=steps)
    return dataclasses.replace(options, task=task)


def other_sampler(options: Any) -> str | None:
    """A sentence where the checkpoint is configured for DDIM and none of the samplers is it."""
    steps = None if options.checkpoint is None else _ddim_steps_of(options.checkpoint)
    if steps is None or any(sampler_form(name)["name"] == "ddim" for name in options.samplers):
        return None
    return (
        f"{options.checkpoint} is configured for DDIM in {steps} steps, and {_listed(options)} "
        "another distribution of actions, on the chain that its network was trained for; "
        "`--samplers ddim` samples it as it is configured"
    )


def _listed(options: Any) -> str:
    names = options.samplers
    return f"{' and '.join(names)} sample{'s' * (len(names) == 1)}"


def chosen_task(asked: str | None, checkpoint: Path | None) -> str:
    """The task that was asked for, else the checkpoint's, else "lift"; by its name in `TASKS`.

    Raises:
        ValueError: an unknown task, or another than the checkpoint's.
        CheckpointError: the checkpoint cannot be read, or was trained in an environment that is not
            among the tasks.
    """
    own = None if checkpoint is None else task_of(checkpoint)
    return get_task(agreed_task(asked, own, checkpoint) or DEFAULT_TASK).name


def task_of(checkpoint: Path) -> str | None:
    """What a checkpoint was trained for, as its card or its file says; None where a card does not.

    Raises:
        CheckpointError: it cannot be read, or is of none of the tasks here: robomimic's of another,
            one that sees what a robot of its owner's does.
    """
    if checkpoint.suffix == ROBOMIMIC_SUFFIX:
        return _task_of_robomimic(checkpoint)
    from asd_policy.integrations.loaders import is_lerobot
    from asd_policy.policy.checkpoint import read_card

    folder = find_checkpoint(checkpoint)
    if is_lerobot(folder):
        raise CheckpointError(
            f"{checkpoint} is a policy of LeRobot's, and no task here has its observations: "
            "`python -m asd_policy.integrations.lerobot eval` rolls it out in LeRobot's "
            "environments, and `asd-policy serve` serves it"
        )
    card = read_card(folder)
    task: str | None = card.get("task")
    if task is None:
        _check_seen(checkpoint, card)
    return task


def _check_seen(checkpoint: Path, card: dict[str, Any]) -> None:
    """Of a card that names no task: it sees what the robot of one does."""
    seen = {key["name"]: math.prod(key["shape"]) for key in card["policy"]["observation_keys"]}
    if not any(seen == task.observation_keys for task in TASKS.values()):
        told = ", ".join(f"{name} ({size},)" for name, size in seen.items())
        raise CheckpointError(
            f"{checkpoint} is of a robot that is not simulated here: it sees {told}, as none of "
            f"the tasks does. DiffusionPolicy.load({str(checkpoint)!r}) drives it, in an "
            "environment of your own too, and `asd-policy serve` serves it"
        )


def checkpoint_of(options: Any) -> Path:
    """The file or folder of options that have a `checkpoint`, or none and the `task` of one that
    ships. Raises CheckpointError where none does."""
    if options.checkpoint is None:
        return shipped(options.task)
    return find_checkpoint(options.checkpoint)


def _ddim_steps_of(checkpoint: Path) -> int | None:
    """Steps of a robomimic file, or of what was converted from one, that is configured for DDIM;
    None of other checkpoints."""
    from asd_policy.integrations.robomimic_checkpoint import read_checkpoint
    from asd_policy.integrations.robomimic_format import ddim_steps
    from asd_policy.policy.checkpoint import read_card

    if checkpoint.suffix != ROBOMIMIC_SUFFIX:
        config = read_card(find_checkpoint(checkpoint)).get("robomimic_config")
        return None if config is None else ddim_steps(config["algo"])
    try:
        return ddim_steps(read_checkpoint(checkpoint).config["algo"])
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


def _task_of_robomimic(path: Path) -> str:
    from asd_policy.data.robomimic_hdf5 import has_published_layout
    from asd_policy.integrations.robomimic_checkpoint import read_checkpoint
    from asd_policy.integrations.robomimic_convert import task_name

    file = read_checkpoint(path)
    metadata = file.content["env_metadata"]
    task = task_name(metadata)
    if task is None:
        name = metadata.get("env_name") if isinstance(metadata, dict) else metadata
        raise CheckpointError(
            f"{path} was trained in {name!r}; expected one of: "
            f"{', '.join(task.robosuite_name for task in TASKS.values())}"
        )
    if file.image_keys and "object" in file.shapes and not has_published_layout(metadata):
        raise CheckpointError(
            f"{path} sees pictures, and 'object' in the order of robosuite "
            f"{metadata.get('env_version')}, which is another than that of the tasks here "
            "(robosuite 1.4.1, as in published data); robomimic's own run_trained_agent can roll "
            "it out"
        )
    return task
