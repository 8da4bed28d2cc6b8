"""Min-max normalization of observations and actions to [−1, 1], column by column.

Rotations may be handed to the network as matrices: a point of a turned object is then linear in
what the network sees, and the two signs of a quaternion, between which an observed one may jump
from one step to the next, become one (Geist et al., 2024, compare such inputs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from asd_policy.ambient import untouched
from asd_policy.errors import InputError

LEAST_RANGE = 1e-4  # in the data's units; Chi et al.'s ``range_eps``


class Normalizer:
    """Affine map that sends each column's [low, high] to [−1, 1].

    Args:
        low, high: (D,) bounds, which differ in every column; ``low`` above ``high`` mirrors one.
        names: (D,) names of the columns, for messages.
        quaternions: first columns of quaternions (x, y, z, w) to be normalized to the entries of
            their rotation matrices instead, unscaled, after all other columns.

    Raises:
        ValueError: a column with zero range or non-finite bounds (it is named).
    """

    @untouched(gradients=False)
    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        names: Sequence[str] | None = None,
        quaternions: Sequence[int] = (),
    ) -> None:
        low, high = (_float(v) for v in (low, high))
        if low.ndim != 1 or low.shape != high.shape:
            raise InputError(
                f"expected low and high of one shape (D,), got {tuple(low.shape)} and "
                f"{tuple(high.shape)}"
            )
        bad = ~(torch.isfinite(low) & torch.isfinite(high) & ((high - low).abs() > 1e-7))
        if bad.any():
            columns = [(names[i] if names else f"column {i}") for i in bad.nonzero().flatten()]
            raise InputError(
                "a normalizer needs columns with a finite, non-zero range; these have none: "
                + ", ".join(columns)
            )
        self.low, self.high = low, high
        self.quaternions = tuple(quaternions)
        turned = {first + i for first in self.quaternions for i in range(4)}
        self._others = [column for column in range(len(low)) if column not in turned]
        self._scale, self._centre = high / 2 - low / 2, high / 2 + low / 2  # none overflows

    @classmethod
    def fit(
        cls,
        columns: Mapping[str, np.ndarray],
        quaternions: Sequence[int] = (),
        actions: bool = False,
    ) -> Normalizer:
        """Bounds of the data. ``columns``: name → (rows, dim), concatenated in order.

        A column of observations whose range is below 1e-4 is centred and left unscaled (bounds 1 to
        both sides), as Chi et al. do: what hardly moved in the data would otherwise become huge
        when it does. One of ``actions`` is scaled however little it moved (bounds 1e-6 to both
        sides at least): unscaled, a policy's own small errors, hundredths of a unit, would be the
        robot's.

        Raises:
            ValueError: a column with bounds that are not finite (it is named).
        """
        table = np.concatenate([np.asarray(v, dtype=np.float32) for v in columns.values()], axis=1)
        names = [f"{key}[{i}]" for key, v in columns.items() for i in range(v.shape[1])]
        low, high = torch.from_numpy(table.min(0)), torch.from_numpy(table.max(0))
        centre = low / 2 + high / 2
        side = 1e-6 * centre.abs()  # some units in the last place of large ones
        side = side.clamp_min(1e-6 if actions else 1)
        still = high - low < (2 * side if actions else LEAST_RANGE)
        low, high = (
            torch.where(still, centre + sign * side, bound)
            for sign, bound in ((-1, low), (1, high))
        )
        return cls(low, high, names, quaternions)

    @property
    def dim(self) -> int:
        return len(self.low)

    def to(self, device: torch.device | str) -> Normalizer:
        return Normalizer(self.low.to(device), self.high.to(device), quaternions=self.quaternions)

    def normalize(self, x: Tensor) -> Tensor:
        """(…, D) in data units → [−1, 1]; (…, D + 5 Q) where Q quaternions become matrices."""
        scaled = (x - self._centre) / self._scale
        if not self.quaternions:
            return scaled
        matrices = [rotation_entries(x[..., first : first + 4]) for first in self.quaternions]
        return torch.cat([scaled[..., self._others], *matrices], dim=-1)

    def unnormalize(self, x: Tensor) -> Tensor:
        """(…, D) in [−1, 1] → data units. Not for columns that became matrices."""
        return x * self._scale + self._centre

    def to_dict(self) -> dict[str, list[float]]:
        return {"low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Sequence[float]], quaternions: Sequence[int] = ()
    ) -> Normalizer:
        return cls(_float(values["low"]), _float(values["high"]), quaternions=quaternions)


def _float(values: Tensor | Sequence[float]) -> Tensor:
    """Where it is, or on the CPU; in float32 at once, whatever PyTorch's defaults are set to."""
    if not isinstance(values, Tensor):
        return torch.tensor(values, dtype=torch.float32, device="cpu")
    values = values.detach().to(torch.float32)
    return values.clone() if values.is_inference() else values


def rotation_entries(quaternion: Tensor) -> Tensor:
    """(…, 4) quaternions (x, y, z, w), of any length but 0 → (…, 9) rotation matrices, by rows."""
    length = torch.linalg.vector_norm(quaternion, dim=-1, keepdim=True)
    x, y, z, w = (quaternion / length.clamp_min(1e-12)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1)
