"""Policies that see: evaluated through robomimic's encoder, refused where that cannot be."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("robosuite")
import gymnasium as gym
import torch
from gymnasium.error import DependencyNotInstalled

import asd_policy  # noqa: F401 - registers the environments
from asd_policy.envs import cameras, rendering
from asd_policy.envs.rendering import choose_backend

SIZE = 24
SHAPES = {"agentview_image": [3, SIZE, SIZE], "robot0_eef_pos": [3]}
ENVIRONMENT = {"env_name": "Lift", "type": 1, "env_kwargs": {}, "env_version": "1.5.2"}


def drawing() -> None:
    """Skip, by name, where nothing can be drawn."""
    try:
        choose_backend()
    except DependencyNotInstalled as error:
        pytest.skip(f"needs OpenGL: {error}")


@pytest.fixture
def path(tmp_path):
    """An untrained policy whose encoder is robomimic's own."""
    pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")
    from asd_policy.integrations.robomimic.small_policies import Variant, make_file

    content = make_file(Variant(pictures=True))
    content["env_metadata"] = {**ENVIRONMENT, "object_layout": "1.4.1"}
    torch.save(content, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_an_image_policy_is_evaluated(path, tmp_path, run) -> None:
    drawing()
    out = tmp_path / "out"
    words = ["--checkpoint", path, "--episodes", 2, "--num-envs", 2, "--horizon", 9]
    assert run("eval", *words, "--window", 4, "--out", out)[0] == 0
    results = json.loads((out / "results.json").read_text())
    assert set(results["samplers"]) == {"asd", "ddpm"}
    assert results["samplers"]["ddpm"]["success"]["n"] == 2


def test_it_acts_on_what_its_cameras_see(path) -> None:
    """The same actions as robomimic's policy, given the pictures as robomimic gives them."""
    drawing()
    import robomimic.utils.file_utils as file_utils

    from asd_policy.integrations.robomimic import VERSION, accelerate
    from asd_policy.integrations.robomimic.evaluation import open_file
    from asd_policy.integrations.robomimic_checkpoint import read_checkpoint
    from asd_policy.samplers.config import SamplerConfig

    place = {"device": "cpu", "engine": "eager"}
    ours = open_file(read_checkpoint(path), place)(SamplerConfig("ddpm"))
    loaded, _ = file_utils.policy_from_checkpoint(ckpt_path=str(path), device=torch.device("cpu"))
    theirs = accelerate(loaded, "ddpm", verbose=False)
    env = cameras.CameraObservations(gym.make("asd_policy:asd_policy/Lift-v0"), ours.pictures)
    observation, _ = env.reset(seed=0)
    picture = observation["agentview_image"]
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.std() > 10
    ours.reset([4])
    theirs.start_episode(seeds=4)
    rows = {key: observation[key][None] for key in ours.observation_keys}
    ready = picture.transpose(2, 0, 1).astype(np.float32) / 255  # as 0.3's environments give it
    frame = {key: observation[key] for key in ours.observation_keys}
    frame["agentview_image"] = picture if VERSION >= (0, 5) else ready
    acted = ours.act_batch(rows, [0])[0]
    np.testing.assert_allclose(acted, theirs(frame), atol=1e-5)
    ours.reset([4])
    rows["agentview_image"] = 255 - rows["agentview_image"]
    assert not np.allclose(ours.act_batch(rows, [0])[0], acted, atol=1e-4)
    env.close()


@pytest.mark.parametrize("turned", [True, False])
def test_pictures_of_another_shape_are_named(path, turned) -> None:
    """Its releases differ in where colours are, and their own message is an empty one."""
    import robomimic.utils.file_utils as file_utils

    from asd_policy.integrations.robomimic import VERSION, accelerate

    loaded, _ = file_utils.policy_from_checkpoint(ckpt_path=str(path), device=torch.device("cpu"))
    policy = accelerate(loaded, "ddpm", verbose=False)
    side = SIZE if turned else 2 * SIZE
    last = (VERSION >= (0, 5)) is not turned
    picture = np.zeros((2, side, side, 3) if last else (2, 3, side, side), np.uint8)
    with pytest.raises(ValueError, match=r"agentview_image +wrong shape"):
        policy({"agentview_image": picture, "robot0_eef_pos": np.zeros((2, 3))})


def test_unknown_cameras_are_refused() -> None:
    drawing()
    env = gym.make("asd_policy:asd_policy/Lift-v0")
    with pytest.raises(ValueError, match=r"named .*agentview_image.*; got moon_image"):
        cameras.CameraObservations(env, {"moon_image": (8, 8)})
    env.close()


def test_without_rendering_the_keys_are_named(path, refused, monkeypatch) -> None:
    def nothing() -> str:
        raise DependencyNotInstalled("rendering needs OpenGL, and none works here")

    monkeypatch.setattr(rendering, "choose_backend", nothing)
    refused(
        "sees agentview_image, which cannot be rendered here: rendering needs OpenGL",
        "eval", "--checkpoint", path,
    )  # fmt: skip


def test_folders_do_not_hold_image_policies(path, tmp_path, refused) -> None:
    message = "sees agentview_image: .*low-dimensional policies. Use the file itself"
    refused(message, "convert", path, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_pictures_beside_another_object_are_refused(path, refused) -> None:
    content = torch.load(path, weights_only=False)
    del content["env_metadata"]["object_layout"]
    torch.save(content, path)
    refused(
        "sees pictures, and 'object' in the order of robosuite 1.5.2", "eval", "--checkpoint", path
    )


NO_ROBOMIMIC = """
import importlib.metadata as metadata, sys
version = metadata.version
def missing(name):
    if name == "robomimic":
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = missing
from asd_policy import cli
sys.exit(cli.main(["eval", "--checkpoint", sys.argv[1]]))
"""


def test_without_robomimic_the_extra_is_named(tmp_path) -> None:
    values = {
        "algo": {"ddpm": {"enabled": True}},
        "observation": {"modalities": {"obs": {"low_dim": ["robot0_eef_pos"],
                                               "rgb": ["agentview_image"]}}},
    }  # fmt: skip
    content = {
        "model": {"nets": {}, "ema": None}, "config": json.dumps(values),
        "algo_name": "diffusion_policy", "env_metadata": ENVIRONMENT,
        "shape_metadata": {"ac_dim": 7, "all_shapes": SHAPES},
    }  # fmt: skip
    torch.save(content, tmp_path / "model.pth")
    made = subprocess.run(
        [sys.executable, "-c", NO_ROBOMIMIC, str(tmp_path / "model.pth")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 2, made.stderr
    said = " ".join(made.stderr.split())
    assert "sees agentview_image, through an encoder that robomimic has" in said
    assert "pip install 'asd-policy[sim,robomimic]'" in said
    assert "Traceback" not in said
