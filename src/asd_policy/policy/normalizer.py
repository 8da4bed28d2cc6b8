"""Min-max normalization of observations and actions to [−1, 1], column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class Normalizer:
    """Affine map that sends each column's [low, high] to [−1, 1].

    Args:
        low, high: (D,) bounds, ``low < high`` in every column.
        names: (D,) names of the columns, for messages.

    Raises:
        ValueError: a column with zero range or non-finite bounds (it is named).
    """

    def __init__(self, low: Tensor, high: Tensor, names: Sequence[str] | None = None) -> None:
        low, high = (torch.as_tensor(v, dtype=torch.float32) for v in (low, high))
        if low.ndim != 1 or low.shape != high.shape:
            raise ValueError(
                f"expected low and high of one shape (D,), got {tuple(low.shape)} and "
                f"{tuple(high.shape)}"
            )
        bad = ~(torch.isfinite(low) & torch.isfinite(high) & (high - low > 1e-7))
        if bad.any():
            columns = [(names[i] if names else f"column {i}") for i in bad.nonzero().flatten()]
            raise ValueError(
                "a normalizer needs columns with a finite, non-zero range; these have none: "
                + ", ".join(columns)
            )
        self.low, self.high = low, high
        self._scale, self._centre = (high - low) / 2, (high + low) / 2

    @classmethod
    def fit(cls, columns: Mapping[str, np.ndarray]) -> Normalizer:
        """Bounds of the data. ``columns``: name → (rows, dim), concatenated in order."""
        table = np.concatenate([np.asarray(v, dtype=np.float32) for v in columns.values()], axis=1)
        names = [f"{key}[{i}]" for key, v in columns.items() for i in range(v.shape[1])]
        low, high = torch.from_numpy(table.min(0)), torch.from_numpy(table.max(0))
        return cls(low, high, names)

    @property
    def dim(self) -> int:
        return len(self.low)

    def to(self, device: torch.device | str) -> Normalizer:
        return Normalizer(self.low.to(device), self.high.to(device))

    def normalize(self, x: Tensor) -> Tensor:
        """(…, D) in data units → [−1, 1]."""
        return (x - self._centre) / self._scale

    def unnormalize(self, x: Tensor) -> Tensor:
        """(…, D) in [−1, 1] → data units."""
        return x * self._scale + self._centre

    def to_dict(self) -> dict[str, list[float]]:
        return {"low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Normalizer:
        return cls(torch.tensor(values["low"]), torch.tensor(values["high"]))
