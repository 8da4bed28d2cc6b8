"""Demonstrations as a user names them: a file, or a zarr store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from asd_policy.data.replay import Replay, load_npz, load_replay
from asd_policy.data.zarr_store import ZarrStore
from asd_policy.errors import DatasetError


def load_demonstrations(path: Path, seen: Sequence[str] = (), task: str | None = None) -> Replay:
    """A ``.npz`` file, a zarr store or robomimic's HDF5.

    Args:
        seen: observations of a policy; no others are read where all of these are there. Then the
            store may be a stranger's, and its actions in any units, as `asd-policy train
            --observations` takes them.
        task: of that policy, if it is one of the simulated ones.

    Raises:
        DatasetError: nothing that can be read.
    """
    own = bool(seen)
    if path.suffix in (".hdf5", ".h5"):
        return _load_hdf5(path, seen, task)
    if path.suffix == ".npz":
        replay = load_npz(path, own)
    else:
        replay = load_replay(path, store_keys(path, seen), own)
    if own and replay.observations.keys() >= set(seen):
        chosen = {key: replay.observations[key] for key in seen}
        replay = dataclasses.replace(replay, observations=chosen)
    return replay


def _load_hdf5(path: Path, seen: Sequence[str], task: str | None) -> Replay:
    from asd_policy.data.robomimic_hdf5 import read_hdf5
    from asd_policy.envs.tasks import TASKS

    if not seen:
        raise DatasetError(
            f"{path} does not say which of its observations a policy sees: expected a policy's "
            "folder among the networks, too"
        )
    return read_hdf5(path, list(seen), own=task not in TASKS)


def store_keys(path: Path, otherwise: Sequence[str] = ()) -> list[str]:
    """Observation keys of a zarr store that this package made, ``otherwise`` of a stranger's.
    Raises DatasetError where there are neither."""
    keys = ZarrStore(path).attributes.get("observation_keys") or otherwise
    if not keys:
        raise DatasetError(
            f"{path}: expected a store that `asd-policy demos` wrote; it does not name its "
            "observation_keys"
        )
    return list(keys)
