"""Demonstrations of a task, whatever file holds them, as a policy of that task sees them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from asd_policy.data.replay import HDF5_FORMAT, OWN_FORMAT, Replay, load_npz, load_replay
from asd_policy.data.robomimic_hdf5 import OBJECT_LAYOUT, in_published_order, read_hdf5
from asd_policy.envs.described import differences
from asd_policy.envs.tasks import TASKS, Task
from asd_policy.errors import DatasetError, InputError
from asd_policy.policy.checkpoint import difference_table

# Formats whose ``object`` is in published order, whatever robosuite they name.
_IN_ORDER = (OWN_FORMAT, HDF5_FORMAT)


def load_demonstrations(data: Path, task: Task, filter_key: str | None = None) -> Replay:
    """Observations in the task's order, ``object`` in that of published data.

    Args:
        data: a zarr store (a folder, or one as a zip), the same as one ``.npz``, or robomimic's
            HDF5. filter_key: of the latter.

    Raises:
        DatasetError: nothing that can be read; observations or actions of other sizes than the
            task's (all differences in one table); another robot, controller or rate.
        InputError: demonstrations of another task, or a filter key for another file.
    """
    replay = _read(data, list(task.observation_keys), filter_key)
    env_args = _as_mapping(replay.attributes.get("env_args"))
    others = {each.robosuite_name: each.name for each in TASKS.values()}
    made = others.get(str(env_args.get("env_name", "")), task.name)  # a stranger's may be any's
    if made != task.name:
        raise InputError(f"--task {task.name}: {data} holds demonstrations of {made}")
    if other := differences(env_args, task):
        raise DatasetError(
            f"{data} was recorded in another environment than that of the task {task.name!r}, "
            f"where its policy would act:\n{other}"
        )
    sizes = {key: rows.shape[1:] for key, rows in replay.observations.items()}
    table = difference_table(
        {key: (dim,) for key, dim in {**task.observation_keys, "action": task.action_dim}.items()},
        {**sizes, "action": replay.actions.shape[1:]},
    )
    if table:
        raise DatasetError(f"{data} does not hold what {task.name} is seen and moved by:\n{table}")
    if replay.attributes.get("format") in _IN_ORDER:
        return replay
    rows = in_published_order(replay.observations["object"], env_args, data)
    if rows is replay.observations["object"]:
        return replay
    return replace(
        replay,
        observations={**replay.observations, "object": rows},
        attributes=replay.attributes
        | {"env_args": {**env_args, "object_layout": OBJECT_LAYOUT}},  # not to be translated again
    )


def load_own(data: Path, observations: Sequence[str], filter_key: str | None = None) -> Replay:
    """Demonstrations of a robot that is none of the tasks': the observations that are named, in
    that order, and actions in whatever units they have.

    Raises:
        DatasetError, InputError: as :func:`load_demonstrations`, but for what is a task's.
    """
    return _read(data, list(observations), filter_key, own=True)


def _read(data: Path, keys: list[str], filter_key: str | None, own: bool = False) -> Replay:
    if data.suffix in (".hdf5", ".h5"):
        return read_hdf5(data, keys, filter_key, own)
    if filter_key is not None:
        raise InputError(f"--filter-key is for robomimic's HDF5 files; {data} is none")
    if data.suffix != ".npz":
        return load_replay(data, keys, own)
    replay = load_npz(data, own)
    missing = [key for key in keys if key not in replay.observations]
    if missing:
        raise DatasetError(f"{data} lacks the observations {', '.join(missing)}")
    return replace(replay, observations={key: replay.observations[key] for key in keys})


def _as_mapping(env_args: Any) -> Mapping[str, Any]:
    """Of a store's attribute, which in those made of robomimic's files may be JSON as text; nothing
    where it says something else."""
    if isinstance(env_args, str):
        with suppress(ValueError):
            env_args = json.loads(env_args)
    return env_args if isinstance(env_args, dict) else {}


def data_card(replay: Replay) -> dict[str, Any]:
    """What a checkpoint's card says of the demonstrations."""
    return {
        "episodes": len(replay.episode_ends),
        "rows": len(replay.actions),
        "store": _as_json_knows(replay.attributes),
    }


def _as_json_knows(value: Any) -> Any:
    """Numbers that JSON has none for (NaN, ∞), as text."""
    if isinstance(value, dict):
        return {key: _as_json_knows(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json_knows(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
