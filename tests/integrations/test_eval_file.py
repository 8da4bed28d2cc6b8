"""`asd-policy eval --checkpoint model.pth`: the task is that of the file's environment."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tyro")
pytest.importorskip("robosuite")
import torch

from asd_policy import CheckpointError
from asd_policy.envs.described import check_environment
from asd_policy.envs.tasks import environment_options, get_task
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.subject import other_sampler, with_its_task
from asd_policy.policy import PolicyConfig

CONTROLLER = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300],
    "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
LAYOUT = {"env_version": "1.5.2", "object_layout": "1.4.1"}


@pytest.fixture
def saved(tmp_path):
    """saved(env_metadata) → a file with a small untrained policy for Lift."""

    def save(ddim=0, **metadata):
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
            "algo": {"horizon": horizon, "unet": {"n_groups": 4},
                     "ddpm": {**chain, "enabled": not ddim},
                     "ddim": {**chain, "num_inference_timesteps": ddim}},
            "observation": {"modalities": {"obs": {"low_dim": list(keys), "rgb": []}}},
            "train": {},
        }  # fmt: skip
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


def test_another_environment_is_refused_with_what_differs(saved, refused) -> None:
    """Absolute control, another robot, another rate; what moves nothing is not looked at."""
    ours = environment_options(get_task("lift"))
    idle = {"has_renderer": True, "camera_heights": 84, "lite_physics": False, "horizon": 5}
    check_environment({"type": 1, "env_kwargs": {**ours, **idle}}, get_task("lift"), "x.pth")
    part = ours["controller_configs"][0]["body_parts"]["right"]
    right = {**part, "input_type": "absolute", "output_max": 0.05}
    absolute = [{"type": "BASIC", "body_parts": {"arms": {"right": right}}}]
    changed = {**ours, **idle, "robots": "Sawyer", "control_freq": 10,
               "controller_configs": absolute}  # fmt: skip
    path = saved(env_name="Lift", env_kwargs=changed, **LAYOUT)
    table = (
        r"setting +of the file +here robots +\['Sawyer'\] +\['Panda'\] "
        r"controller 0: output_max +0.05 .*controller 0: input_type +absolute +delta "
        r"control_freq +10 +20 robomimic's own run_trained_agent"
    )
    refused(table, "eval", "--checkpoint", path)


def test_a_published_environment_is_that_of_the_task() -> None:
    """robosuite 1.4's description, of which 1.5 has other names."""
    kwargs = {"control_freq": 20, "robots": ["Panda"], "camera_depths": False,
              "controller_configs": {**CONTROLLER, "control_delta": True}}  # fmt: skip
    meta = {"env_name": "Lift", "type": 1, "env_kwargs": kwargs}
    check_environment(meta, get_task("lift"), "x.pth")
    kwargs["controller_configs"] = {**CONTROLLER, "control_delta": False}
    with pytest.raises(CheckpointError, match=r"input_type +absolute +delta"):
        check_environment(meta, get_task("lift"), "x.pth")
    two = {"control_freq": 20, "robots": ["Panda", "Panda"],
           "env_configuration": "single-arm-opposed", "controller_configs": CONTROLLER}  # fmt: skip
    check_environment({"type": 1, "env_kwargs": two}, get_task("transport"), "x.pth")


def test_a_converted_folder_is_refused_as_its_file(saved, tmp_path, run, refused) -> None:
    kwargs = {"robots": ["Sawyer"], "control_freq": 20}
    path = saved(env_name="Lift", env_kwargs=kwargs, **LAYOUT)
    assert run("convert", path, tmp_path / "mine")[0] == 0
    refused(r"robots +\['Sawyer'\]", "eval", "--checkpoint", tmp_path / "mine")


def test_ddim_runs_in_the_files_steps(saved) -> None:
    path = saved(env_name="Lift", ddim=4, **LAYOUT)
    assert with_its_task(EvalOptions(checkpoint=path)).ddim_steps == 4
    assert with_its_task(EvalOptions(checkpoint=path, ddim_steps=3)).ddim_steps == 3


@pytest.mark.parametrize("converted", [False, True])
def test_a_file_of_ddim_that_runs_as_ddpm_says_so(saved, tmp_path, run, converted) -> None:
    path = saved(env_name="Lift", ddim=4, **LAYOUT)
    if converted:
        assert run("convert", path, tmp_path / "mine")[0] == 0
        path = tmp_path / "mine"
        assert with_its_task(EvalOptions(checkpoint=path)).ddim_steps == 4
    words = ["--checkpoint", path, "--episodes", 1, "--horizon", 9, "--window", 4, "--out"]
    status, _, out = run("eval", *words, tmp_path / "default")
    said = " ".join(out.split())
    assert status == 0
    assert "is configured for DDIM in 4 steps, and asd and ddpm sample another" in said
    assert "`--samplers ddim` samples it as it is configured" in said
    status, _, out = run("eval", *words, tmp_path / "ddim", "--samplers", "ddim")
    assert status == 0
    assert "is configured for DDIM" not in out
    made = json.loads((tmp_path / "ddim" / "config.json").read_text())
    assert made["resolved"]["steps"] == {"ddim": 4}
    assert other_sampler(EvalOptions(checkpoint=saved(env_name="Lift", **LAYOUT))) is None
    assert other_sampler(EvalOptions()) is None
