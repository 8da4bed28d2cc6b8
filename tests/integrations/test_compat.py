"""Fixes for library versions: each does what it says, and nothing where it is not needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")
pytest.importorskip("robosuite")

import asd_policy.integrations.robomimic as asd
from asd_policy.integrations.robomimic import __main__ as command
from asd_policy.integrations.robomimic import compat

if asd.VERSION >= (0, 4):
    pytest.skip("these fixes are for robomimic 0.3", allow_module_level=True)

import robomimic.utils.env_utils as env_utils
import robomimic.utils.obs_utils as obs_utils

from asd_policy.data.robomimic_hdf5 import has_published_layout
from asd_policy.envs.described import migrated
from asd_policy.envs.simulator import compose_observation, read_observables
from asd_policy.envs.tasks import get_task

CONTROLLER = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300],
    "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip


def published(name: str = "Lift", version: str = "1.4.1", **changes) -> dict:
    """``env_args`` as in the published low-dimensional datasets."""
    kwargs = {
        "has_renderer": False, "has_offscreen_renderer": False, "ignore_done": True,
        "use_object_obs": True, "use_camera_obs": False, "control_freq": 20,
        "controller_configs": CONTROLLER, "robots": ["Panda"], "camera_depths": False,
        "camera_heights": 84, "camera_widths": 84, "reward_shaping": False, **changes,
    }  # fmt: skip
    return {"env_name": name, "env_version": version, "type": 1, "env_kwargs": kwargs}


def test_controllers_of_14_are_those_of_15_in_the_worlds_frame() -> None:
    meta = published("TwoArmTransport", robots=["Panda", "Panda"],
                     env_configuration="single-arm-opposed")  # fmt: skip
    kwargs = migrated(meta)["env_kwargs"]
    assert len(kwargs["controller_configs"]) == 2
    part = kwargs["controller_configs"][1]["body_parts"]["right"]
    assert part["input_ref_frame"] == "world"
    assert part["input_type"] == "delta"
    assert part["damping_ratio"] == 1
    assert part["damping_ratio_limits"] == [0, 10]
    assert not {"damping", "damping_limits", "control_delta"} & set(part)
    assert kwargs["env_configuration"] == "opposed"
    assert kwargs["lite_physics"] is False
    assert meta["env_kwargs"]["controller_configs"] is CONTROLLER  # the original is left alone


def test_what_is_new_is_left_alone() -> None:
    new = migrated(published())
    assert migrated(new) == new
    other = {"env_name": "Hopper", "type": 2, "env_kwargs": {}}
    assert migrated(other) == other
    compat.apply(asd.VERSION)
    before = env_utils.create_env_from_metadata
    compat.apply(asd.VERSION)
    assert env_utils.create_env_from_metadata is before


def test_mujoco_py_is_a_stub_only_where_there_is_none() -> None:
    stub = sys.modules["mujoco_py"]
    assert issubclass(stub.builder.MujocoException, Exception)
    compat.stub_mujoco_py()
    assert sys.modules["mujoco_py"] is stub


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (published(), True),
        (published(version="1.5.1"), False),
        ({**published(version="1.5.2"), "object_layout": "1.4.1"}, True),
    ],
)
def test_whose_order_object_is_in(meta, expected) -> None:
    assert has_published_layout(meta) is expected


@pytest.fixture
def low_dim() -> None:
    keys = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": keys, "rgb": []}})


@pytest.mark.parametrize("task", ["lift", "square"])
def test_observations_and_scenes(low_dim, task) -> None:
    """Relative poses are there after a reset, in published order; NumPy's seed gives the scene."""
    spec = get_task(task)
    env = env_utils.create_env_from_metadata(published(spec.robosuite_name))
    made = []
    for seed in (3, 3, 4):
        np.random.seed(seed)  # noqa: NPY002 - as robomimic's scripts do
        made.append(env.reset()["object"])
        expected = compose_observation(spec, read_observables(env.env))["object"]
        np.testing.assert_allclose(made[-1], expected, atol=1e-6)
        assert np.abs(expected[-4:]).max() > 1e-3
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.allclose(made[0], made[2])
    stepped, *_ = env.step(np.zeros(7))
    expected = compose_observation(spec, read_observables(env.env))["object"]
    np.testing.assert_allclose(stepped["object"], expected, atol=1e-6)


def test_robomimics_scripts_say_their_own_mistakes(capsys, monkeypatch) -> None:
    assert command.main([]) == 2
    assert "run_trained_agent" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        command.main(["run_trained_agent", "--nonsense"])


@pytest.mark.slow
def test_a_policy_is_trained_and_rolled_out_by_robomimics_scripts(tmp_path, capsys) -> None:
    """train.py on demonstrations of ours, run_trained_agent.py with a sampler of ours, playback."""
    from asd_policy.data.robomimic_hdf5 import export_hdf5
    from asd_policy.envs.demos import collect
    from asd_policy.envs.stored import StoredEpisodes

    store = tmp_path / "lift.zarr"
    collect("lift", 2, 0.1, store, workers=1, seed=5, progress=False)
    export_hdf5(store, tmp_path / "lift.hdf5", StoredEpisodes(store).model)
    config = {
        "algo_name": "diffusion_policy",
        "experiment": {"epoch_every_n_steps": 2, "rollout": {"enabled": False},
                       "save": {"epochs": [1]}, "logging": {"log_tb": False,
                       "terminal_output_to_txt": False}},
        "train": {"data": str(tmp_path / "lift.hdf5"), "output_dir": str(tmp_path / "out"),
                  "num_epochs": 1, "batch_size": 4, "cuda": False, "hdf5_filter_key": "train",
                  "hdf5_normalize_obs": True},
        "algo": {"unet": {"down_dims": [8, 16], "diffusion_step_embed_dim": 8, "n_groups": 4}},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert command.main(["train", "--config", str(tmp_path / "config.json")]) == 0
    assert "finished run successfully" in capsys.readouterr().out
    agent = next(Path(tmp_path / "out").rglob("*.pth"))
    words = ["--agent", str(agent), "--n_rollouts", "1", "--horizon", "9", "--seed", "0",
             "--dataset_path", str(tmp_path / "made.hdf5"), "--dataset_obs"]  # fmt: skip
    words += ["--record", str(tmp_path / "asd.json")]
    assert command.main(["run_trained_agent", *words, "--sampler", "asd", "--window", "8"]) == 0
    out = capsys.readouterr().out
    assert "averaged (EMA) weights" in out
    assert "9 control steps" in out
    assert "2 chunks of" in out
    (episode,) = json.loads((tmp_path / "asd.json").read_text())["episodes"]
    assert (episode["seed"], episode["steps"], len(episode["calls"])) == (0, 9, 2)
    assert episode["policy_s"] > 0
    assert episode["simulation_s"] > 0
    words = ["--dataset", str(tmp_path / "lift.hdf5"), "--n", "1", "--use-actions"]
    assert command.main(["playback", *words]) == 0
