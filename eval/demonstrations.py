"""Demonstrations as a user names them: a file, or a zarr store."""

from __future__ import annotations

from pathlib import Path

from asd_policy.data.replay import Replay, load_npz, load_replay
from asd_policy.data.zarr_store import ZarrStore
from asd_policy.errors import DatasetError


def load_demonstrations(path: Path) -> Replay:
    """A ``.npz`` file or a zarr store. Raises DatasetError."""
    if path.suffix == ".npz":
        return load_npz(path)
    return load_replay(path, store_keys(path))


def store_keys(path: Path) -> list[str]:
    """Observation keys of a zarr store that this package made. Raises DatasetError."""
    keys = ZarrStore(path).attributes.get("observation_keys")
    if not keys:
        raise DatasetError(
            f"{path}: expected a store that `asd-policy demos` wrote; it does not name its "
            "observation_keys"
        )
    return list(keys)
