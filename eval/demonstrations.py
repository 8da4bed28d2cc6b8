"""Demonstrations as a user names them: a file, or a zarr store."""

from __future__ import annotations

import json
from pathlib import Path

from asd_policy.data.replay import Replay, load_npz, load_replay


def load_demonstrations(path: Path) -> Replay:
    """A ``.npz`` file or a zarr store. Raises DatasetError."""
    if path.suffix == ".npz":
        return load_npz(path)
    return load_replay(path, store_keys(path))


def store_keys(path: Path) -> list[str]:
    """Observation keys of a zarr store that this package made."""
    for name in (".zattrs", "zarr.json"):
        if (path / name).is_file():
            attributes = json.loads((path / name).read_text(encoding="utf-8"))
            return list(attributes.get("attributes", attributes).get("observation_keys", []))
    return []
