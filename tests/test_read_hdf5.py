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
    assert replay.stacked_observations().shape == (replay.episode_ends[-1], 19)


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
