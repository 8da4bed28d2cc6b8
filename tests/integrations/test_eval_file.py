"""`asd-policy eval --checkpoint model.pth`: the task is that of the file's environment."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tyro")
pytest.importorskip("robosuite")
import torch

from asd_policy.envs.tasks import get_task
from asd_policy.policy import PolicyConfig

LAYOUT = {"env_version": "1.5.2", "object_layout": "1.4.1"}


@pytest.fixture
def saved(tmp_path):
    """saved(env_metadata) → a file with a small untrained policy for Lift."""

    def save(**metadata):
        keys = dict(get_task("lift").observation_keys)
        config = PolicyConfig(keys, 7, down_dims=(8, 16), step_embed_dim=8, n_groups=4)
        weights = {
            f"policy.noise_pred_net.{k}": v for k, v in config.build_network().state_dict().items()
        }
        chain = {"enabled": True, "num_train_timesteps": 5, "num_inference_timesteps": 5,
                 "beta_schedule": "squaredcos_cap_v2", "clip_sample": True,
                 "prediction_type": "epsilon"}  # fmt: skip
        horizon = {"observation_horizon": 2, "action_horizon": 8, "prediction_horizon": 16}
        values = {
            "algo": {"horizon": horizon, "unet": {"n_groups": 4}, "ddpm": chain, "ddim": chain},
            "observation": {"modalities": {"obs": {"low_dim": list(keys), "rgb": []}}},
            "train": {},
        }
        content = {
            "model": {"nets": weights, "ema": None}, "config": json.dumps(values),
            "algo_name": "diffusion_policy", "env_metadata": {"type": 1, **metadata},
            "shape_metadata": {"ac_dim": 7, "all_shapes": {k: [v] for k, v in keys.items()}},
        }  # fmt: skip
        torch.save(content, tmp_path / "model.pth")
        return tmp_path / "model.pth"

    return save


def test_a_file_is_evaluated(saved, tmp_path, run) -> None:
    path, out = saved(env_name="Lift", **LAYOUT), tmp_path / "out"
    words = ["--checkpoint", path, "--episodes", 1, "--horizon", 9, "--window", 4, "--out", out]
    assert run("eval", *words)[0] == 0
    results = json.loads((out / "results.json").read_text())
    assert set(results["samplers"]) == {"asd", "ddpm"}
    assert json.loads((out / "config.json").read_text())["settings"]["checkpoint_sha256"]


def test_other_environments_are_refused(saved, refused) -> None:
    path = saved(env_name="Wipe", **LAYOUT)
    refused("was trained in 'Wipe'; expected one of: Lift", "eval", "--checkpoint", path)
    path = saved(env_name="PickPlaceCan", **LAYOUT)
    refused(
        "--task square: .* was trained for can", "eval", "--checkpoint", path, "--task", "square"
    )
    refused("other observations", "eval", "--checkpoint", path)
    path = saved(env_name="Lift", env_version="1.5.1")
    refused("another order", "eval", "--checkpoint", path)
