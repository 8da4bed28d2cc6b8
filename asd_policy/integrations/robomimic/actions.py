"""Actions to [−1, 1] and back to the data's own units, as robomimic 0.5 does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import CheckpointError, DatasetError
from asd_policy.integrations.robomimic_format import offset_and_scale

BOUND = 0.999999  # 0.5 sends the largest action there, clear of what rounding does to 1
CONSTANT = 1e-4  # and leaves the scale of a column with less range alone


def fitted_statistics(config: Any) -> dict[str, dict[str, np.ndarray]] | None:
    """``action_normalization_stats`` of the demonstrations that a configuration trains on.

    Each column's range goes to [−1, 1] where ``train.action_config.actions.normalization`` is
    "min_max"; None where it is None.

    Raises:
        DatasetError: another normalization, or other ``train.action_keys`` than robomimic 0.3
            reads from its files.
    """
    keys = list(config.train.action_keys)
    if keys != ["actions"]:
        raise DatasetError(f"robomimic 0.3 trains on the action key 'actions' alone, got {keys}")
    kind = config.train.action_config["actions"].get("normalization")
    if kind is None:
        return None
    if kind != "min_max":
        raise DatasetError(
            "train.action_config.actions.normalization: expected null or 'min_max', since the "
            f"chain is clipped to [−1, 1]; got {kind!r}"
        )
    low, high = _bounds(config)
    ranges = high - low
    scale = np.where(ranges < CONSTANT, 1.0, ranges / (2 * BOUND))
    return {"actions": {"offset": (low + high)[None] / 2, "scale": scale[None]}}


def count_sequences(config: Any) -> int:
    """How many sequences a configuration trains on: one from each step of its demonstrations, or,
    where they are not padded, from each that has all of its frames within the episode."""
    train = config.train
    lost = 0 if train.pad_frame_stack else train.frame_stack - 1
    lost += 0 if train.pad_seq_length else train.seq_length - 1
    with _episodes(config) as (file, names):
        lengths = [len(file[f"data/{name}/actions"]) for name in names]
    return sum(max(0, length - lost) for length in lengths)


@contextmanager
def _episodes(config: Any) -> Iterator[tuple[Any, list[str]]]:
    """The file that a configuration trains on, and the names of the episodes."""
    import h5py

    key = config.train.hdf5_filter_key
    with h5py.File(Path(config.train.data).expanduser(), "r") as file:
        yield (
            file,
            list(file["data"]) if key is None else [name.decode() for name in file[f"mask/{key}"]],
        )


def _bounds(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest actions (action_dim,) of the episodes that it trains on."""
    with _episodes(config) as (file, names):
        actions = [file[f"data/{name}/actions"][:] for name in names]
    return (
        np.min([rows.min(0) for rows in actions], axis=0).astype(np.float64),
        np.max([rows.max(0) for rows in actions], axis=0).astype(np.float64),
    )


def statistics_of(policy: Any) -> Any:
    """A ``RolloutPolicy``'s ``action_normalization_stats``: its file's, or those it trains with."""
    own = getattr(policy, "action_normalization_stats", None)
    return getattr(policy.policy, "action_normalization_stats", None) if own is None else own


@dataclass(frozen=True)
class ActionScale:
    """(…, action_dim) in [−1, 1] → (…, command); nothing to do without statistics.

    Attributes:
        offset, scale: (action_dim,), of the type that commands are returned in.
        rotations: columns of six numbers, and what they turn into.
    """

    offset: Tensor | None = None
    scale: Tensor | None = None
    rotations: tuple[tuple[slice, str], ...] = ()

    @classmethod
    def of(
        cls,
        statistics: Mapping[str, Any] | None,
        config: Any,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ActionScale:
        """From a checkpoint's ``action_normalization_stats`` and its configuration.

        ``dtype``: of commands; robomimic 0.5's are float64 where there are statistics.

        Raises:
            CheckpointError: statistics that lack a key, or a format that is not known.
        """
        if statistics is None:
            return cls()
        found = offset_and_scale(statistics, list(config.train.action_keys), "actions")
        offset, scale = (
            torch.from_numpy(np.concatenate(parts)).to(device, dtype)
            for parts in zip(*found.values(), strict=True)
        )
        rotations, start = [], 0
        for key, (part, _) in found.items():
            target = _conversion(config.train.action_config[key])
            if target is not None:
                rotations.append((slice(start, start + part.size), target))
            start += part.size
        return cls(offset, scale, tuple(rotations))

    def unnormalize(self, actions: Tensor) -> Tensor:
        """(…, action_dim) → (…, command)."""
        if self.offset is None or self.scale is None:
            return actions
        values = torch.addcmul(self.offset, actions.to(self.offset), self.scale)
        if not self.rotations:
            return values
        made, start = [], 0
        for columns, target in self.rotations:
            made += [values[..., start : columns.start], _rotate(values[..., columns], target)]
            start = columns.stop
        return torch.cat([*made, values[..., start:]], dim=-1)


def _conversion(action: Mapping[str, Any]) -> str | None:
    if action.get("format") != "rot_6d":
        return None
    target = action.get("convert_at_runtime", "rot_axis_angle")
    if target not in ("rot_axis_angle", "rot_euler"):
        raise CheckpointError(
            f"action rotations convert to rot_axis_angle or rot_euler; got {target!r}"
        )
    return str(target)


def _rotate(values: Tensor, target: str) -> Tensor:
    """(…, 6) rotations to (…, 3); only robomimic releases that have them make such checkpoints."""
    import robomimic.utils.torch_utils as torch_utils

    if not hasattr(torch_utils, "rot_6d_to_axis_angle"):
        raise CheckpointError("actions with 6-number rotations need robomimic 0.5")
    rotations = values.reshape(-1, 6)
    made = (
        torch_utils.rot_6d_to_axis_angle(rot_6d=rotations)
        if target == "rot_axis_angle"
        else torch_utils.rot_6d_to_euler_angles(rot_6d=rotations, convention="XYZ")
    )
    return made.reshape(*values.shape[:-1], 3)
