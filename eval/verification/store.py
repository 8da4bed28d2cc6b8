"""The output folder of a verification.

config.json       what was asked
moments.npz       the observations
draws/<role>/     chunks, a file a batch, each complete or absent
verify.json       every figure, computed from the above
verify.png, .svg  a picture of it
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.errors import OutputExistsError
from asd_policy.eval.folder import write_json
from asd_policy.files import writing

Json = dict[str, Any]
SCHEMA_VERSION = 1
# On resuming: these decide what has been sampled.
FIXED = (
    "sampler", "oracle", "checkpoint_sha256", "observations", "source", "window", "steps",
    "ddim_steps", "eta", "tolerance", "seed", "batch", "precision", "code",
)  # fmt: skip


def claim(folder: Path, config: Json, resume: bool) -> None:
    """Start in a new folder, or go on in one.

    Raises:
        OutputExistsError: the folder holds something else, or a verification of other draws, or
            one that ``resume`` was not given for.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"the output must be a folder, but {folder} is a file")
    if folder.exists() and any(folder.iterdir()):
        there = _read_config(folder)
        changed = [
            f"{key}: {there['settings'].get(key)} there, {config['settings'][key]} now"
            for key in FIXED
            if there["settings"].get(key) != config["settings"][key]
        ]
        if changed:
            raise OutputExistsError(
                f"{folder} holds a verification of other draws ({'; '.join(changed)}); "
                "choose another --out"
            )
        if not resume:
            raise OutputExistsError(
                f"{folder} already holds this verification; add --resume to go on with it, or "
                "choose another --out"
            )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)


def _read_config(folder: Path) -> Json:
    try:
        there = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict) or there.get("schema_version") != SCHEMA_VERSION:
        raise OutputExistsError(
            f"the output folder must be new, empty, or hold a verification of schema_version "
            f"{SCHEMA_VERSION}; {folder} holds other files"
        )
    return there


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz in one step: a kill leaves the whole file or none."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What :func:`save_arrays` wrote; None where there is no whole file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
