"""Recordings of rollouts: outcomes, seeds that pair two runs, times apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")

from robomimic.envs.env_base import EnvBase

import asd_policy.integrations.robomimic  # noqa: F401 - wrappers become environments, on 0.3
from asd_policy.data.scenes import scene_digest
from asd_policy.eval.runs.schemas import read_json
from asd_policy.integrations.robomimic import __main__ as command
from asd_policy.integrations.robomimic.record import (
    RecordedEnvironment,
    Recording,
)


@EnvBase.register
class Environment:
    """Succeeds after three steps where its scene is above the middle; draws no more numbers."""

    def __init__(self) -> None:
        self.steps, self.scene = 0, 0.0

    def reset(self):
        self.steps, self.scene = 0, np.random.rand()  # noqa: NPY002 - as robomimic's scenes
        return {"object": np.full(3, self.scene)}

    def step(self, action):
        self.steps += 1
        return {"object": np.full(3, self.scene)}, 0.0, False, {}

    def is_success(self):
        return {"task": self.scene > 0.5 and self.steps >= 3}


class Policy:
    """Uses `waste` random numbers at every step, as another sampler might."""

    def __init__(self, waste: int) -> None:
        self.waste, self.last_chunks = waste, []

    def start_episode(self) -> None:
        self.noise = torch.rand(()).item()

    def __call__(self, ob):
        np.random.rand(self.waste)  # noqa: NPY002
        torch.rand(self.waste)
        return self.noise


def rolled_out(waste: int, seed: int | None, *written: object) -> tuple[Recording, list]:
    """Five episodes by the order of calls that robomimic's script has."""
    recording, scenes = Recording(seed, *written), []
    policy = recording.policy(Policy(waste))
    env = RecordedEnvironment(Environment(), recording)
    for _ in range(5):
        policy.start_episode()
        ob = env.reset()
        for _ in range(4):
            ob = env.step(policy(ob=ob))[0]
            if env.is_success()["task"]:
                break
        scenes.append((env.env.scene, policy.noise))
    return recording, scenes


def test_episodes_depend_on_their_seed_alone() -> None:
    (one, scenes), (other, same) = rolled_out(1, 7), rolled_out(5, 7)
    assert scenes == same
    assert len(set(scenes)) == 5
    assert [episode.seed for episode in one.episodes] == [7, 8, 9, 10, 11]
    expected = [scene > 0.5 for scene, _ in scenes]
    assert [episode.success for episode in one.episodes] == expected
    assert [episode.success for episode in other.episodes] == expected
    assert [episode.steps for episode in one.episodes] == [3 if won else 4 for won in expected]
    assert rolled_out(1, None)[0].episodes[0].seed is None
    digests = [[episode.scene for episode in run.episodes] for run in (one, other)]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 5


def test_a_scene_is_told_by_its_vectors() -> None:
    """Last bits, pictures, other keys' order and the wrapper's own keys make no other scene."""
    ob = {"object": np.array([[0.1, -0.0]]), "robot0_eef_pos": np.arange(3.0)}
    same = {
        "robot0_eef_pos": np.arange(3, dtype=np.float32), "agentview_image": np.zeros((2, 4, 4, 3)),
        "object": np.array([[0.1 + 1e-12, 0.0]]), "timesteps": np.ones((2, 1)), "actions": 3.0,
    }  # fmt: skip
    assert scene_digest(ob) == scene_digest(same)
    assert scene_digest(ob) != scene_digest({**ob, "object": np.array([[0.1001, 0.0]])})
    assert scene_digest(ob) != scene_digest({"object": ob["object"]})


def test_a_recording_is_written(tmp_path) -> None:
    path = tmp_path / "new" / "run.json"
    recording, _ = rolled_out(1, 7, path, {"sampler": "asd"})
    assert len(json.loads(path.read_text())["episodes"]) == 4  # those that had ended
    recording.save()
    read = json.loads(path.read_text())
    assert read["sampler"] == "asd"
    pytest.importorskip("pydantic")
    assert read_json(path, "recording") == read
    assert len(read["episodes"]) == 5
    assert set(read["episodes"][0]) == {
        "seed", "scene", "success", "steps", "policy_s", "simulation_s", "calls",
    }  # fmt: skip
    steps = sum(episode.steps for episode in recording.episodes)
    assert f"in {steps} control steps" in str(recording)


def test_a_recording_is_not_overwritten(tmp_path, capsys) -> None:
    (tmp_path / "run.json").write_text("{}")
    words = ["run_trained_agent", "--agent", "x.pth", "--record", str(tmp_path / "run.json")]
    assert command.main(words) == 2
    assert "run.json exists already" in capsys.readouterr().err


def test_the_seed_is_both_ours_and_the_scripts() -> None:
    ours, rest = command._options(["--agent", "m.pth", "--seed", "3", "--sampler", "asd"])
    assert (ours.seed, ours.sampler) == (3, "asd")
    assert rest == ["--agent", "m.pth", "--seed", "3"]
