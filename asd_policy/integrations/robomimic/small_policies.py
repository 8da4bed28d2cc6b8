"""Small untrained policies as files of the installed robomimic, for its check."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from asd_policy.integrations.robomimic_format import NETWORK_PREFIX, with_training_length
from asd_policy.networks.unet1d import ConditionalUnet1D

STEPS, ACTION_DIM, SIZE = 20, 7, 24
SIZES: dict[str, Any] = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "n_groups": 8}
LOW_DIM = {
    "object": [10],
    "robot0_eef_pos": [3],
    "robot0_eef_quat": [4],
    "robot0_gripper_qpos": [2],
}
ENVIRONMENT = {"env_name": "Lift", "type": 1, "env_version": "1.5.2", "env_kwargs": {}}


@dataclass(frozen=True)
class Variant:
    """What a policy is made with. ``chain``: entries of its ``algo.ddpm`` or ``algo.ddim``."""

    ema: bool = True
    normalized: bool = False
    rotations: bool = False
    pictures: bool = False
    ddim: bool = False
    chain: dict[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, list[int]]:
        picture = {"agentview_image": [3, SIZE, SIZE]} if self.pictures else {}
        return {**picture, **LOW_DIM}


def make_file(variant: Variant) -> dict[str, Any]:
    """The dictionary that robomimic saves and loads: averages unlike the weights."""
    from robomimic.algo import algo_factory

    torch.manual_seed(0)
    config = _configuration(variant)
    shapes = OrderedDict((key, list(shape)) for key, shape in variant.shapes.items())
    width = 10 if variant.rotations else ACTION_DIM  # position, six of a rotation, gripper
    algo = algo_factory("diffusion_policy", config, shapes, width, torch.device("cpu"))
    cond = algo.nets["policy"]["obs_encoder"].output_shape()[0] * 2
    parts = {
        name: _weights(None if value is None else dict(value), width, cond)
        for name, value in algo.serialize().items()
        if name in ("nets", "ema")
    }
    values = with_training_length(json.loads(config.dump()))
    made: dict[str, Any] = {
        "model": {"optimizers": {}, "lr_schedulers": {}, **parts},
        "config": json.dumps(values),
        "algo_name": "diffusion_policy",
        "env_metadata": json.loads(json.dumps(ENVIRONMENT)),
        "shape_metadata": {
            "ac_dim": width, "all_shapes": shapes, "all_obs_keys": list(shapes),
            "use_images": variant.pictures,
        },
    }  # fmt: skip
    return {**made, **_statistics(variant)}


def _weights(state: dict[str, Any] | None, width: int, cond: int) -> dict[str, Any] | None:
    """The encoder's, and those of a network that is small, each a bit moved."""
    if state is None:
        return None
    kept = {key: value for key, value in state.items() if not key.startswith(NETWORK_PREFIX)}
    network = ConditionalUnet1D(width, cond, **SIZES).state_dict()
    kept |= {NETWORK_PREFIX + k: v + 0.1 * torch.randn_like(v) for k, v in network.items()}
    return kept


def _configuration(variant: Variant) -> Any:
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.config import config_factory

    config = config_factory("diffusion_policy")
    with config.unlocked():
        config.train.hdf5_normalize_obs = variant.normalized
        modalities = config.observation.modalities.obs
        modalities.low_dim = list(LOW_DIM)
        if variant.pictures:
            modalities.rgb = ["agentview_image"]
            core = config.observation.encoder.rgb.core_kwargs
            core.backbone_class, core.backbone_kwargs = "ShallowConv", {"input_channel": 3}
            core.feature_dimension, core.pool_class, core.flatten = 8, None, True
        algo = config.algo
        algo.ema.enabled = variant.ema
        algo.unet.down_dims, algo.unet.n_groups = list(SIZES["down_dims"]), SIZES["n_groups"]
        algo.unet.diffusion_step_embed_dim = SIZES["diffusion_step_embed_dim"]
        algo.ddpm.enabled, algo.ddim.enabled = not variant.ddim, variant.ddim
        chain = algo.ddim if variant.ddim else algo.ddpm
        chain.num_train_timesteps = STEPS
        chain.num_inference_timesteps = STEPS // 2 if variant.ddim else STEPS
        for name, value in variant.chain.items():
            chain[name] = value
        for name, length in (("num_train_batches", 1), ("num_epochs", 1)):
            algo.optim_params.policy[name] = length
        if variant.rotations:
            config.train.action_keys = list(_ACTIONS)
            config.train.action_config = {
                key: {"normalization": "min_max", **({"format": "rot_6d"} if n == 6 else {})}
                for key, n in _ACTIONS.items()
            }
    obs_utils.initialize_obs_utils_with_config(config)
    return config


_ACTIONS = {"action_dict/pos": 3, "action_dict/rot_6d": 6, "action_dict/gripper": 1}


def _statistics(variant: Variant) -> dict[str, Any]:
    rng = np.random.default_rng(1)

    def of(shape: list[int]) -> dict[str, Any]:
        offset, scale = rng.normal(size=(1, *shape)), rng.uniform(1, 2, (1, *shape))
        both = {"offset": offset.tolist(), "scale": scale.tolist()}
        return {**both, "mean": both["offset"], "std": both["scale"]}

    made: dict[str, Any] = {}
    if variant.normalized:
        made["obs_normalization_stats"] = {key: of(shape) for key, shape in LOW_DIM.items()}
        made["action_normalization_stats"] = {"actions": of([ACTION_DIM])}
    if variant.rotations:
        made["action_normalization_stats"] = {key: of([n]) for key, n in _ACTIONS.items()}
    return made


def observations(variant: Variant, count: int, batch: int | None = None) -> list[dict[str, Any]]:
    """Stacked frames (To = 2) as the release's environments give them, with a key to ignore."""
    from asd_policy.integrations.robomimic import VERSION

    rng = np.random.default_rng(2)
    lead = (2,) if batch is None else (batch, 2)
    made = []
    for _ in range(count):
        ob: dict[str, Any] = {
            key: rng.normal(size=(*lead, *shape)) for key, shape in LOW_DIM.items()
        }
        if variant.pictures:
            picture = rng.integers(0, 256, (*lead, SIZE, SIZE, 3), dtype=np.uint8)
            ready = np.moveaxis(picture.astype(np.float32) / 255, -1, -3)
            ob["agentview_image"] = picture if VERSION >= (0, 5) else ready
        made.append(ob if variant.normalized else {**ob, "robot0_joint_pos": np.zeros((*lead, 7))})
    return made
