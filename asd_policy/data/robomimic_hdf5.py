"""Demonstrations to HDF5 in the layout of robomimic's published low-dimensional datasets.

robomimic: Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation", 2021; the layout is that of its documentation, "Dataset structure".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.errors import DatasetError, OutputExistsError

VALIDATION_SHARE = 0.1


def export_hdf5(
    zarr_path: str | Path, hdf5_path: str | Path, model_file: Callable[[int], str] | None = None
) -> None:
    """Write the demonstrations in `zarr_path` to a new file `hdf5_path`.

    `data/demo_<i>/`: `obs/<key>` (T, dim), `actions` (T, action_dim), `rewards` (T,), `dones`
    (T,), `states` (T, n), and `executed_actions` (T, action_dim), which robomimic does not know:
    `actions` are the expert's own, `executed_actions` what moved the robot. Attributes
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
    with h5py.File(unfinished, "w") as file:
        _write(root, file, model_file)
    unfinished.rename(hdf5_path)


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
    group.attrs["env_args"] = json.dumps(root.attrs["env_args"])
    keys = list(root.attrs["observation_keys"])
    for episode, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        demo = group.create_group(f"demo_{episode}")
        _write_episode(demo, {name: part[start:end] for name, part in data.items()}, keys)
        if model_file is not None:
            demo.attrs["model_file"] = model_file(episode)
    _write_masks(file, len(ends))


def _write_episode(demo: Any, rows: dict[str, np.ndarray], keys: list[str]) -> None:
    length = len(rows["action"])
    demo.attrs["num_samples"] = length
    for key in keys:
        demo[f"obs/{key}"] = rows[key]
    demo["actions"] = rows["action"]
    demo["executed_actions"] = rows["executed_action"]
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
