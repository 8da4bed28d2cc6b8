"""Demonstrations to and from HDF5 in the layout of robomimic's published low-dimensional datasets.

robomimic: Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation", 2021; the layout is that of its documentation, "Dataset structure".
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.data import object_layout
from asd_policy.data.replay import HDF5_FORMAT, Replay, checked_replay
from asd_policy.data.zarr_store import ZarrStore, reason
from asd_policy.errors import DatasetError, OutputExistsError
from asd_policy.files import replacing

VALIDATION_SHARE = 0.1
_NUMBERED = re.compile(r".*_[0-9]+", re.DOTALL)  # the name of an episode
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
            `asd_policy.envs.stored.StoredEpisodes.model` does. Needed to play states back.

    Raises:
        DatasetError: `zarr_path` is no such store.
        OutputExistsError: `hdf5_path` is there already.
        OutputError: it cannot be written.
    """
    import h5py

    store, hdf5_path = _open_store(Path(zarr_path)), Path(hdf5_path)
    if hdf5_path.exists():
        raise OutputExistsError(f"{hdf5_path} exists already; expected a path for a new file")
    # In memory first: of a disk that is full HDF5 speaks on stderr, object by object.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        _write(store, file, model_file)
    with replacing(hdf5_path) as whole:
        whole.write(content.getbuffer())


def is_export_of(hdf5_path: Path, zarr_path: Path) -> bool:
    """Whether `hdf5_path` holds the episodes of the store `zarr_path`, and no others: the same
    actions at the same states. What else somebody added to the file does not matter."""
    import h5py

    store = _open_store(zarr_path)
    ends = store.read("meta/episode_ends")
    ours = {name: store.read(f"data/{name}") for name in ("action", "state")}
    try:
        with h5py.File(hdf5_path, "r") as file:
            if len(file["data"]) != len(ends):
                return False
            demos = [file[f"data/demo_{episode}"] for episode in range(len(ends))]
            theirs = {n: np.concatenate([np.asarray(d[f"{n}s"]) for d in demos]) for n in ours}
            return all(np.array_equal(theirs[name], rows) for name, rows in ours.items())
    except (OSError, RuntimeError, LookupError, ValueError, TypeError):  # of another kind, damaged
        return False


def _open_store(path: Path) -> ZarrStore:
    if not path.exists():
        raise DatasetError(f"{path}: expected a zarr store of demonstrations, found no folder")
    store = ZarrStore(path)
    wanted = ["data/action", "data/executed_action", "data/reward", "data/state"]
    missing = [name for name in [*wanted, "meta/episode_ends"] if name not in store]
    if missing or "env_args" not in store.attributes:
        raise DatasetError(
            f"{path}: expected a store that `asd-policy demos` wrote, missing: "
            f"{', '.join(missing) or 'the attribute env_args'}"
        )
    return store


def _write(store: ZarrStore, file: Any, model_file: Callable[[int], str] | None) -> None:
    ends = store.read("meta/episode_ends")
    data = {name: store.read(f"data/{name}") for name in store.names("data")}
    group = file.create_group("data")
    group.attrs["total"] = int(ends[-1])
    env_args = {**store.attributes["env_args"]}
    data, env_args = _as_simulated(data, env_args)
    group.attrs["env_args"] = json.dumps(env_args)
    keys = list(store.attributes["observation_keys"])
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
    path: str | Path,
    observation_keys: Sequence[str],
    filter_key: str | None = None,
    own: bool = False,
) -> Replay:
    """Demonstrations of a robomimic dataset (low-dimensional), in the order of their numbers.

    Args:
        observation_keys: those to read, in order.
        filter_key: "train", "valid" … reads the episodes of `mask/<filter_key>`; None, all.
        own: of a robot of one's own: `object` stays as it is, and actions may be any.

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
            data = _group(file, "data", path)
            described = "env_args" in data.attrs or not own  # a robot may have no environment
            env_args = _env_args(data, path) if described else {}
            names = _episodes(file, data, filter_key, path)
            demos = {name: _read_episode(data, name, observation_keys, path) for name in names}
    except DatasetError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:  # HDF5's own
        raise DatasetError(
            f"{path} is no robomimic dataset, or a damaged one: {reason(error)}"
        ) from error
    _check_episodes(demos, path)
    parts = list(demos.values())
    observations = {
        key: np.concatenate([demo[f"obs/{key}"] for demo in parts]) for key in observation_keys
    }
    if "object" in observations and not own:
        observations["object"] = in_published_order(observations["object"], env_args, path)
    replay = Replay(
        observations,
        np.concatenate([demo["actions"] for demo in parts]),
        np.cumsum([len(demo["actions"]) for demo in parts]),
        np.concatenate([demo["interrupted"] for demo in parts]),
        {"format": HDF5_FORMAT, "filter_key": filter_key, "env_args": env_args},
    )
    return checked_replay(replay, path, names, prefix="", own=own)


def _group(parent: Any, name: str, path: Path) -> Any:
    """A group of the file; DatasetError if something else is there, or nothing."""
    import h5py

    if not isinstance(parent.get(name), h5py.Group):
        found = "something else" if name in parent else "none"
        raise DatasetError(
            f"{path} is no robomimic dataset: expected a group {name!r} in {parent.name!r}, "
            f"found {found}"
        )
    return parent[name]


def _env_args(data: Any, path: Path) -> dict[str, Any]:
    """The environment's description, an attribute of `data`."""
    text = data.attrs.get("env_args")
    try:
        env_args = json.loads(text)
    except (TypeError, ValueError):
        env_args = None
    if not isinstance(env_args, dict):
        raise DatasetError(
            f"{path} is no robomimic dataset: expected the attribute 'env_args' of 'data' to be a "
            f"JSON object, found {str(text)[:40]!r}"
        )
    return env_args


def in_published_order(rows: np.ndarray, env_args: Mapping[str, Any], path: Path) -> np.ndarray:
    """(T, dim) ``object`` as the environment that `env_args` describes gives it, in the order of
    published data.

    Raises:
        DatasetError: a version that is none of robosuite's, or 1.5's order of an environment for
            which it is not known.
    """
    try:
        if has_published_layout(env_args):
            return rows
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
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


def _episodes(file: Any, data: Any, filter_key: str | None, path: Path) -> list[str]:
    """Names of the episodes to read, in the order of their numbers."""
    names = list(data) if filter_key is None else _masked(file, data, filter_key, path)
    if not names:
        raise DatasetError(f"{path} holds no episodes (filter key {filter_key!r})")
    odd = [name for name in names if not _NUMBERED.fullmatch(name)]
    if odd:
        raise DatasetError(
            f"{path}: expected episodes that are named demo_0, demo_1 …, found {_some(odd)}; "
            "rename or remove what is none, or choose episodes by a filter key"
        )
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _masked(file: Any, data: Any, filter_key: str, path: Path) -> list[str]:
    """Names of the episodes that a filter key chooses."""
    masks = _group(file, "mask", path) if "mask" in file else {}
    if filter_key not in masks:
        there = ", ".join(masks) or "none"
        raise DatasetError(f"{path} has no filter key {filter_key!r}; there are: {there}")
    mask = masks[filter_key]
    found = f"values of type {mask.dtype}" if hasattr(mask, "dtype") else "a group"
    entries: list[Any] = [None]
    if hasattr(mask, "dtype"):
        entries = np.asarray(mask[()]).ravel().tolist()
    if not all(isinstance(entry, (bytes, str)) for entry in entries):
        raise DatasetError(
            f"{path}: mask/{filter_key} holds {found}, expected names of episodes (demo_0, "
            "demo_1 …)"
        )
    names = [n.decode(errors="replace") if isinstance(n, bytes) else n for n in entries]
    absent = [name for name in names if name not in data]
    if absent:
        raise DatasetError(
            f"{path}: mask/{filter_key} names {_some(absent)}, which the file does not hold (it "
            f"has {_some(list(data))}); write the mask anew, or choose another filter key"
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DatasetError(
            f"{path}: mask/{filter_key} names {_some(twice)} more than once; write the mask anew"
        )
    return names


def _some(names: Sequence[str]) -> str:
    """Names, as many as one can take in."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _read_episode(data: Any, name: str, keys: Sequence[str], path: Path) -> dict[str, np.ndarray]:
    """Arrays of an episode by their names in it: ``obs/actions`` is an observation like others."""
    demo = _group(data, name, path)
    wanted = ["actions", *(f"obs/{key}" for key in keys)]
    missing = [there for there in wanted if there not in demo]
    if missing:
        there = ", ".join(demo["obs"]) if "obs" in demo else "none"
        raise DatasetError(
            f"{path}: {demo.name} lacks {', '.join(missing)}; its observations are: {there}"
        )
    arrays = {there: _read_array(demo, there, path) for there in wanted}
    if "interrupted" in demo:
        arrays["interrupted"] = _read_array(demo, "interrupted", path)
    else:
        arrays["interrupted"] = np.zeros(arrays["actions"].shape[:1], bool)
    return arrays


def _read_array(demo: Any, name: str, path: Path) -> np.ndarray:
    """An array of an episode, whole."""
    dataset = demo[name]
    found = getattr(dataset, "dtype", None)  # a group has none
    if found is None or found.kind not in "biuf":
        raise DatasetError(
            f"{path}: {demo.name}/{name} holds {found or 'a group'}, expected numbers"
        )
    try:
        return np.asarray(dataset[()])
    except (OSError, RuntimeError, ValueError) as error:  # HDF5's own
        raise DatasetError(
            f"{path}: {demo.name}/{name} is damaged and cannot be read: {reason(error)}"
        ) from error


def has_published_layout(env_meta: Mapping[str, Any]) -> bool:
    """Whether ``object`` is in robosuite 1.4.1's order: its datasets' own, and what this package
    writes (which says so in ``object_layout``). Where no version is said, it is: the first datasets
    say none.

    Raises:
        DatasetError: the version is none that robosuite has.
    """
    if "object_layout" in env_meta:
        return bool(env_meta["object_layout"] == OBJECT_LAYOUT)
    version = env_meta.get("env_version")
    if version is None or version == "":
        return True
    found = re.match(r"v?(\d+)\.(\d+)", str(version).strip())
    if found is None:
        raise DatasetError(
            f"env_version is {version!r}, which does not say in which robosuite's order 'object' "
            "is; expected a release, such as '1.4.1' or '1.5.1'"
        )
    return (int(found[1]), int(found[2])) < (1, 5)


def _check_episodes(demos: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Raise DatasetError, naming the episode, unless each has as many rows of everything as actions
    and as many numbers in a row as the first one."""
    first, widths = next(iter(demos.items()))
    for key, values in widths.items():
        if key != "interrupted" and values.ndim != 2:
            raise DatasetError(
                f"{path}: {key} of {first} has shape {values.shape}, expected (rows, dim)"
            )
    for name, demo in demos.items():
        rows = len(np.atleast_1d(demo["actions"]))
        if not rows:
            raise DatasetError(f"{path}: {name} is empty, expected one action or more")
        for key, values in widths.items():
            expected = (rows, *values.shape[1:])
            if demo[key].shape != expected:
                raise DatasetError(
                    f"{path}: {key} of {name} has shape {demo[key].shape}, expected {expected}, as "
                    f"its actions have {rows} rows and {first} has {expected[1:]} in a row"
                )
