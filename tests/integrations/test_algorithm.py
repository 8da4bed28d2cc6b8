"""The algorithm that is registered for robomimic 0.3: names, training, checkpoints, rollouts."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")

import asd_policy.integrations.robomimic as asd

if asd.VERSION >= (0, 4):
    pytest.skip("robomimic has the algorithm itself", allow_module_level=True)

import h5py
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
import robomimic.utils.train_utils as train_utils
from robomimic.algo import RolloutPolicy, algo_factory
from robomimic.config import config_factory

from asd_policy import CheckpointError
from asd_policy.errors import DatasetError

DATA = Path(__file__).parents[1] / "data"
SHAPES = OrderedDict(object=[10], robot0_eef_pos=[3], robot0_eef_quat=[4], robot0_gripper_qpos=[2])
SMALL = {"down_dims": [8, 16], "diffusion_step_embed_dim": 8, "n_groups": 4}


def make_config(rgb: bool = False, **unet):
    config = config_factory("diffusion_policy")
    with config.values_unlocked():
        for key, value in unet.items():
            config.algo.unet[key] = value
        config.algo.optim_params.policy.learning_rate.warmup_steps = 2
        if rgb:
            config.observation.modalities.obs.low_dim = ["robot0_eef_pos"]
            config.observation.modalities.obs.rgb = ["agentview_image"]
    obs_utils.initialize_obs_utils_with_config(config)
    return config


def make_algo(config, shapes=SHAPES):
    return algo_factory("diffusion_policy", config, shapes, 7, torch.device("cpu"))


def batch(size: int = 4, high: float = 1.0) -> dict:
    rng = np.random.default_rng(0)
    obs = {k: torch.from_numpy(rng.normal(size=(size, 17, *s))).float() for k, s in SHAPES.items()}
    return {"obs": obs, "actions": torch.from_numpy(rng.uniform(-high, high, (size, 17, 7)))}


def train(algo, steps: int = 3) -> list[float]:
    algo.set_train()
    made = []
    for _ in range(steps):
        ready = algo.postprocess_batch_for_training(algo.process_batch_for_training(batch()), None)
        made.append(algo.log_info(algo.train_on_batch(ready, 1))["Loss"])
    return made


@pytest.mark.parametrize("kind", ["low_dim", "image"])
def test_names_and_shapes_are_those_of_robomimic_05(kind) -> None:
    """Facts about DiffusionPolicyUNet in its default configurations, listed as data."""
    image = kind == "image"
    shapes = OrderedDict(agentview_image=[3, 84, 84], robot0_eef_pos=[3]) if image else SHAPES
    algo = make_algo(make_config(rgb=image), shapes)
    expected = json.loads((DATA / "robomimic05_parameters.json").read_text())
    expected = {**expected["unet"][kind], **(expected["encoder"] if image else {})}
    got = {k: list(v.shape) for k, v in algo.nets.state_dict().items()}
    assert got == expected
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in algo.nets.modules())


def test_configuration_has_the_keys_and_defaults_of_05() -> None:
    config = json.loads(config_factory("diffusion_policy").dump())
    expected = json.loads((DATA / "robomimic05_config.json").read_text())
    sections = ("experiment", "train", "algo")
    assert flat({name: config[name] for name in sections}) == expected


def flat(values: dict, prefix: str = "") -> dict:
    """Nested keys, joined by dots."""
    made = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        made |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return made


def test_training_moves_weights_and_averages() -> None:
    algo = make_algo(make_config(**SMALL))
    before = copy.deepcopy(algo.nets.state_dict())
    losses = train(algo, 4)
    assert all(np.isfinite(losses))
    name = "policy.noise_pred_net.final_conv.1.weight"
    average, now = algo.ema.averaged_model.state_dict()[name], algo.nets.state_dict()[name]
    assert not torch.equal(before[name], now)
    assert not torch.equal(average, now)
    assert algo.lr_schedulers["policy"].last_epoch == 4
    algo.on_epoch_end(1)
    assert algo.lr_schedulers["policy"].last_epoch == 4


def test_the_rate_comes_down_once_where_an_epoch_is_the_whole_dataset(tmp_path) -> None:
    """epoch_every_n_steps: null. A policy that is only loaded needs no dataset."""
    config = make_config(**SMALL)
    with config.values_unlocked():
        config.experiment.epoch_every_n_steps = None
        config.train.num_epochs, config.train.batch_size = 4, 10
        config.train.data = str(tmp_path / "low_dim.hdf5")
    algo = make_algo(config)
    assert [algo._cosine(step) for step in (0, 1, 2)] == [0, 0.5, 1]
    with h5py.File(config.train.data, "w") as file:
        for name, length in (("demo_0", 60), ("demo_1", 47)):
            file[f"data/{name}/actions"] = np.zeros((length, 7))
    factors = [algo._cosine(step) for step in range(2, 4 * 10 + 1)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert factors[19] == pytest.approx(0.5)


def test_actions_out_of_range_and_short_sequences_are_refused() -> None:
    algo = make_algo(make_config(**SMALL))
    with pytest.raises(DatasetError, match=r"actions in \[−1, 1\], found 1\.9"):
        algo.process_batch_for_training(batch(high=2.0))
    short = batch()
    short["actions"] = short["actions"][:, :9]
    with pytest.raises(DatasetError, match=r"sequences of \(16, 7\) actions, got \(9, 7\)"):
        algo.process_batch_for_training(short)


def saved(path: Path, algo, config) -> Path:
    shapes = {"ac_dim": 7, "all_shapes": SHAPES, "all_obs_keys": list(SHAPES), "use_images": False}
    env = {"env_name": "Lift", "type": 1, "env_kwargs": {}, "env_version": "1.5.2"}
    train_utils.save_model(algo, config, env, shapes, str(path))
    return path


def observation(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=(2, *s)).astype(np.float32) for k, s in SHAPES.items()}


def test_saved_loaded_and_accelerated(tmp_path) -> None:
    config = make_config(**SMALL)
    algo = make_algo(config)
    train(algo)
    path = saved(tmp_path / "model.pth", algo, config)
    policy, _ = file_utils.policy_from_checkpoint(ckpt_path=str(path), device=torch.device("cpu"))
    loaded = policy.policy
    for ours, theirs in ((algo.nets, loaded.nets), (algo.ema.network, loaded.ema.network)):
        for key, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key])
    made = []
    for acting in (policy, asd.accelerate(policy, "ddpm", verbose=False)):
        torch.manual_seed(4)
        acting.start_episode()
        made.append(np.stack([acting(observation(t)) for t in range(3)]))
    np.testing.assert_allclose(made[0], made[1], atol=1e-5)
    again = make_algo(config)
    again.deserialize(algo.serialize(), load_optimizers=True)
    assert again.lr_schedulers["policy"].last_epoch == 3
    fast = asd.accelerate(policy, verbose=False, window=8)
    fast.start_episode()
    assert fast(observation()).shape == (7,)


def test_checkpoints_of_05_have_default_sizes_whatever_they_say(tmp_path) -> None:
    """0.5 ignores `algo.unet`, so the weights decide."""
    default = make_algo(make_config(down_dims=[16, 24], diffusion_step_embed_dim=8))
    state = default.serialize()
    del state["optimizers"], state["lr_schedulers"]  # as 0.4 wrote them
    algo = make_algo(make_config(**SMALL))
    algo.deserialize(state)
    weights = algo.nets.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in state["nets"].items())
    assert algo.optimizers["policy"].param_groups[0]["params"][0] is next(algo.nets.parameters())


def test_weights_that_do_not_fit_are_one_table() -> None:
    algo = make_algo(make_config(**SMALL))
    state = algo.serialize()
    state["nets"] = dict(state["nets"])
    del state["nets"]["policy.noise_pred_net.final_conv.1.bias"]
    with pytest.raises(CheckpointError, match=r"final_conv\.1\.bias +missing"):
        algo.deserialize(state)


def test_observations_are_normalized_in_training_and_in_rollouts() -> None:
    """Stacked frames and keys without statistics stop 0.3's own function."""
    stats = {k: {"mean": np.full((1, *s), 2.0), "std": np.full((1, *s), 4.0)}
             for k, s in SHAPES.items()}  # fmt: skip
    algo = make_algo(make_config(**SMALL))
    ready = algo.process_batch_for_training(batch())
    normal = algo.postprocess_batch_for_training(copy.deepcopy(ready), stats)
    torch.testing.assert_close(normal["obs"]["object"], (ready["obs"]["object"] - 2) / 4)
    policy = RolloutPolicy(algo, obs_normalization_stats=stats)
    made = []
    for acting in (policy, asd.accelerate(policy, "ddpm", verbose=False)):
        torch.manual_seed(1)
        acting.start_episode()
        made.append(acting({**observation(), "timesteps": np.zeros((2, 1))}))
    np.testing.assert_allclose(made[0], made[1], atol=1e-5)
