"""robomimic's datasets as training data: filter keys, order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from asd_policy.data.robomimic_hdf5 import read_hdf5
from asd_policy.errors import DatasetError

h5py = pytest.importorskip("h5py")

KEYS = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


@pytest.fixture
def path(tmp_path) -> Path:
    """Eleven episodes in the published layout; episode i has i + 3 rows, all of the number i."""
    with h5py.File(tmp_path / "low_dim_v141.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_version": "1.4.1", "type": 1})
        for i in range(11):
            demo = data.create_group(f"demo_{i}")
            for key, dim in KEYS.items():
                demo[f"obs/{key}"] = i + np.random.default_rng(i).uniform(0, 0.5, (i + 3, dim))
            demo["actions"] = np.random.default_rng(i).uniform(-1, 1, (i + 3, 7))
        file["mask/train"] = np.array(["demo_10", "demo_2"], "S")
        file["mask/empty"] = np.array([], "S8")
    return tmp_path / "low_dim_v141.hdf5"


def test_all_episodes_in_the_order_of_their_numbers(path) -> None:
    replay = read_hdf5(path, list(KEYS))
    assert np.diff(replay.episode_ends, prepend=0).tolist() == [i + 3 for i in range(11)]
    assert np.floor(replay.observations["object"][replay.episode_ends - 1, 0]).tolist() == list(
        range(11)
    )
    assert sum(rows.shape[1] for rows in replay.observations.values()) == 19


def test_interrupted_rows_are_read_where_they_are_marked(path) -> None:
    assert not read_hdf5(path, list(KEYS)).interrupted.any()
    with h5py.File(path, "a") as file:
        marks = np.arange(len(file["data/demo_0/actions"])) < 2
        file["data/demo_0/interrupted"] = marks
    assert np.flatnonzero(read_hdf5(path, list(KEYS)).interrupted).tolist() == [0, 1]


def test_a_filter_key_chooses(path) -> None:
    replay = read_hdf5(path, ["robot0_eef_pos"], "train")
    assert replay.episode_ends.tolist() == [5, 18]
    assert list(replay.observations) == ["robot0_eef_pos"]
    with pytest.raises(DatasetError, match="no filter key 'test'; there are: empty, train"):
        read_hdf5(path, list(KEYS), "test")
    with pytest.raises(DatasetError, match="no episodes"):
        read_hdf5(path, list(KEYS), "empty")


def test_what_is_refused(path, tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"demo_0 lacks obs/speed; its observations are: object"):
        read_hdf5(path, ["speed"])
    with pytest.raises(DatasetError, match="no dataset at"):
        read_hdf5(tmp_path / "none.hdf5", list(KEYS))
    (tmp_path / "x.hdf5").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="no robomimic dataset"):
        read_hdf5(tmp_path / "x.hdf5", list(KEYS))
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][0, 0] = 1.5
    with pytest.raises(DatasetError, match=r"actions must lie in \[−1, 1\], found 1\.500"):
        read_hdf5(path, list(KEYS))
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_version": "1.5.1", "type": 1})
    with pytest.raises(DatasetError, match=r"robosuite 1\.5\.1.*another order"):
        read_hdf5(path, list(KEYS))


def test_training_takes_one(path, tmp_path, run, refused) -> None:
    pytest.importorskip("tyro")
    words = ["--data", path, "--steps", 2, "--batch-size", 4, "--down-dims", 8, 16,
             "--step-embed-dim", 8, "--diffusion-steps", 5, "--threads", 1]  # fmt: skip
    assert run("train", *words, "--filter-key", "train", "--out", tmp_path / "o")[0] == 0
    card = json.loads((tmp_path / "o" / "card.json").read_text())
    assert card["training_data"]["episodes"] == 2
    refused("--filter-key is for robomimic", "train", "--data", "x.zarr", "--filter-key", "train")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("obs/object", (4, 14), r"object of demo_1 has shape \(4, 14\), expected \(4, 10\)"),
        ("obs/object", (5, 10), r"object of demo_1 has shape \(5, 10\), expected \(4, 10\)"),
        ("actions", (4, 6), r"actions of demo_1 has shape \(4, 6\), expected \(4, 7\)"),
        ("interrupted", (3,), r"interrupted of demo_1 has shape \(3,\), expected \(4,\)"),
    ],
)
def test_an_episode_unlike_the_others_is_named(path, name, shape, message) -> None:
    """Also where another episode's error would make the sums fit again."""
    with h5py.File(path, "a") as file:
        demo = file["data/demo_1"]
        if name in demo:
            del demo[name]
        demo[name] = np.zeros(shape, bool if name == "interrupted" else float)
        if shape == (5, 10):
            other = file["data/demo_2"]
            rows = other["obs/object"][:-1]
            del other["obs/object"]
            other["obs/object"] = rows
    with pytest.raises(DatasetError, match=message):
        read_hdf5(path, list(KEYS))


# --- what cannot be read, in one sentence -------------------------------------------------------


def mask(path: Path, content: object) -> None:
    with h5py.File(path, "a") as file:
        del file["mask/train"]
        file["mask"].create_dataset("train", data=content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            np.array(["demo_0", "demo_11", "demo_12"], "S"),
            r"mask/train names demo_11, demo_12, which the file does not hold \(it has demo_0, "
            r"demo_1, demo_10, demo_2, demo_3 and 6 more\); write the mask anew, or choose another",
        ),
        (np.array([True, False]), r"mask/train holds values of type bool, expected names of epis"),
        (np.array([0, 1]), r"mask/train holds values of type int64, expected names of episodes"),
        (np.array(["demo_1", "demo_1"], "S"), r"mask/train names demo_1 more than once"),
    ],
)
def test_a_mask_that_chooses_nothing_that_is_there(path, content, message) -> None:
    mask(path, content)
    with pytest.raises(DatasetError, match=rf"low_dim_v141\.hdf5: {message}"):
        read_hdf5(path, list(KEYS), "train")
    assert len(read_hdf5(path, list(KEYS)).episode_ends) == 11


def test_a_mask_may_be_of_text_of_any_length(path) -> None:
    mask(path, ["demo_10", "demo_2"])
    assert read_hdf5(path, ["object"], "train").episode_ends.tolist() == [5, 18]


def test_a_mask_that_is_a_group(path) -> None:
    with h5py.File(path, "a") as file:
        file.create_group("mask/folds")
        file["mask/one"] = np.bytes_("demo_3")
    with pytest.raises(DatasetError, match="mask/folds holds a group, expected names of episodes"):
        read_hdf5(path, list(KEYS), "folds")
    assert read_hdf5(path, list(KEYS), "one").episode_ends.tolist() == [6]


@pytest.mark.parametrize("name", ["demo_1_failed", "demo_x", "demo", "demo_", "notes", "demo_²"])
def test_an_episode_without_a_number_is_named(path, name) -> None:
    """It is left alone where a mask chooses others."""
    with h5py.File(path, "a") as file:
        file.move("data/demo_1", f"data/{name}")
    with pytest.raises(DatasetError, match=rf"named demo_0, demo_1 …, found {name}; rename or"):
        read_hdf5(path, list(KEYS))
    assert len(read_hdf5(path, list(KEYS), "train").episode_ends) == 2


def env_args(path: Path, content: object) -> Path:
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = content
    return path


@pytest.mark.parametrize(
    ("version", "published"),
    [("", True), (None, True), ("1.4.1", True), ("v1.4.1", True), ("1.2", True), (1.4, True),
     ("1.5.0rc1", False), (" 1.5.1", False), (1.5, False), ("1.10", False), ("2.0.0", False)],
)  # fmt: skip
def test_versions_of_robosuite(path, version, published) -> None:
    """None, in the first datasets, is before 1.5."""
    before = read_hdf5(path, ["object"]).observations["object"]
    env_args(path, json.dumps({"env_name": "Lift", "env_version": version}))
    same = np.array_equal(read_hdf5(path, ["object"]).observations["object"], before)
    assert same == published


@pytest.mark.parametrize("version", ["master", "offline", "1", 1, True, [1, 4], "robosuite 1.5"])
def test_a_version_that_is_none_is_named(path, version) -> None:
    """Where it decides something: `object` alone has an order that changed."""
    env_args(path, json.dumps({"env_name": "Lift", "env_version": version}))
    with pytest.raises(DatasetError) as caught:
        read_hdf5(path, ["object"])
    assert str(caught.value).startswith(f"{path}: env_version is {version!r}, which does not say")
    assert len(read_hdf5(path, ["robot0_eef_pos"]).episode_ends) == 11


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '"Lift"', 3])
def test_a_description_that_is_none(path, content) -> None:
    with pytest.raises(DatasetError, match=r"the attribute 'env_args' of 'data' to be a JSON obj"):
        read_hdf5(env_args(path, content), list(KEYS))


@pytest.mark.parametrize("name", ["action", "actions"])
def test_an_observation_of_that_name_is_none_of_the_actions(path, name) -> None:
    """The last action, say, as the robot is told of it."""
    with h5py.File(path, "a") as file:
        for i in range(11):
            file[f"data/demo_{i}/obs/{name}"] = np.full((i + 3, 2), float(i))
    replay = read_hdf5(path, [name], own=True)
    assert np.array_equal(replay.actions, read_hdf5(path, list(KEYS)).actions)
    assert replay.observations[name][0].tolist() == [0, 0]
    assert replay.observations[name][-1].tolist() == [10, 10]
    with h5py.File(path, "a") as file:
        file[f"data/demo_3/obs/{name}"][1] = np.nan
    with pytest.raises(DatasetError, match=f"{name} holds NaN or infinite values, first in row 1"):
        read_hdf5(path, [name], own=True)


def test_a_robot_of_ones_own_needs_no_environment(path) -> None:
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env_args"]
    with pytest.raises(DatasetError, match="the attribute 'env_args' of 'data'"):
        read_hdf5(path, list(KEYS))
    assert len(read_hdf5(path, list(KEYS), own=True).episode_ends) == 11


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0000012, r"1\.0000012"), (-1.5, r"-1\.500"), (1.0004, r"1\.0004"), (250.0, r"250\.000")],
)
def test_an_action_out_of_range_is_shown_with_its_place(path, value, shown) -> None:
    """Episodes are read in the order of their numbers: demo_2 comes before demo_10."""
    with h5py.File(path, "a") as file:
        file["data/demo_10/actions"][4, 6] = value
    for key in (None, "train"):
        with pytest.raises(DatasetError, match=rf"found {shown} in row 4 of demo_10$"):
            read_hdf5(path, list(KEYS), key)


def test_a_value_that_is_not_finite_is_named_with_its_place(path) -> None:
    with h5py.File(path, "a") as file:
        file["data/demo_7/obs/robot0_eef_pos"][3, 0] = np.inf
    with pytest.raises(
        DatasetError, match=r"hdf5: robot0_eef_pos holds NaN or infinite .* in row 3 of demo_7$"
    ):
        read_hdf5(path, list(KEYS))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("actions", np.zeros((0, 7)), "demo_1 is empty, expected one action or more"),
        ("actions", np.array(["up"] * 4, "S2"), r"/data/demo_1/actions holds \|S2, expected numb"),
        ("obs/object", None, "/data/demo_1/obs/object holds a group, expected numbers"),
        ("actions", 0.5, r"actions of demo_1 has shape \(\), expected \(1, 7\)"),
    ],
)
def test_an_array_of_another_kind_is_named(path, name, content, message) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_1"][name]
        if content is None:
            file["data/demo_1"].create_group(name)
        else:
            file["data/demo_1"][name] = content
    with pytest.raises(DatasetError, match=message):
        read_hdf5(path, list(KEYS))


def test_all_arrays_of_another_shape(path) -> None:
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            rows = demo["actions"][:, 0]
            del demo["actions"]
            demo["actions"] = rows
    with pytest.raises(DatasetError, match=r"actions of demo_0 has shape \(3,\), expected \(rows"):
        read_hdf5(path, list(KEYS))


def test_an_episode_that_is_no_group(path) -> None:
    with h5py.File(path, "a") as file:
        file["data/demo_99"] = np.zeros(3)
    with pytest.raises(
        DatasetError, match="expected a group 'demo_99' in '/data', found something"
    ):
        read_hdf5(path, list(KEYS))


def test_files_that_are_damaged(path) -> None:
    """Cut short, and with a hole where the file's own lists are."""
    whole = path.read_bytes()
    heap = whole.index(b"HEAP")
    for content in (whole[: len(whole) // 2], whole[:heap] + bytes(4) + whole[heap + 4 :]):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="is no robomimic dataset, or a damaged one: ") as it:
            read_hdf5(path, list(KEYS))
        assert "\n" not in str(it.value)


def test_an_array_that_is_damaged_is_named(path) -> None:
    with h5py.File(path, "a") as file:
        rows = file["data/demo_3/actions"][:]
        del file["data/demo_3/actions"]
        made = file["data/demo_3"].create_dataset("actions", data=rows, compression="gzip")
        place = made.id.get_chunk_info(0).byte_offset
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + b"junk" * 4 + whole[place + 16 :])
    with pytest.raises(
        DatasetError, match="/data/demo_3/actions is damaged and cannot be read: Ca"
    ):
        read_hdf5(path, list(KEYS))


def test_a_mistake_ends_training_in_one_line(path, tmp_path, refused) -> None:
    pytest.importorskip("tyro")
    mask(path, np.array([True, False]))
    words = ["--data", path, "--out", tmp_path / "o"]
    refused(r"^error: \S+: mask/train holds values of type bool", "train", *words,
            "--filter-key", "train")  # fmt: skip
    env_args(path, json.dumps({"env_name": "Lift", "env_version": "master"}))
    refused(r"^error: \S+: env_version is 'master', which does not say", "train", *words)
