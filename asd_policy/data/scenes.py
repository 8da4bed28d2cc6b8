"""What says whether two episodes began with the same scene."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

_NOT_SCENE = {"actions", "timesteps"}  # what robomimic 0.5 adds to each observation


def scene_digest(observation: Mapping[str, Any]) -> str:
    """SHA-256 of an observation's vectors; not of pictures, which a graphics driver may change.

    Rounded to six decimals, since processors differ in the last bits of a float.
    """
    digest = hashlib.sha256()
    for key in sorted(observation.keys() - _NOT_SCENE):
        value = np.asarray(observation[key])
        if value.ndim <= 2:
            digest.update(f"{key} {value.shape}\n".encode())
            digest.update((np.round(value.astype(np.float64), 6) + 0.0).tobytes())
    return digest.hexdigest()
