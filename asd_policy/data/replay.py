"""Demonstrations in a zarr store, and the training windows cut from them."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.data.zarr_store import ZarrStore, reason
from asd_policy.errors import DatasetError, DatasetWarning, InputError

# Of ``attributes``: of the stores of `asd-policy demos`, and of what was read from robomimic's.
OWN_FORMAT, HDF5_FORMAT = "asd-policy demonstrations 1", "robomimic HDF5"
ROUNDING = 1e-6  # by which an action may be outside [−1, 1]
# What NumPy raises of an .npz file that is damaged, or is none.
DAMAGED_NPZ = (
    OSError, LookupError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error,
    NotImplementedError,
)  # fmt: skip


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

    def arrays(self) -> list[tuple[str, np.ndarray]]:
        """Observations and actions, with their names: an observation, too, may be called action."""
        return [*self.observations.items(), ("action", self.actions)]

    def in_order(self, keys: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The observations in the order of ``keys``, key → dim: a policy's, whose weights know
        columns by their place. Raises DatasetError where they are others."""
        found = {key: rows.shape[1] for key, rows in self.observations.items()}
        if found != dict(keys):
            raise DatasetError(f"expected observations {dict(keys)}; got {found}")
        return {key: self.observations[key] for key in keys}

    def stacked_observations(self, keys: Mapping[str, int]) -> np.ndarray:
        """(T, sum of dims) observations, as :meth:`in_order` gives them."""
        return np.concatenate(list(self.in_order(keys).values()), axis=1)


def load_replay(path: str | Path, observation_keys: list[str], own: bool = False) -> Replay:
    """Read the arrays ``data/<key>``, ``data/action`` and ``meta/episode_ends`` into memory,
    and ``data/interrupted`` where there is one.

    Args:
        path: of a zarr store: a folder, or a zip file of one (`.zarr.zip`).
        own: of a robot whose actions are in units of their own, and not within [−1, 1].

    Raises:
        DatasetError: a store that is missing, lacks arrays or chunks of them, holds others than
            were written, has rows that do not match ``episode_ends``, non-finite values, or
            actions outside [−1, 1] that are no robot's ``own``.

    Warns:
        DatasetWarning: chunks are missing, and it cannot be told whether they were left out because
            they hold nothing but zeros, or are lost.
    """
    path = Path(path)
    store = ZarrStore(path)
    if "action" in observation_keys:  # as an observation it would be the answer
        raise DatasetError(
            f"{path}: data/action is what a policy is to find, and cannot be given to it; expected "
            "observations under other names (the last action, say, as data/last_action)"
        )
    wanted = [f"data/{key}" for key in observation_keys] + ["data/action", "meta/episode_ends"]
    missing = [name for name in wanted if name not in store]
    if missing:
        there = ", ".join(store.names("data")) if "data" in store else "nothing"
        raise DatasetError(f"{path} lacks the arrays {', '.join(missing)}; its data holds: {there}")
    *observations, actions, ends = [store.read(name) for name in wanted]
    marks = np.zeros(len(actions) if actions.ndim else 0, bool)
    if "data/interrupted" in store:
        marks = store.read("data/interrupted")
    replay = Replay(
        dict(zip(observation_keys, observations, strict=True)), actions, ends, marks,
        store.attributes,
    )  # fmt: skip
    return checked_replay(replay, path, own=own)


def join(replays: Sequence[Replay]) -> Replay:
    """Demonstrations of one task, of several stores, as one.

    ``attributes`` are those of the only one, or ``{"stores": [those of each]}``.

    Raises:
        DatasetError: observations or actions of different keys or sizes.

    Warns:
        DatasetWarning: some episodes are there twice.
    """
    first = replays[0]
    if len(replays) == 1:
        return first
    shapes = [sorted((name, rows.shape[1]) for name, rows in r.arrays()) for r in replays]
    for other in shapes[1:]:
        if other != shapes[0]:
            raise DatasetError(f"these stores do not go together: {shapes[0]} and {other}")
    starts = np.cumsum([0, *(len(r.actions) for r in replays[:-1])])
    _warn_of_twins(replays)
    return Replay(
        {k: np.concatenate([r.observations[k] for r in replays]) for k in first.observations},
        np.concatenate([r.actions for r in replays]),
        np.concatenate([r.episode_ends + s for r, s in zip(replays, starts, strict=True)]),
        np.concatenate([r.interrupted for r in replays]),
        {"stores": [r.attributes for r in replays]},
    )


def _warn_of_twins(replays: Sequence[Replay]) -> None:
    """Of episodes that several stores hold, told by their actions."""
    split = (np.split(r.actions, r.episode_ends[:-1]) for r in replays)
    found = [hashlib.sha256(actions.tobytes()).digest() for each in split for actions in each]
    twins = len(found) - len(set(found))
    if twins:
        warnings.warn(
            f"{twins} of {len(found)} episodes are there twice, and count twice: is one of these "
            "stores another form of, or grown from, another one?",
            DatasetWarning,
            stacklevel=3,
        )


def save_npz(replay: Replay, path: str | Path) -> None:
    """The same demonstrations in one file that NumPy alone reads."""
    arrays = {f"observation/{key}": rows for key, rows in replay.observations.items()}
    arrays |= {"action": replay.actions, "episode_ends": replay.episode_ends}
    arrays["interrupted"] = replay.interrupted
    np.savez_compressed(path, attributes=np.array(json.dumps(replay.attributes)), **arrays)


def load_npz(path: str | Path, own: bool = False) -> Replay:
    """Inverse of :func:`save_npz`; ``own`` as of :func:`load_replay`.

    Raises:
        DatasetError: a file that is missing, lacks arrays, or holds what cannot be used.
    """
    path = Path(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise InputError("it is a single array")
        with loaded as arrays:
            prefix = "observation/"
            keys = [key for key in arrays.files if key.startswith(prefix)]
            observations = {key.removeprefix(prefix): arrays[key] for key in keys}
            rest = arrays["action"], arrays["episode_ends"], arrays["interrupted"]
            attributes = dict(json.loads(str(arrays["attributes"])))
        if not keys:
            raise InputError("it has no observations")
    except DAMAGED_NPZ as error:
        raise DatasetError(f"{path} holds no demonstrations as .npz: {reason(error)}") from error
    return checked_replay(Replay(observations, *rest, attributes), path, own=own)


def checked_replay(
    replay: Replay,
    path: Path,
    episodes: Sequence[str] = (),
    prefix: str = "data/",
    own: bool = False,
) -> Replay:
    """The demonstrations in float32, int64 and bool.

    Args:
        episodes: their names in the file, where they have some.
        prefix: of the names of arrays in the file.
        own: actions may be any.

    Raises:
        DatasetError: rows that do not match, values not finite, actions out of range.
    """
    given = replay.arrays()
    rest = ("interrupted", replay.interrupted), ("episode_ends", replay.episode_ends)
    for name, rows in (*given, *rest):
        if rows.dtype.kind not in "biuf":
            raise DatasetError(f"{path}: {name} holds {rows.dtype}, expected numbers")
    _check_ends(replay.episode_ends, path)
    with np.errstate(over="ignore"):  # what is too large is refused below
        replay = Replay(
            {key: rows.astype(np.float32) for key, rows in replay.observations.items()},
            replay.actions.astype(np.float32),
            replay.episode_ends.astype(np.int64),
            replay.interrupted.astype(bool),
            replay.attributes,
        )
    _check_shapes(replay, path, prefix)
    _check_values(replay, path, episodes, prefix, own)
    _check_digits(given, replay, path, prefix)
    return replay


def _check_ends(ends: np.ndarray, path: Path) -> None:
    if ends.ndim != 1 or not np.array_equal(ends, np.floor(ends)):
        raise DatasetError(
            f"{path}: meta/episode_ends must be a row of whole numbers, found {ends.dtype} of "
            f"shape {ends.shape}"
        )
    wrong = np.flatnonzero(np.diff(ends.astype(np.int64), prepend=0) <= 0)
    if len(wrong) or not len(ends):
        found = f"{ends[wrong[0]]} for episode {wrong[0]}" if len(wrong) else "no episode"
        raise DatasetError(f"{path}: meta/episode_ends must rise from above zero, found {found}")


def _check_shapes(replay: Replay, path: Path, prefix: str) -> None:
    rows = int(replay.episode_ends[-1])
    for name, values in replay.arrays():
        if values.ndim != 2 or len(values) != rows or not values.shape[1]:
            raise DatasetError(
                f"{path}: {prefix}{name} has shape {values.shape}, expected ({rows}, dim), since "
                f"the last episode ends at {rows}"
            )
    if replay.interrupted.shape != (rows,):
        raise DatasetError(
            f"{path}: {prefix}interrupted has shape {replay.interrupted.shape}, expected ({rows},)"
        )


def _check_digits(
    given: Sequence[tuple[str, np.ndarray]], kept: Replay, path: Path, prefix: str
) -> None:
    """Values far from zero, such as coordinates on a map, may vary by less than float32 tells."""
    for (name, rows), (_, values) in zip(given, kept.arrays(), strict=True):
        lost = np.abs(rows - values.astype(float)).max(0)
        low, high = rows.min(0).astype(float), rows.max(0).astype(float)
        coarse = np.flatnonzero((lost > np.maximum(0.01 * (high - low), 1e-3)) & (high > low))
        if len(coarse):
            column = coarse[0]
            raise DatasetError(
                f"{path}: column {column} of {prefix}{name} lies between {low[column]:.10g} and "
                f"{high[column]:.10g}, and float32, in which policies compute, is off by up to "
                f"{lost[column]:.2g} there; take a constant from it, on the robot as well"
            )


def _check_values(
    replay: Replay, path: Path, episodes: Sequence[str], prefix: str, own: bool
) -> None:
    def place(row: int) -> str:
        episode = int(np.searchsorted(replay.episode_ends, row, side="right"))
        first = replay.episode_ends[episode - 1] if episode else 0
        return f"row {row - first} of {episodes[episode] if episodes else f'episode {episode}'}"

    for name, values in replay.arrays():
        wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(wrong):
            raise DatasetError(
                f"{path}: {prefix}{name} holds NaN or infinite values, first in {place(wrong[0])}"
            )
    if own:
        return
    largest = np.abs(replay.actions).max(axis=1, initial=0)
    worst = int(largest.argmax())
    if largest[worst] > 1 + ROUNDING:
        found = replay.actions[worst][np.abs(replay.actions[worst]).argmax()]
        raise DatasetError(
            f"{path}: actions must lie in [−1, 1], found {beyond(float(found), 1 + ROUNDING)} in "
            f"{place(worst)}"
        )


def beyond(value: float, limit: float) -> str:
    """A value as text, with as many digits as show that it is larger than a limit: "1.500",
    "1.0000012"."""
    for digits in range(3, 17):
        text = f"{value:.{digits}f}"
        if abs(float(text)) > limit:
            return text
    return repr(value)


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
        row = others = ""
        if short < len(replay.episode_ends):
            row = f" with {pred_horizon - obs_horizon + 1} in a row that nothing interrupts"
            others = ", and the others are interrupted everywhere"
        raise DatasetError(
            "there is no chunk to train on: expected episodes of "
            f"{_least(obs_horizon, action_horizon, pred_horizon)} or more rows{row}; {short} of "
            f"{len(replay.episode_ends)} episodes are shorter{others}"
        )
    return rows
