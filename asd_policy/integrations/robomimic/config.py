"""The configuration of "diffusion_policy" for robomimic 0.3, with the keys that 0.5 has."""

from __future__ import annotations

from typing import Any

from robomimic.config.base_config import BaseConfig
from robomimic.config.config import Config

from asd_policy.integrations.robomimic_format import ALGO_NAME


class DiffusionPolicyConfig(BaseConfig):
    """Registers itself by being defined, as every configuration of robomimic's does.

    Keys that 0.3 lacks (``train.action_keys``, ``experiment.ckpt_path`` …) are there so that a
    configuration file of 0.5 can be used as it is.
    """

    ALGO_NAME = ALGO_NAME

    def experiment_config(self) -> None:
        super().experiment_config()
        self.experiment.ckpt_path = None
        self.experiment.env_meta_update_dict = Config()
        self.experiment.env_meta_update_dict.do_not_lock_keys()

    def train_config(self) -> None:
        super().train_config()
        train = self.train
        train.hdf5_load_next_obs = False
        train.seq_length = 16  # the prediction horizon
        train.frame_stack = 2  # the observation horizon
        train.normalize_weights_by_ds_size = False
        train.max_grad_norm = None
        train.action_keys = ["actions"]
        train.action_config = Config()
        train.action_config.actions = Config(normalization=None)
        train.action_config.do_not_lock_keys()

    def algo_config(self) -> None:
        algo = self.algo
        _fill(
            algo.optim_params.policy,
            {
                "optimizer_type": "adamw",
                "learning_rate": {
                    "initial": 1e-4,
                    "decay_factor": 0.1,
                    "step_every_batch": True,
                    "scheduler_type": "cosine",
                    "num_cycles": 0.5,
                    "warmup_steps": 500,
                    "epoch_schedule": [],
                },
                "regularization": {"L2": 1e-6},
            },
        )
        algo.optim_params.policy.learning_rate.do_not_lock_keys()
        _fill(algo, _SECTIONS)


_CHAIN = {
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
_SECTIONS: dict[str, dict[str, Any]] = {
    "horizon": {"observation_horizon": 2, "action_horizon": 8, "prediction_horizon": 16},
    "unet": {
        "enabled": True,
        "diffusion_step_embed_dim": 256,
        "down_dims": [256, 512, 1024],
        "kernel_size": 5,
        "n_groups": 8,
    },
    "ema": {"enabled": True, "power": 0.75},
    "ddpm": {"enabled": True, "num_inference_timesteps": 100, **_CHAIN},
    "ddim": {
        "enabled": False,
        "num_inference_timesteps": 10,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        **_CHAIN,
    },
}


def _fill(config: Any, values: dict[str, Any]) -> None:
    """Set nested entries, one by one: a Config keeps the dictionaries that it is given."""
    for key, value in values.items():
        if isinstance(value, dict):
            _fill(config[key], value)
        else:
            config[key] = value
