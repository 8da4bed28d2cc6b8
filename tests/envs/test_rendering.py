"""Pictures, where there is OpenGL; a clear message where there is none."""

import os
import platform
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env

import asd_policy  # noqa: F401 - registers the environments
from asd_policy.envs import rendering
from asd_policy.envs.world import RobosuiteEnv


@pytest.fixture
def fresh_choice(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    rendering.choose_backend.cache_clear()
    yield
    rendering.choose_backend.cache_clear()


@pytest.fixture(scope="module")
def opengl():
    try:
        return rendering.choose_backend()
    except DependencyNotInstalled:
        pytest.skip("needs OpenGL (libosmesa6, or libegl1 with a driver)")


def test_without_opengl_the_message_says_what_to_install(lift, monkeypatch, fresh_choice):
    monkeypatch.setattr(rendering, "works", lambda backend: False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(lift, "render_mode", "rgb_array")
    lift.reset(seed=0)
    with pytest.raises(
        DependencyNotInstalled, match=r"none works here \(tried: egl, osmesa\).*libosmesa6"
    ):
        lift.render()


def test_a_backend_that_cannot_draw_is_found_out():
    assert not rendering.works("no_such_backend")


def test_the_variable_decides_alone(monkeypatch, fresh_choice):
    tried = []
    monkeypatch.setattr(rendering, "works", lambda backend: bool(tried.append(backend)))
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(DependencyNotInstalled, match=r"tried: osmesa\)"):
        rendering.choose_backend()
    assert tried == ["osmesa"]


def test_an_unknown_backend_is_named(monkeypatch, fresh_choice):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(ValueError, match="MUJOCO_GL='vulkan'; expected one of: egl, osmesa"):
        rendering.choose_backend()


def test_without_a_mode_there_is_no_picture(lift):
    lift.reset(seed=0)
    assert lift.render() is None


def test_pictures_follow_the_world(opengl):
    env = RobosuiteEnv("lift", render_mode="rgb_array", render_size=(96, 128))
    env.reset(seed=0)
    first = env.render()
    assert (first.shape, first.dtype) == ((96, 128, 3), np.uint8)
    assert np.array_equal(env.render(), first)
    red = first[..., 0].astype(int) - first[..., 1:].max(axis=-1) > 60
    assert 10 < red.sum() < 500  # the cube, and only the cube
    env.reset(seed=1)  # a new model, and the cube elsewhere
    assert not np.array_equal(env.render(), first)
    env.reset(seed=0)
    assert np.array_equal(env.render(), first)
    env.close()


@pytest.mark.filterwarnings("ignore:.*Box observation space m.* value is:UserWarning")
def test_gymnasium_accepts_the_rendering(opengl):
    env = gym.make("asd_policy/Lift-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("named", [False, True], ids=["found", "named in MUJOCO_GL"])
def test_an_optimizer_can_be_made_after_a_picture(opengl, named):
    """PyTorch then loads Triton, whose LLVM does not bear Mesa's before it in the process. With the
    variable set, importing MuJoCo loads OpenGL already."""
    env = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    env |= {"MUJOCO_GL": opengl} if named else {}
    code = (
        "import asd_policy.envs.simulator\n"
        "from asd_policy.envs.rendering import OffscreenCamera\n"
        "import torch\n"
        "camera = OffscreenCamera(8, 8)\n"
        "torch.optim.AdamW([torch.zeros(1)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
