"""Units in training on robomimic 0.3: observations and actions normalized, once, and undone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")
pytest.importorskip("h5py")

import h5py

import asd_policy.integrations.robomimic as asd

if asd.VERSION >= (0, 4):
    pytest.skip("robomimic normalizes by itself", allow_module_level=True)

import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
import robomimic.utils.train_utils as train_utils
from robomimic.algo import RolloutPolicy, algo_factory
from robomimic.config import config_factory

from asd_policy.errors import DatasetError
from asd_policy.integrations.robomimic_checkpoint import read_checkpoint, to_checkpoint
from asd_policy.policy import DiffusionPolicy

SHAPES = {"object": [10], "robot0_eef_pos": [3]}
LOW, HIGH = np.full(7, -3.0), np.full(7, 5.0)


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Three episodes, two of them for training, actions in units of their own, one constant."""
    rng = np.random.default_rng(0)
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(3):
            demo = file.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = 20
            for key, shape in SHAPES.items():
                demo[f"obs/{key}"] = rng.normal(3.0, 5.0, (20, *shape)).astype(np.float32)
            actions = rng.uniform(-3, 5, (20, 7))
            actions[:2] = LOW, HIGH
            actions[:, 6] = 0.5
            demo["actions"] = actions * (1 if i < 2 else 4)
            demo["rewards"] = demo["dones"] = np.zeros(20)
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1,
                                                     "env_kwargs": {}})  # fmt: skip
        file["mask/train"] = np.array(["demo_0", "demo_1"], dtype="S")
    return path


def make_config(path: Path, normalization: str | None = "min_max"):
    config = config_factory("diffusion_policy")
    with config.values_unlocked():
        config.train.data, config.train.hdf5_filter_key = str(path), "train"
        config.train.hdf5_normalize_obs = True
        config.train.action_config.actions.normalization = normalization
        config.observation.modalities.obs.low_dim = list(SHAPES)
        config.algo.unet.down_dims, config.algo.unet.n_groups = [8, 16], 4
        config.algo.unet.diffusion_step_embed_dim = 8
        config.algo.ddpm.num_train_timesteps = config.algo.ddpm.num_inference_timesteps = 5
    obs_utils.initialize_obs_utils_with_config(config)
    return config


def make_algo(config):
    return algo_factory("diffusion_policy", config, SHAPES, 7, torch.device("cpu"))


def batches(config, trained):
    """What robomimic's training loop gives to its algorithm, through its own loader."""
    dataset, _ = train_utils.load_data_for_training(config, obs_keys=list(SHAPES))
    seen, step = [], trained.train_on_batch

    def train_on_batch(batch, *args, **kwargs):
        seen.append(batch)
        return step(batch, *args, **kwargs)

    trained.train_on_batch = train_on_batch
    statistics = dataset.get_obs_normalization_stats()
    loader = torch.utils.data.DataLoader(dataset, batch_size=40)
    train_utils.run_epoch(trained, loader, 1, num_steps=1, obs_normalization_stats=statistics)
    return seen[0], statistics


def test_training_sees_observations_and_actions_normalized_once(dataset) -> None:
    config = make_config(dataset)
    algo = make_algo(config)
    batch, _ = batches(config, algo)
    values = batch["obs"]["object"][:, 1]  # one row of the data each, all of them
    torch.testing.assert_close(values.mean(0), torch.zeros(10), atol=1e-2, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(10), atol=5e-2, rtol=0)
    actions = batch["actions"][..., :6]
    assert float(actions.max()) == pytest.approx(0.999999)
    assert float(actions.min()) == pytest.approx(-0.999999)
    assert batch["actions"][..., 6].abs().max() == 0  # a constant is sent to 0, not to infinity


def test_what_was_trained_acts_in_the_datas_units(dataset, tmp_path) -> None:
    """The file carries the statistics; robomimic's policy, ours and the converted one heed them."""
    config = make_config(dataset)
    algo = make_algo(config)
    _, statistics = batches(config, algo)
    while_training = RolloutPolicy(algo, obs_normalization_stats=statistics)
    path = str(tmp_path / "model.pth")
    shapes = {"ac_dim": 7, "all_shapes": SHAPES, "all_obs_keys": list(SHAPES), "use_images": False}
    env = {"env_name": "Lift", "type": 1, "env_kwargs": {}}
    train_utils.save_model(algo, config, env, shapes, path, statistics)
    found = torch.load(path, weights_only=True)["action_normalization_stats"]["actions"]
    np.testing.assert_allclose(found["offset"], [[1.0] * 6 + [0.5]])
    np.testing.assert_allclose(found["scale"], [[4.0 / 0.999999] * 6 + [1.0]])
    content = torch.load(path, weights_only=True)  # what robomimic 0.5 asks for
    assert content["obs_normalization_stats"]["object"].keys() >= {"offset", "scale", "mean", "std"}
    policy = json.loads(content["config"])["algo"]["optim_params"]["policy"]
    assert policy["num_train_batches"] * policy["num_epochs"] >= 1

    loaded, _ = file_utils.policy_from_checkpoint(ckpt_path=path, device=torch.device("cpu"))
    observation = {k: np.full((2, *s), 0.5, np.float32) for k, s in SHAPES.items()}
    made = []
    for policy in (while_training, loaded, asd.accelerate(loaded, "ddpm", verbose=False)):
        torch.manual_seed(3)
        policy.start_episode()
        made.append([policy(dict(observation)) for _ in range(8)])
    np.testing.assert_allclose(made[1], made[0], atol=1e-5)
    np.testing.assert_allclose(made[2], made[0], atol=1e-4)
    assert np.abs(made[0]).max() > 1.5  # beyond [−1, 1]: in the data's units

    theirs = asd.accelerate(loaded, "ddpm", verbose=False)
    theirs.start_episode(seeds=5)
    ours = DiffusionPolicy(to_checkpoint(read_checkpoint(path)), theirs.chunks.config)
    ours.reset(5)
    frame = {key: value[0] for key, value in observation.items()}
    for _ in range(9):
        np.testing.assert_allclose(ours.act(frame), theirs(dict(observation)), atol=1e-4)


def test_without_normalization_actions_out_of_range_are_refused(dataset) -> None:
    config = make_config(dataset, normalization=None)
    with pytest.raises(DatasetError, match=r'in \[−1, 1\], found 5; .*normalization "min_max"'):
        batches(config, make_algo(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization": "gaussian"}, r"expected null or 'min_max'.*got 'gaussian'"),
        ({"keys": ["action_dict/rel_pos"]}, r"'actions' alone, got \['action_dict/rel_pos'\]"),
    ],
)
def test_other_normalizations_and_keys_are_refused(dataset, change, message) -> None:
    config = make_config(dataset, change.get("normalization", "min_max"))
    with config.values_unlocked():
        config.train.action_keys = change.get("keys", ["actions"])
    with pytest.raises(DatasetError, match=message):
        batches(config, make_algo(config))
