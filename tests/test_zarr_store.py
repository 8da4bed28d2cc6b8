"""Stores whose chunks are lost: found by digests, judged where there are none."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from asd_policy.data.replay import Replay, load_replay
from asd_policy.data.zarr_store import DIGESTS, ZarrStore, array_digest, write_zarr
from asd_policy.errors import DatasetError, DatasetWarning

zarr = pytest.importorskip("zarr")

ZARR_3 = int(zarr.__version__.split(".")[0]) >= 3
FORMATS = (2, 3) if ZARR_3 else (2,)
ROWS, CHUNK = 4000, 500
MARKS = np.arange(ROWS) % 4 == 0


def demonstrations(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "data/object": rng.normal(size=(ROWS, 3)).astype(np.float32),
        "data/action": rng.uniform(-1, 1, size=(ROWS, 2)).astype(np.float32),
        "data/interrupted": MARKS,
        "meta/episode_ends": np.arange(100, ROWS + 1, 100),
    }
    return arrays | {name.replace("__", "/"): rows for name, rows in changes.items()}


def ours(path: Path, **changes: np.ndarray) -> Path:
    write_zarr(path, demonstrations(**changes), {"task": "toy"})
    return path


def theirs(path: Path, zarr_format: int = 2, keep: bool = False, **changes: np.ndarray) -> Path:
    """A store of somebody else's writer, which leaves out chunks of zeros unless it is to `keep`
    them."""
    root = zarr.open_group(str(path), mode="w", **({"zarr_format": zarr_format} if ZARR_3 else {}))
    for name, rows in demonstrations(**changes).items():
        kept = {"config": {"write_empty_chunks": keep}} if ZARR_3 else {"write_empty_chunks": keep}
        array = root.create(
            name=name, shape=rows.shape, chunks=(CHUNK, *rows.shape[1:]), dtype=rows.dtype,
            fill_value=0, **kept,
        )  # fmt: skip
        array[...] = rows
    if not ZARR_3:
        name_the_separator(path)
    return path


def name_the_separator(path: Path, named: bool = True) -> None:
    """As zarr 3 and others write metadata, and as zarr 2 does not."""
    for file in path.rglob(".zarray"):
        told = json.loads(file.read_text())
        told.pop("dimension_separator", None)
        file.write_text(json.dumps(told | ({"dimension_separator": "."} if named else {})))


def chunks(path: Path, name: str) -> list[Path]:
    """Files of an array's chunks, in order."""

    def place(file: Path) -> list[int]:
        key = file.relative_to(path / name).as_posix().removeprefix("c/")
        return [int(number) for number in key.replace("/", ".").split(".")]

    files = [file for file in (path / name).rglob("*") if file.is_file()]
    return sorted((f for f in files if not f.name.startswith((".", "zarr"))), key=place)


def lose(path: Path, name: str, *places: int) -> Path:
    there = chunks(path, name)
    for place in places or range(len(there)):
        there[place].unlink()
    return path


def load(path: Path) -> Replay:
    """Without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_replay(path, ["object"])


# --- stores of this package ---------------------------------------------------------------------


def test_a_store_comes_back_as_it_was(tmp_path: Path) -> None:
    """With digests nothing is doubtful, also where zarr leaves out chunks of zeros."""
    path = ours(tmp_path / "s.zarr", data__interrupted=np.zeros(ROWS, bool))
    replay = load(path)
    np.testing.assert_array_equal(replay.observations["object"], demonstrations()["data/object"])
    assert not replay.interrupted.any()
    assert replay.attributes == {"task": "toy"}
    attributes = dict(zarr.open_group(str(path), mode="r").attrs)
    assert attributes[DIGESTS]["data/object"] == array_digest(demonstrations()["data/object"])
    assert list(attributes[DIGESTS]) == sorted(demonstrations())


def test_a_digest_is_of_type_shape_and_values() -> None:
    rows = np.arange(6.0).reshape(2, 3)
    assert array_digest(rows) == array_digest(np.asfortranarray(rows))
    others = [rows.astype("f4"), rows.reshape(3, 2), rows + 1, rows.astype(">f8"), rows[:0]]
    assert len({array_digest(other) for other in [rows, *others]}) == 6


@pytest.mark.parametrize(
    "name", ["data/object", "data/action", "data/interrupted", "meta/episode_ends"]
)
def test_a_chunk_that_is_lost_is_found(tmp_path: Path, name: str) -> None:
    path = lose(ours(tmp_path / "s.zarr"), name)
    with pytest.raises(DatasetError, match=rf"s\.zarr: 1 of 1 chunks of {name} is missing; copy"):
        load_replay(path, ["object"])


def test_an_array_that_is_lost_is_found(tmp_path: Path) -> None:
    """Also marks, without which nothing would be interrupted."""
    for name in ("interrupted", "object"):
        path = ours(tmp_path / f"{name}.zarr")
        shutil.rmtree(path / "data" / name)
        with pytest.raises(DatasetError, match=rf"{name}\.zarr lacks the array data/{name}$"):
            load_replay(path, ["object"])


def test_values_that_were_changed_are_found(tmp_path: Path) -> None:
    path = ours(tmp_path / "s.zarr")
    root = zarr.open_group(str(path), mode="r+")
    root["data/object"][17, 1] = 5.0
    with pytest.raises(DatasetError, match=r"data/object is not what was written .*SHA-256"):
        load_replay(path, ["object"])
    del root.attrs[DIGESTS]  # as the message says, for a change on purpose
    assert load(path).observations["object"][17, 1] == 5.0


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_chunk_that_was_cut_short_is_found(tmp_path: Path, content: bytes | None) -> None:
    path = ours(tmp_path / "s.zarr")
    chunk = chunks(path, "data/object")[0]
    chunk.write_bytes(chunk.read_bytes()[:1000] if content is None else content)
    with pytest.raises(DatasetError, match="data/object is damaged and cannot be read"):
        load_replay(path, ["object"])


@pytest.mark.parametrize("name", [".zgroup", ".zattrs", "data/object/.zarray"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_metadata_that_were_cut_short_are_found(tmp_path: Path, name: str, content: bytes) -> None:
    path = ours(tmp_path / "s.zarr")
    (path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=r"not a zarr group|data/object cannot be opened"):
        load_replay(path, ["object"])


# --- one zip file -------------------------------------------------------------------------------


def zipped(path: Path) -> Path:
    return Path(shutil.make_archive(str(path), "zip", path))


def test_a_zip_file_is_read_as_the_folder_is(tmp_path: Path) -> None:
    for path in (ours(tmp_path / "a.zarr"), theirs(tmp_path / "b.zarr", FORMATS[-1])):
        one, other = load(path), load(zipped(path))
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.interrupted, other.interrupted)
        assert one.attributes == other.attributes
        with pytest.raises(
            DatasetError, match=r"\.zarr\.zip: 1 of \d chunks of data/action is mis"
        ):
            load_replay(zipped(lose(path, "data/action", 0)), ["object"])


def test_a_zip_file_of_a_folder_says_what_it_holds(tmp_path: Path) -> None:
    ours(tmp_path / "whole" / "s.zarr")
    message = (
        r"whole\.zip is not a zarr group: expected one at the top of the zip file, .*: s\.zarr"
    )
    with pytest.raises(DatasetError, match=message):
        load_replay(zipped(tmp_path / "whole"), ["object"])


def test_a_zip_file_that_is_damaged(tmp_path: Path) -> None:
    path = zipped(ours(tmp_path / "s.zarr"))
    content = path.read_bytes()
    place = content.index(b"data/object/0.0") + 2000
    for damaged, message in (
        (content[: len(content) // 2], "expected a folder, or a whole zip file of one"),
        (b"", "expected a folder, or a whole zip file of one"),
        (content[:place] + b"x" * 9 + content[place + 9 :], "data/object is damaged .*CRC"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=rf"s\.zarr\.zip.*{message}"):
            load_replay(path, ["object"])


# --- stores of other people ---------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("data/object", [0]),
        ("data/object", [3, 4]),
        ("data/object", [7]),
        ("data/object", list(range(8))),
        ("data/action", [2, 5]),
        ("data/interrupted", [1]),
        ("data/interrupted", [0, 1, 2, 3, 5, 6, 7]),
        ("meta/episode_ends", []),
    ],
)
def test_lost_chunks_are_found_without_digests(
    tmp_path: Path, zarr_format: int, name: str, places: list[int]
) -> None:
    """Marks too: they come every 4 rows, and a chunk without any is not one that was left out."""
    path = lose(theirs(tmp_path / "s.zarr", zarr_format), name, *places)
    if name == "meta/episode_ends":  # one chunk
        with (
            pytest.warns(DatasetWarning, match="1 of 1 chunks of meta/episode_ends is missing"),
            pytest.raises(DatasetError, match="must rise from above zero, found 0 for episode 0"),
        ):
            load_replay(path, ["object"])
        return
    count = f"{len(places)} of 8 chunks of {name} {'is' if len(places) == 1 else 'are'} missing"
    with pytest.raises(DatasetError, match=rf"s\.zarr: {count} and would be read as .*copy"):
        load_replay(path, ["object"])


def quiet(first: int, end: int) -> np.ndarray:
    """Marks with none in some rows."""
    marks = MARKS.copy()
    marks[first:end] = False
    return marks


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"data__interrupted": quiet(0, ROWS)}, "8 of 8 chunks of data/interrupted are"),
        ({"data__interrupted": quiet(700, 1700)}, "1 of 8 chunks of data/interrupted is"),
        ({"data__interrupted": quiet(0, 720)}, "1 of 8 chunks of data/interrupted is"),
    ],
)
def test_chunks_that_were_left_out_are_read_with_a_warning(
    tmp_path: Path, zarr_format: int, changes: dict, missing: str
) -> None:
    path = theirs(tmp_path / "s.zarr", zarr_format, **changes)
    with pytest.warns(
        DatasetWarning, match=rf"s\.zarr: {missing} missing and read as .*no digests"
    ):
        replay = load_replay(path, ["object"])
    expected = demonstrations(**changes)
    np.testing.assert_array_equal(replay.observations["object"], expected["data/object"])
    np.testing.assert_array_equal(replay.interrupted, expected["data/interrupted"])


@pytest.mark.parametrize("zarr_format", FORMATS)
def test_nothing_is_said_of_a_store_that_is_whole(tmp_path: Path, zarr_format: int) -> None:
    quiet_marks = quiet(700, 1700)
    path = theirs(tmp_path / "s.zarr", zarr_format, keep=True, data__interrupted=quiet_marks)
    np.testing.assert_array_equal(load(path).interrupted, quiet_marks)


@pytest.mark.parametrize("zarr_format", FORMATS)
def test_a_writer_that_keeps_chunks_of_zeros_has_left_out_none(
    tmp_path: Path, zarr_format: int
) -> None:
    """Here the rows beside the gap are False, too."""
    marks = quiet(400, 2600)
    path = theirs(tmp_path / "s.zarr", zarr_format, keep=True, data__interrupted=marks)
    with pytest.raises(
        DatasetError, match="1 of 8 chunks of data/interrupted is missing and would"
    ):
        load_replay(lose(path, "data/interrupted", 2), ["object"])


def test_zarr_2_leaves_out_no_chunks(tmp_path: Path) -> None:
    """Its metadata tell it: then all marks that are missing are lost, and not left out."""
    path = theirs(tmp_path / "s.zarr")
    name_the_separator(path, named=False)
    load(path)
    lose(path, "data/interrupted")
    for there in (path, zipped(path)):
        with pytest.raises(DatasetError, match="8 of 8 chunks of data/interrupted are missing and"):
            load_replay(there, ["object"])


def test_columns_are_looked_at_apart(tmp_path: Path) -> None:
    """Those that are always zero go on beside the gap; those that are not do not."""
    rows = demonstrations()["data/object"].repeat(2, axis=1)
    rows[:, :3] = 0
    root = zarr.open_group(str(theirs(tmp_path / "s.zarr")), mode="r+")
    del root["data/object"]
    array = root.create(name="data/object", shape=rows.shape, chunks=(CHUNK, 3), dtype="f4")
    array[...] = rows
    for chunk in chunks(tmp_path / "s.zarr", "data/object"):
        if chunk.name.endswith(".0"):  # as zarr 3 does by itself
            chunk.unlink()
    name_the_separator(tmp_path / "s.zarr")
    with pytest.warns(DatasetWarning, match="8 of 16 chunks of data/object are missing and read"):
        load_replay(tmp_path / "s.zarr", ["object"])
    (tmp_path / "s.zarr/data/object/4.1").unlink()
    with pytest.raises(DatasetError, match="9 of 16 chunks of data/object are missing and would"):
        load_replay(tmp_path / "s.zarr", ["object"])


@pytest.mark.skipif(not ZARR_3, reason="shards are of zarr 3")
def test_a_shard_that_is_lost_is_found(tmp_path: Path) -> None:
    root = zarr.open_group(str(theirs(tmp_path / "s.zarr", 3)), mode="r+")
    rows = demonstrations()["data/object"]
    del root["data/object"]
    array = root.create_array(
        "data/object", shape=rows.shape, shards=(1000, 3), chunks=(100, 3), dtype="f4"
    )
    array[...] = rows
    load(tmp_path / "s.zarr")
    lose(tmp_path / "s.zarr", "data/object", 1)
    with pytest.raises(DatasetError, match="1 of 4 chunks of data/object is missing and would"):
        load_replay(tmp_path / "s.zarr", ["object"])


@pytest.mark.parametrize("zarr_format", FORMATS)
def test_marks_whose_metadata_are_lost_are_found(tmp_path: Path, zarr_format: int) -> None:
    path = theirs(tmp_path / "s.zarr", zarr_format)
    (path / "data/interrupted" / (".zarray" if zarr_format == 2 else "zarr.json")).unlink()
    for there in (path, zipped(path)):
        with pytest.raises(DatasetError, match=r"lacks the array data/interrupted$"):
            load_replay(there, ["object"])


def test_without_a_fill_value_nothing_stands_in(tmp_path: Path) -> None:
    path = theirs(tmp_path / "s.zarr", data__interrupted=quiet(0, ROWS))
    file = path / "data/interrupted/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fill_value": None}))
    for chunk in chunks(path, "data/interrupted"):  # where zarr wrote them
        chunk.unlink()
    with pytest.raises(DatasetError, match="8 of 8 chunks of data/interrupted are missing and"):
        load_replay(path, ["object"])


# --- what is no store, or of another kind -------------------------------------------------------


def test_what_is_no_array_of_numbers_is_named(tmp_path: Path) -> None:
    path = theirs(tmp_path / "s.zarr", data__interrupted=np.array(["no"] * ROWS, "S2"))
    with pytest.raises(DatasetError, match=r"data/interrupted holds values of type .*S2, expected"):
        load_replay(path, ["object"])
    shutil.rmtree(path / "data/action")
    zarr.open_group(str(path), mode="r+").create_group("data/action")
    with pytest.raises(DatasetError, match="data/action is a group, expected an array"):
        load_replay(path, ["object"])


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").write_text("demonstrations")
    with pytest.raises(DatasetError, match=r"s\.zarr is not a zarr group: expected a folder, or"):
        ZarrStore(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (np.array([10.5, ROWS]), "must be a row of whole numbers, found float64"),
        (np.arange(10, ROWS + 1, 10)[:, None], r"must be a row of whole numbers, .* \(400, 1\)"),
        (np.array([100, 50, ROWS]), "must rise from above zero, found 50 for episode 1"),
        (np.array([100, 3900]), r"shape \(4000, 3\), expected \(3900, dim\), since the last epis"),
    ],
)
def test_ends_of_episodes_that_cannot_be(tmp_path: Path, ends: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_replay(ours(tmp_path / "s.zarr", meta__episode_ends=ends), ["object"])


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (150, 1.0000012, r"found 1\.0000012 in row 50 of episode 1$"),
        (99, -1.25, r"found -1\.250 in row 99 of episode 0$"),
        (3999, 1e30, r"found 1\d+\.000 in row 99 of episode 39$"),
        (100, np.nan, r"data/action holds NaN or infinite values, first in row 0 of episode 1$"),
    ],
)
def test_a_value_that_cannot_be_is_shown_with_its_place(
    tmp_path: Path, row: int, value: float, message: str
) -> None:
    action = demonstrations()["data/action"]
    action[row, 1] = value
    with pytest.raises(DatasetError, match=message):
        load_replay(ours(tmp_path / "s.zarr", data__action=action), ["object"])
    action[row, 1] = 1.0000009  # rounding
    load(ours(tmp_path / "s.zarr", data__action=action))
