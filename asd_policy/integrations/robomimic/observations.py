"""Observations as a robomimic policy's network takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.integrations.robomimic_format import offset_and_scale


class ObservationScale:
    """Observations less their offset, by their scale; vectors all at once, since every operation
    costs some microseconds right after a network call."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], statistics: Mapping[str, Any]):
        known = [key for key in shapes if key in statistics]
        self._statistics = offset_and_scale(statistics, known, "observation")
        self._vectors = [key for key, shape in shapes.items() if len(shape) == 1]
        self._sizes = [shapes[key][0] for key in self._vectors]
        plain = {
            k: (np.zeros(d), np.ones(d)) for k, d in zip(self._vectors, self._sizes, strict=True)
        }
        pairs = [self._statistics.get(key, plain[key]) for key in self._vectors]
        if pairs:
            self._offset, self._scale = (
                np.concatenate(column) for column in zip(*pairs, strict=True)
            )

    def apply(self, frames: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
        """Key → (B, To, \\*shape) float tensors on the device."""
        made = {}
        if self._vectors:
            table = np.concatenate([frames[key] for key in self._vectors], axis=-1)
            table = np.subtract(table, self._offset, dtype=np.float32, casting="same_kind")
            table /= self._scale
            rows = torch.from_numpy(table).to(device)
            made = dict(zip(self._vectors, rows.split(self._sizes, dim=-1), strict=True))
        for key in frames.keys() - made.keys():
            offset, scale = self._statistics.get(key, (0, 1))
            value = np.asarray((frames[key] - offset) / scale, np.float32)
            made[key] = torch.from_numpy(value).to(device)
        return made
