"""Demonstrations to and from HDF5 in the layout of robomimic's published low-dimensional datasets.

robomimic: Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation", 2021; the layout is that of its documentation, "Dataset structure".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.data import object_layout
from asd_policy.data.replay import Replay, check_replay
from asd_policy.errors import DatasetError, OutputExistsError

VALIDATION_SHARE = 0.1
# The robosuite in whose order `object` is, whatever `env_version` says. Files of this package say
# it: of those, `object` is that of the present state, right after a reset too.
OBJECT_LAYOUT, SIMULATED_LAYOUT = "1.4.1", "1.5"


def export_hdf5(
    zarr_path: str | Path, hdf5_path: str | Path, model_file: Callable[[int], str] | None = None
) -> None:
    """Write the demonstrations in `zarr_path` to a new file `hdf5_path`.

    `obs/object` is in the order of the robosuite that `env_args` says it is of (`env_version`), so
    that environments made from the file observe what it holds.

    `data/demo_<i>/`: `obs/<key>` (T, dim), `actions` (T, action_dim), `rewards` (T,), `dones`
    (T,), `states` (T, n), and two that robomimic does not know, `executed_actions` (T, action_dim)
    and `interrupted` (T,): `actions` are the expert's own, `executed_actions` what moved the robot,
    which in interrupted rows is something else altogether. Attributes
    `num_samples` and, if given, `model_file`. `data` has the attributes `total` and `env_args`;
    `mask/train` and `mask/valid` list episodes, one in ten held out.

    Args:
        zarr_path: a store that `asd_policy.envs.demos.collect` wrote.
        hdf5_path: the file to make; it appears when it is whole.
        model_file: gives the MuJoCo model (XML) of an episode by its number;
            `asd_policy.envs.stored.EpisodeModels` does. Needed to play states back.

    Raises:
        DatasetError: `zarr_path` is no such store.
        OutputExistsError: `hdf5_path` is there already.
    """
    import h5py

    root, hdf5_path = _open_store(Path(zarr_path)), Path(hdf5_path)
    if hdf5_path.exists():
        raise OutputExistsError(f"{hdf5_path} exists already; expected a path for a new file")
    hdf5_path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = hdf5_path.with_name(hdf5_path.name + ".tmp")
    try:
        with h5py.File(unfinished, "w") as file:
            _write(root, file, model_file)
        unfinished.rename(hdf5_path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_export_of(hdf5_path: Path, zarr_path: Path) -> bool:
    """Whether `hdf5_path` holds the episodes of the store `zarr_path`, and no others: the same
    actions at the same states. What else somebody added to the file does not matter."""
    import h5py

    root = _open_store(zarr_path)
    ends = np.asarray(root["meta/episode_ends"][:])
    try:
        with h5py.File(hdf5_path, "r") as file:
            if len(file["data"]) != len(ends):
                return False
            demos = [file[f"data/demo_{episode}"] for episode in range(len(ends))]
            return all(
                np.array_equal(
                    np.concatenate([np.asarray(demo[theirs]) for demo in demos]),
                    np.asarray(root[f"data/{ours}"][:]),
                )
                for theirs, ours in (("actions", "action"), ("states", "state"))
            )
    except (OSError, KeyError, ValueError):  # no HDF5, or of another kind
        return False


def _open_store(path: Path) -> Any:
    import zarr

    if not path.is_dir():
        raise DatasetError(f"{path}: expected a zarr store of demonstrations, found no folder")
    root = zarr.open_group(str(path), mode="r")
    wanted = ["data/action", "data/executed_action", "data/reward", "data/state"]
    missing = [name for name in [*wanted, "meta/episode_ends"] if name not in root]
    if missing or "env_args" not in root.attrs:
        raise DatasetError(
            f"{path}: expected a store that `asd-policy demos` wrote, missing: "
            f"{', '.join(missing) or 'the attribute env_args'}"
        )
    return root


def _write(root: Any, file: Any, model_file: Callable[[int], str] | None) -> None:
    ends = np.asarray(root["meta/episode_ends"][:])
    data = {name: np.asarray(root[f"data/{name}"][:]) for name in root["data"]}
    group = file.create_group("data")
    group.attrs["total"] = int(ends[-1])
    env_args = {**root.attrs["env_args"]}
    data, env_args = _as_simulated(data, env_args)
    group.attrs["env_args"] = json.dumps(env_args)
    keys = list(root.attrs["observation_keys"])
    for episode, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        demo = group.create_group(f"demo_{episode}")
        _write_episode(demo, {name: part[start:end] for name, part in data.items()}, keys)
        if model_file is not None:
            demo.attrs["model_file"] = model_file(episode)
    _write_masks(file, len(ends))


def _as_simulated(
    data: dict[str, np.ndarray], env_args: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Rows whose `object` is in the order of the robosuite that made them, and their `env_args`."""
    name = env_args.get("env_name")
    if "object" not in data or has_published_layout(env_args):
        return data, env_args
    if not object_layout.is_known(name):
        return data, {**env_args, "object_layout": OBJECT_LAYOUT}
    columns, signs = object_layout.from_published(str(name))
    rows = signs.astype(np.float32) * data["object"][:, columns]
    return {**data, "object": rows}, {**env_args, "object_layout": SIMULATED_LAYOUT}


def _write_episode(demo: Any, rows: dict[str, np.ndarray], keys: list[str]) -> None:
    length = len(rows["action"])
    demo.attrs["num_samples"] = length
    for key in keys:
        demo[f"obs/{key}"] = rows[key]
    demo["actions"] = rows["action"]
    demo["executed_actions"] = rows["executed_action"]
    if "interrupted" in rows:  # in stores as old as Lift's there are no interruptions
        demo["interrupted"] = rows["interrupted"]
    demo["rewards"] = rows["reward"]
    # robomimic's done mode 2: at success, and at the end.
    demo["dones"] = ((rows["reward"] > 0) | (np.arange(length) == length - 1)).astype(np.int64)
    demo["states"] = rows["state"]


def _write_masks(file: Any, episodes: int) -> None:
    order = np.random.default_rng(0).permutation(episodes)
    held_out = {int(i) for i in order[: int(VALIDATION_SHARE * episodes)]}
    for name, chosen in (
        ("train", [i for i in range(episodes) if i not in held_out]),
        ("valid", sorted(held_out)),
    ):
        file[f"mask/{name}"] = np.array([f"demo_{i}" for i in chosen], dtype="S")


def read_hdf5(
    path: str | Path, observation_keys: Sequence[str], filter_key: str | None = None
) -> Replay:
    """Demonstrations of a robomimic dataset (low-dimensional), in the order of their numbers.

    Args:
        observation_keys: those to read, in order.
        filter_key: "train", "valid" … reads the episodes of `mask/<filter_key>`; None, all.

    Raises:
        DatasetError: no such file or filter key, missing arrays, no episodes, non-finite values,
            actions outside [-1, 1], or `object` in robosuite 1.5's order of a task that is not
            known here; of those that are, it is put into the published order.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no dataset at {path}")
    try:
        with h5py.File(path, "r") as file:
            env_args = json.loads(file["data"].attrs["env_args"])
            names = _episodes(file, filter_key, path)
            demos = [_read_episode(file["data"][name], observation_keys, path) for name in names]
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is no robomimic dataset: {error}") from error
    _check_episodes(dict(zip(names, demos, strict=True)), observation_keys, path)
    observations = {key: np.concatenate([demo[key] for demo in demos]) for key in observation_keys}
    if "object" in observations and not has_published_layout(env_args):
        observations["object"] = _published(observations["object"], env_args, path)
    replay = Replay(
        observations,
        np.concatenate([demo["actions"] for demo in demos]),
        np.cumsum([len(demo["actions"]) for demo in demos]),
        np.concatenate([demo["interrupted"] for demo in demos]),
        {"format": "robomimic HDF5", "filter_key": filter_key, "env_args": env_args},
    )
    check_replay(replay, path)
    return replay


def _published(rows: np.ndarray, env_args: Mapping[str, Any], path: Path) -> np.ndarray:
    """(T, dim) in robosuite 1.5's order, in that of published data."""
    name = env_args.get("env_name")
    columns, signs = (
        object_layout.to_published(str(name)) if object_layout.is_known(name) else ((), ())
    )
    if not len(columns) or rows.shape[1] != len(columns):
        raise DatasetError(
            f"{path} was made on robosuite {env_args.get('env_version')}, whose observation "
            "'object' has another order than published data (robosuite 1.4.1), and how it is "
            f"translated is not known for {name!r} with {rows.shape[1]} numbers"
        )
    return np.asarray(signs, np.float32) * rows[:, columns]


def _episodes(file: Any, filter_key: str | None, path: Path) -> list[str]:
    names = list(file["data"])
    if filter_key is not None:
        masks = list(file["mask"]) if "mask" in file else []
        if filter_key not in masks:
            there = ", ".join(masks) or "none"
            raise DatasetError(f"{path} has no filter key {filter_key!r}; there are: {there}")
        names = [name.decode() for name in file[f"mask/{filter_key}"][:]]
    if not names:
        raise DatasetError(f"{path} holds no episodes (filter key {filter_key!r})")
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _read_episode(demo: Any, keys: Sequence[str], path: Path) -> dict[str, np.ndarray]:
    wanted = {"actions": "actions", **{key: f"obs/{key}" for key in keys}}
    missing = [name for name in wanted.values() if name not in demo]
    if missing:
        there = ", ".join(demo["obs"]) if "obs" in demo else "none"
        raise DatasetError(
            f"{path}: {demo.name} lacks {', '.join(missing)}; its observations are: {there}"
        )
    arrays = {key: np.asarray(demo[name], np.float32) for key, name in wanted.items()}
    length = len(arrays["actions"])
    marks = demo["interrupted"] if "interrupted" in demo else np.zeros(length)
    return {**arrays, "interrupted": np.asarray(marks, bool)}


def has_published_layout(env_meta: Mapping[str, Any]) -> bool:
    """Whether ``object`` is in robosuite 1.4.1's order: its datasets' own, and what this package
    writes (which says so in ``object_layout``)."""
    if "object_layout" in env_meta:
        return bool(env_meta["object_layout"] == OBJECT_LAYOUT)
    version = str(env_meta.get("env_version") or "1.4").split(".")[:2]
    return [int(part) for part in version] < [1, 5]


def _check_episodes(
    demos: Mapping[str, Mapping[str, np.ndarray]], keys: Sequence[str], path: Path
) -> None:
    """Raise DatasetError, naming the episode, unless each has as many rows of everything as actions
    and as many numbers in a row as the first one."""
    first, widths = next(iter(demos.items()), ("", {}))
    for name, demo in demos.items():
        rows = len(demo["actions"])
        for key in (*keys, "actions", "interrupted"):
            expected = (rows, *widths[key].shape[1:])
            if demo[key].shape != expected:
                raise DatasetError(
                    f"{path}: {key} of {name} has shape {demo[key].shape}, expected {expected}, as "
                    f"its actions have {rows} rows and {first} has {expected[1:]} in a row"
                )
