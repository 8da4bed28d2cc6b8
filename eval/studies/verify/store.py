"""The output folder of a verification.

config.json       what was asked
moments.npz       the observations
draws/<role>/     chunks, a file a batch, each complete or absent
verify.json       every figure, computed from the above
verify.png, .svg  a picture of it
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asd_policy.data.replay import DAMAGED_NPZ
from asd_policy.eval.runs.store import Store
from asd_policy.files import replacing

STORE = Store(
    what="a verification",
    form="verify_config",
    ours=lambda config: "oracle" in config["settings"],  # an evaluation has none
    fixed=(  # these decide what has been sampled
        "sampler", "oracle", "checkpoint_sha256", "observations", "source", "window", "steps",
        "ddim_steps", "eta", "tolerance", "seed", "batch", "precision", "engine", "device", "code",
    ),
)  # fmt: skip


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz in one step: a kill leaves the whole file or none."""
    with replacing(path) as file:
        np.savez(file, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What :func:`save_arrays` wrote; None where there is no whole file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except DAMAGED_NPZ:
        return None
