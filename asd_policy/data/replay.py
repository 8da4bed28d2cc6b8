"""Demonstrations in a zarr store, and the training windows cut from them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.errors import DatasetError


@dataclass(frozen=True)
class Replay:
    """Episodes laid end to end.

    Attributes:
        observations: key → (T, dim) float32, what was seen before the action of the same row.
        actions: (T, action_dim) float32.
        episode_ends: (E,) cumulative lengths; ``episode_ends[-1] == T``.
        interrupted: (T,) bool, rows whose action was not the one executed, nor near it: something
            else drove.
        attributes: how the data was made.
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    episode_ends: np.ndarray
    interrupted: np.ndarray
    attributes: dict[str, Any]

    def stacked_observations(self) -> np.ndarray:
        """(T, sum of dims) observations, keys concatenated in their order."""
        return np.concatenate(list(self.observations.values()), axis=1)


def load_replay(path: str | Path, observation_keys: list[str]) -> Replay:
    """Read the arrays ``data/<key>``, ``data/action`` and ``meta/episode_ends`` into memory,
    and ``data/interrupted`` where there is one.

    Raises:
        DatasetError: a store that is missing, lacks arrays, has rows that do not match
            ``episode_ends``, non-finite values, or actions outside [−1, 1].
    """
    import zarr  # an extra; the trainer itself runs without it

    path = Path(path)
    if not path.exists():
        raise DatasetError(f"no demonstration store at {path}; `asd-policy demos` makes one")
    try:
        root = zarr.open_group(str(path), mode="r")
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise DatasetError(f"{path} is not a zarr group: {error}") from error
    wanted = [f"data/{key}" for key in observation_keys] + ["data/action", "meta/episode_ends"]
    missing = [name for name in wanted if name not in root]
    if missing:
        raise DatasetError(f"{path} lacks the arrays {', '.join(missing)}")
    arrays = [_read(root, name, path) for name in wanted]
    *observations, actions, ends = arrays
    marks = np.zeros(len(actions), bool)
    if "data/interrupted" in root:
        marks = _read(root, "data/interrupted", path)
    replay = Replay(
        {k: v.astype(np.float32) for k, v in zip(observation_keys, observations, strict=True)},
        actions.astype(np.float32),
        ends.astype(np.int64),
        np.asarray(marks).astype(bool),
        dict(root.attrs),
    )
    check_replay(replay, path)
    return replay


def join(replays: Sequence[Replay]) -> Replay:
    """Demonstrations of one task, of several stores, as one.

    ``attributes`` are those of the only one, or ``{"stores": [those of each]}``.

    Raises:
        DatasetError: observations or actions of different keys or sizes.
    """
    first = replays[0]
    if len(replays) == 1:
        return first
    shapes = [
        {k: v.shape[1] for k, v in {**r.observations, "action": r.actions}.items()} for r in replays
    ]
    for other in shapes[1:]:
        if other != shapes[0]:
            raise DatasetError(f"these stores do not go together: {shapes[0]} and {other}")
    starts = np.cumsum([0, *(len(r.actions) for r in replays[:-1])])
    return Replay(
        {k: np.concatenate([r.observations[k] for r in replays]) for k in first.observations},
        np.concatenate([r.actions for r in replays]),
        np.concatenate([r.episode_ends + s for r, s in zip(replays, starts, strict=True)]),
        np.concatenate([r.interrupted for r in replays]),
        {"stores": [r.attributes for r in replays]},
    )


def save_npz(replay: Replay, path: str | Path) -> None:
    """The same demonstrations in one file that NumPy alone reads."""
    arrays = {f"observation/{key}": rows for key, rows in replay.observations.items()}
    arrays |= {"action": replay.actions, "episode_ends": replay.episode_ends}
    arrays["interrupted"] = replay.interrupted
    np.savez_compressed(path, attributes=np.array(json.dumps(replay.attributes)), **arrays)


def _read(root: Any, name: str, path: Path) -> np.ndarray:
    """An array of a store, whole."""
    try:
        return np.asarray(root[name])
    except (OSError, ValueError, RuntimeError) as error:  # the codecs' own
        raise DatasetError(f"{path}: {name} is damaged and cannot be read: {error}") from error


def load_npz(path: str | Path) -> Replay:
    """Inverse of :func:`save_npz`.

    Raises:
        DatasetError: a file that is missing, lacks arrays, or holds what cannot be used.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            prefix = "observation/"
            keys = [key for key in arrays.files if key.startswith(prefix)]
            observations = {key.removeprefix(prefix): arrays[key] for key in keys}
            rest = arrays["action"], arrays["episode_ends"], arrays["interrupted"]
            attributes = json.loads(str(arrays["attributes"]))
    except (OSError, LookupError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} holds no demonstrations as .npz: {error}") from error
    replay = Replay(observations, *rest, attributes)
    check_replay(replay, path)
    return replay


def check_replay(replay: Replay, path: Path) -> None:
    """Raise DatasetError for rows that do not match, values not finite, actions out of range."""
    ends = replay.episode_ends
    if len(ends) == 0 or np.any(np.diff(ends, prepend=0) <= 0):
        raise DatasetError(f"{path}: meta/episode_ends must rise from above zero")
    for name, rows in {**replay.observations, "action": replay.actions}.items():
        if rows.ndim != 2 or len(rows) != ends[-1]:
            raise DatasetError(
                f"{path}: data/{name} has shape {rows.shape}, expected ({ends[-1]}, dim)"
            )
        if not np.isfinite(rows).all():
            raise DatasetError(f"{path}: data/{name} holds NaN or infinite values")
    if replay.interrupted.shape != (ends[-1],):
        raise DatasetError(
            f"{path}: data/interrupted has shape {replay.interrupted.shape}, expected ({ends[-1]},)"
        )
    worst = float(np.abs(replay.actions).max())
    if worst > 1 + 1e-6:
        raise DatasetError(f"{path}: actions must lie in [−1, 1], found {worst:.3f}")


def too_short(replay: Replay, obs_horizon: int, action_horizon: int, pred_horizon: int) -> int:
    """How many episodes are too short for any training window."""
    least = _least(obs_horizon, action_horizon, pred_horizon)
    return int((np.diff(replay.episode_ends, prepend=0) < least).sum())


def _least(obs_horizon: int, action_horizon: int, pred_horizon: int) -> int:
    """Rows of the shortest episode that has a training window."""
    return max(1, pred_horizon - action_horizon - obs_horizon + 2)


def window_indices(
    replay: Replay, obs_horizon: int, action_horizon: int, pred_horizon: int
) -> np.ndarray:
    """Rows of every training window, (N, pred_horizon), edges repeated.

    A window starts up to ``obs_horizon − 1`` rows before its episode and ends up to
    ``action_horizon − 1`` rows after it (Chi et al., 2023), so that a policy sees how it will be
    started and what to do at the end. Its first ``obs_horizon`` rows are what the policy observes.
    From the last of these on no row is an interrupted one: what follows would not be what these
    actions lead to.
    """
    windows = []
    ends = replay.episode_ends
    for start, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        first = np.arange(start - (obs_horizon - 1), end - pred_horizon + action_horizon)
        rows = first[:, None] + np.arange(pred_horizon)
        windows.append(rows.clip(start, end - 1))
    rows = np.concatenate(windows)
    return rows[~replay.interrupted[rows[:, obs_horizon - 1 :]].any(axis=1)]


def training_windows(
    replay: Replay, obs_horizon: int, action_horizon: int, pred_horizon: int
) -> np.ndarray:
    """:func:`window_indices`, at least one.

    Raises:
        DatasetError: every episode is too short, or interrupted everywhere.
    """
    rows = window_indices(replay, obs_horizon, action_horizon, pred_horizon)
    if not len(rows):
        short = too_short(replay, obs_horizon, action_horizon, pred_horizon)
        raise DatasetError(
            "there is no chunk to train on: expected episodes of "
            f"{_least(obs_horizon, action_horizon, pred_horizon)} or more rows with "
            f"{pred_horizon - obs_horizon + 1} in a row that nothing interrupts; {short} of "
            f"{len(replay.episode_ends)} episodes are shorter, and the others are interrupted "
            "everywhere"
        )
    return rows
