"""Demonstration stores and the windows cut from them."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asd_policy.data.replay import (
    Replay,
    join,
    load_npz,
    load_replay,
    save_npz,
    too_short,
    training_windows,
    window_indices,
)
from asd_policy.errors import DatasetError, DatasetWarning
from reference.tiny import KEYS, tiny_replay


def brute_force(lengths: list[int], to: int, ta: int, tp: int) -> list[list[int]]:
    """Every start that leaves at most To−1 rows before the episode and Ta−1 after it."""
    windows, first = [], 0
    for length in lengths:
        for start in range(-100, 200):
            before, after = -start, start + tp - length
            if before <= to - 1 and after <= ta - 1:
                inside = [min(max(start + i, 0), length - 1) for i in range(tp)]
                windows.append([first + i for i in inside])
        first += length
    return windows


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    to=st.integers(1, 4),
    ta=st.integers(1, 6),
    tp=st.integers(1, 16),
)
def test_windows_are_those_of_a_loop(lengths: list[int], to: int, ta: int, tp: int) -> None:
    replay = tiny_replay(tuple(lengths))
    windows = window_indices(replay, to, ta, tp)
    assert windows.shape[1] == tp
    assert windows.tolist() == brute_force(lengths, to, ta, tp)


@settings(max_examples=50, deadline=None)
@given(
    interrupted=st.lists(st.booleans(), min_size=26, max_size=26),
    to=st.integers(1, 3),
    tp=st.integers(3, 16),
)
def test_only_the_history_of_a_window_may_be_interrupted(
    interrupted: list[bool], to: int, tp: int
) -> None:
    replay = dataclasses.replace(tiny_replay(), interrupted=np.array(interrupted))
    everything = brute_force([12, 5, 9], to, 2, tp)
    allowed = [rows for rows in everything if not any(interrupted[row] for row in rows[to - 1 :])]
    assert window_indices(replay, to, 2, tp).tolist() == allowed


def write(path: Path, **changes: np.ndarray | None) -> Path:
    zarr = pytest.importorskip("zarr")
    replay = tiny_replay()
    arrays: dict[str, np.ndarray | None] = {
        **{f"data/{key}": rows for key, rows in replay.observations.items()},
        "data/action": replay.actions,
        "meta/episode_ends": replay.episode_ends,
    }
    arrays.update({name.replace("__", "/"): rows for name, rows in changes.items()})
    root = zarr.open_group(str(path), mode="w")
    for name, rows in arrays.items():
        if rows is not None:
            root[name] = np.asarray(rows)
    root.attrs["task"] = "toy"
    return path


def test_a_store_comes_back(tmp_path: Path) -> None:
    read, made = load_replay(write(tmp_path / "toy.zarr"), list(KEYS)), tiny_replay()
    for key in KEYS:
        np.testing.assert_array_equal(read.observations[key], made.observations[key])
    np.testing.assert_array_equal(read.actions, made.actions)
    assert read.episode_ends.tolist() == made.episode_ends.tolist()
    assert read.attributes["task"] == "toy"
    stacked = read.stacked_observations(KEYS)
    assert stacked.shape == (26, 5)
    np.testing.assert_array_equal(stacked[:, 3:], made.observations["arm"])
    # In the order that is asked for.
    swapped = load_replay(tmp_path / "toy.zarr", ["arm", "object"])
    assert list(swapped.observations) == ["arm", "object"]


def test_marks_of_interruptions_come_back(tmp_path: Path) -> None:
    """From a store that has them, from one older than they are, joined, and as one file."""
    marks = np.arange(26) % 5 == 0
    marked = load_replay(write(tmp_path / "a.zarr", data__interrupted=marks), list(KEYS))
    plain = load_replay(write(tmp_path / "b.zarr"), list(KEYS))
    both = join([marked, plain])
    save_npz(both, tmp_path / "both.npz")
    for replay in (both, load_npz(tmp_path / "both.npz")):
        assert replay.interrupted.tolist() == [*marks, *np.zeros(26, bool)]


def test_episodes_that_are_there_twice_are_told(tmp_path: Path) -> None:
    """A store and its export side by side would weigh them double, without a word."""
    pytest.importorskip("zarr")
    one = load_replay(write(tmp_path / "a.zarr"), list(KEYS))
    count = len(one.episode_ends)
    with pytest.warns(DatasetWarning, match=rf"{count} of {2 * count} episodes are there twice"):
        assert len(join([one, one]).episode_ends) == 2 * count
    other = dataclasses.replace(one, actions=one.actions * 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        join([one, other])


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    with pytest.raises(DatasetError, match=r"no demonstration store at .*asd-policy demos"):
        load_replay(tmp_path / "none.zarr", list(KEYS))
    (tmp_path / "none.zarr.partial").mkdir()
    with pytest.raises(DatasetError, match=r"`asd-policy demos` is unfinished there, and goes on"):
        load_replay(tmp_path / "none.zarr", list(KEYS))


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    (tmp_path / "junk.zarr").mkdir()
    with pytest.raises(DatasetError, match=r"not a zarr group|lacks the arrays"):
        load_replay(tmp_path / "junk.zarr", list(KEYS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__arm": None}, r"lacks the arrays data/arm; its data holds: action, object$"),
        (
            {"data__action": None, "meta__episode_ends": None},
            r"data/action, meta/episode_ends; its",
        ),
        ({"data__arm": np.ones((25, 2))}, r"data/arm has shape \(25, 2\), expected \(26, dim\)"),
        ({"data__arm": np.ones((26, 0))}, r"data/arm has shape \(26, 0\), expected \(26, dim\)"),
        ({"data__action": np.ones(26)}, r"data/action has shape \(26,\), expected \(26, dim\)"),
        ({"data__arm": np.full((26, 2), np.nan)}, r"data/arm holds NaN or infinite values"),
        ({"data__action": np.full((26, 2), 1.5)}, r"must lie in \[−1, 1\], found 1\.500"),
        (
            {"data__interrupted": np.ones(25, bool)},
            r"data/interrupted has shape \(25,\), expected",
        ),
        ({"meta__episode_ends": np.array([12, 12, 26])}, r"must rise from above zero"),
        ({"meta__episode_ends": np.array([0, 26])}, r"must rise from above zero"),
        ({"meta__episode_ends": np.zeros(0, int)}, r"must rise from above zero"),
        ({"meta__episode_ends": np.array([12, 20])}, r"expected \(20, dim\)"),
    ],
)
def test_stores_that_hold_no_usable_data(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_replay(write(tmp_path / "toy.zarr", **changes), list(KEYS))


@pytest.mark.parametrize(
    ("lengths", "interrupted", "short"),
    [([1] * 20, False, 20), ([7] * 9, False, 9), ([60], True, 0)],
)
def test_data_without_a_chunk_is_refused(lengths, interrupted, short) -> None:
    rows = sum(lengths)
    replay = Replay(
        {"s": np.zeros((rows, 3), "f4")}, np.zeros((rows, 2), "f4"), np.cumsum(lengths),
        np.full(rows, interrupted), {},
    )  # fmt: skip
    assert too_short(replay, 2, 8, 16) == short
    row = " with 15 in a row that nothing interrupts" * interrupted
    others = ", and the others are interrupted everywhere" * interrupted
    expected = (
        f"no chunk to train on: expected episodes of 8 or more rows{row}; {short} of "
        f"{len(lengths)} episodes are shorter{others}$"
    )
    with pytest.raises(DatasetError, match=expected):
        training_windows(replay, 2, 8, 16)


def test_episodes_that_are_too_short_are_counted() -> None:
    ends = np.cumsum([7, 8, 7, 30])
    replay = Replay({}, np.zeros((52, 2), "f4"), ends, np.zeros(52, bool), {})
    assert too_short(replay, 2, 8, 16) == 2
    assert len(window_indices(replay, 2, 8, 16)) == 1 + 23


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    version = int(zarr.__version__.split(".")[0])
    root = zarr.open_group(
        str(tmp_path / "s.zarr"), mode="w", **({"zarr_format": 2} if version >= 3 else {})
    )
    root["data/object"] = np.ones((60, 3), "f4")
    root["data/action"] = np.random.default_rng(0).uniform(-1, 1, (60, 7)).astype("f4")
    root["meta/episode_ends"] = np.array([25, 60])
    (tmp_path / "s.zarr/data/action/0.0").write_bytes(b"junk")
    with pytest.raises(DatasetError, match="data/action is damaged and cannot be read"):
        load_replay(tmp_path / "s.zarr", ["object"])


def test_npz_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.npz").write_bytes(b"")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    for name, why in (
        ("empty.npz", "(No data|Cannot load)"),
        ("array.npz", "it is a single array"),
    ):
        with pytest.raises(DatasetError, match=rf"{name} holds no demonstrations as \.npz: {why}"):
            load_npz(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": np.array("[1")}, r"holds no demonstrations as \.npz"),
        ({"attributes": np.array("[1]")}, r"holds no demonstrations as \.npz"),
        ({"observation/object": None, "observation/arm": None}, "it has no observations"),
        ({"interrupted": None}, "interrupted is not a file in the archive"),
        ({"action": np.array(["up"] * 26)}, "action holds <U2, expected numbers"),
        ({"episode_ends": np.array([12.0, 17.5, 26.0])}, "must be a row of whole numbers, found"),
        ({"action": np.full((26, 2), 1.00001)}, r"found 1\.00001 in row 0 of episode 0$"),
    ],
)
def test_npz_that_holds_no_usable_data(tmp_path: Path, changes: dict, message: str) -> None:
    save_npz(tiny_replay(), tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as file:
        arrays = {**file, **changes}
    np.savez(tmp_path / "s.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(DatasetError, match=message):
        load_npz(tmp_path / "s.npz")


def test_npz_that_was_cut_short(tmp_path: Path) -> None:
    save_npz(tiny_replay(), tmp_path / "s.npz")
    whole = (tmp_path / "s.npz").read_bytes()
    middle = len(whole) // 3
    for content in (whole[:middle], whole[:middle] + b"junk" + whole[middle + 4 :]):
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(DatasetError, match=r"s\.npz holds no demonstrations as \.npz: "):
            load_npz(tmp_path / "s.npz")
