"""The export in robomimic's layout."""

import json
import shutil

import h5py
import mujoco
import numpy as np
import pytest
import robosuite
import zarr

from asd_policy.data.robomimic_hdf5 import export_hdf5
from asd_policy.data.zarr_store import write_zarr
from asd_policy.envs.simulator import quiet_robosuite
from asd_policy.envs.stored import StoredEpisodes
from asd_policy.errors import DatasetError, OutputError, OutputExistsError


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "lift.hdf5"
    export_hdf5(store, path, StoredEpisodes(store).model)
    with h5py.File(path) as file:
        yield file


def test_the_layout_is_robomimics(exported, store):
    root = zarr.open_group(str(store), mode="r")
    ends = root["meta/episode_ends"][:]
    assert set(exported) == {"data", "mask"}
    assert exported["data"].attrs["total"] == ends[-1]
    assert sorted(exported["data"]) == ["demo_0", "demo_1", "demo_2"]
    for episode, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        demo = exported[f"data/demo_{episode}"]
        assert demo.attrs["num_samples"] == end - start
        assert sorted(demo["obs"]) == sorted(root.attrs["observation_keys"])
        for name, source in [
            ("actions", "action"),
            ("executed_actions", "executed_action"),
            ("interrupted", "interrupted"),
            ("rewards", "reward"),
            ("states", "state"),
            *[(f"obs/{key}", key) for key in demo["obs"] if key != "object"],
        ]:
            assert np.array_equal(demo[name][:], root[f"data/{source}"][start:end]), name
        assert demo["dones"][-1] == 1
        assert np.array_equal(demo["dones"][:-1], demo["rewards"][:-1])


def test_the_environment_it_describes_can_be_made(exported):
    arguments = json.loads(exported["data"].attrs["env_args"])
    assert (arguments["env_name"], arguments["type"]) == ("Lift", 1)
    assert arguments["env_version"] == robosuite.__version__
    with quiet_robosuite():
        env = robosuite.make(arguments["env_name"], **arguments["env_kwargs"])
    assert env.action_dim == exported["data/demo_0/actions"].shape[1]
    env.close()


def test_a_state_in_its_model_is_what_was_observed(exported):
    """As robomimic plays data back: the model of the episode, a state, forward kinematics."""
    for name, demo in exported["data"].items():
        model = mujoco.MjModel.from_xml_string(demo.attrs["model_file"])
        data = mujoco.MjData(model)
        row = demo.attrs["num_samples"] // 2
        state = demo["states"][row]
        data.time, data.qpos, data.qvel = (
            state[0],
            state[1 : 1 + model.nq],
            state[1 + model.nq :],
        )
        mujoco.mj_forward(model, data)
        hand = data.site("gripper0_right_grip_site").xpos
        np.testing.assert_allclose(demo["obs/robot0_eef_pos"][row], hand, atol=1e-6, err_msg=name)
        cube = data.body("cube_main").xpos
        np.testing.assert_allclose(demo["obs/object"][row, :3], cube, atol=1e-6, err_msg=name)


def test_models_differ_between_episodes(exported):
    models = [demo.attrs["model_file"] for demo in exported["data"].values()]
    assert len(set(models)) == 3


def fake_store(path, episodes):
    names = ("action", "executed_action", "object", "state")
    arrays = {f"data/{name}": np.zeros((episodes, 1), np.float32) for name in names}
    arrays["data/reward"] = np.zeros(episodes, np.float32)
    arrays["meta/episode_ends"] = np.arange(1, episodes + 1)
    write_zarr(path, arrays, {"env_args": {}, "observation_keys": {"object": 1}})
    return path


def test_one_in_ten_is_held_out(tmp_path):
    export_hdf5(fake_store(tmp_path / "s.zarr", 40), tmp_path / "s.hdf5")
    with h5py.File(tmp_path / "s.hdf5") as file:
        train, valid = (
            {name.decode() for name in file[f"mask/{part}"]} for part in ("train", "valid")
        )
        assert (len(train), len(valid)) == (36, 4)
        assert train | valid == set(file["data"])
        assert "model_file" not in file["data/demo_0"].attrs


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="expected a zarr store of demonstrations, found no"):
        export_hdf5(tmp_path / "none.zarr", tmp_path / "out.hdf5")
    root = zarr.open_group(str(tmp_path / "other.zarr"), mode="w")
    root["data/action"] = np.zeros((2, 7))
    with pytest.raises(DatasetError, match="missing: data/executed_action, data/reward"):
        export_hdf5(tmp_path / "other.zarr", tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()


def test_a_store_with_a_lost_chunk_is_not_exported(tmp_path):
    path = fake_store(tmp_path / "s.zarr", 40)
    (path / "meta/episode_ends/0").unlink()
    with pytest.raises(DatasetError, match=r"1 of 1 chunks of meta/episode_ends is missing; copy"):
        export_hdf5(path, tmp_path / "out.hdf5")
    assert not list(tmp_path.glob("out*"))


def test_an_existing_file_is_left_alone(store, tmp_path):
    (tmp_path / "out.hdf5").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"out\.hdf5 exists already"):
        export_hdf5(store, tmp_path / "out.hdf5")
    assert (tmp_path / "out.hdf5").read_text() == "mine"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(store, tmp_path, capfd):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"x\.hdf5 could not be written: File too large"):
            export_hdf5(store, tmp_path / "x.hdf5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def test_a_store_of_another_simulator_is_found_out(store, tmp_path):
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    root = zarr.open_group(str(other), mode="a")
    root.attrs["seed"] = 6  # as if the same seed gave another episode
    with pytest.raises(DatasetError, match="episode 0 starts in another state here"):
        StoredEpisodes(other).model(0)
