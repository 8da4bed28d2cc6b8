"""What CONTRIBUTING.md shows, run as it is written there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy.samplers.names import SAMPLER_FORMS
from asd_policy.samplers.table import METHODS
from reference.mixture import Mixture

FILE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs the checkout")


def example(word: str) -> dict:
    """What the file's one block with a word in it defines."""
    blocks = re.findall(r"^```python\n(.*?)^```", FILE.read_text(encoding="utf-8"), re.M | re.S)
    (block,) = (block for block in blocks if word in block)
    made: dict = {}
    exec(compile(block, str(FILE), "exec"), made)
    return made


@pytest.fixture
def mean() -> Iterator[None]:
    example("register")
    yield
    del METHODS["mean"], SAMPLER_FORMS["mean"]


def test_a_new_sampler_is_one_file(mean: None) -> None:
    schedule = asd_policy.Schedule.ddpm(20, clip_sample=False)
    network = Mixture(4).network(schedule)
    noise = asd_policy.Noise.draw((3, 4), 20, seed=0)
    drawn = asd_policy.sample(network, schedule, shape=(3, 4), sampler="mean", noise=noise)
    assert drawn.stats.calls.tolist() == [20] * 3
    silent = asd_policy.Noise(noise.initial, 0 * noise.steps, noise.log_uniform)
    expected = asd_policy.sample(network, schedule, shape=(3, 4), sampler="ddpm", noise=silent)
    torch.testing.assert_close(drawn.sample, expected.sample, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"eta applies to the samplers .*, not to 'mean'"):
        asd_policy.SamplerConfig("mean", eta=0.5)


def test_policies_and_evaluations_know_it(mean: None) -> None:
    policy = asd_policy.DiffusionPolicy.load("lift", sampler="mean", steps=5)
    policy.reset([1, 2])
    observation = {k: np.zeros((2, n), np.float32) for k, n in policy.observation_keys.items()}
    assert policy.act_batch(observation).shape == (2, policy.action_dim)
    assert [chunk.sampler for chunk in policy.last_chunks] == ["mean", "mean"]
    assert policy.window is None
    pytest.importorskip("tyro")
    from asd_policy.eval.options import EvalOptions, check_options
    from asd_policy.eval.samplers import law_of, sampler_settings

    options = EvalOptions(samplers=("mean", "ddpm"), steps=5)
    check_options(options)
    assert sampler_settings("mean", options) == {"sampler": "mean", "steps": 5}
    assert law_of("mean") == "approximate"


def test_a_new_chunk_source_is_one_file() -> None:
    policy = example("ChunkSource")["policy"]
    policy.reset([1, 2])
    places = np.array([[0.5, 1.0], [2.0, 3.0]])
    np.testing.assert_array_equal(policy.act_batch({"position": places}), places)
    assert [policy.queued(0), policy.queued(1)] == [7, 7]
    for _ in range(7):
        acted = policy.act_batch({"position": 0 * places})
        np.testing.assert_array_equal(acted, places)
    np.testing.assert_array_equal(policy.act_batch({"position": places + 1}), places + 1)
    assert policy.predict([1]).shape == (1, 16, 2)


def test_a_new_study_is_one_file(tmp_path, capsys) -> None:
    pytest.importorskip("tyro")
    pytest.importorskip("robosuite")
    from asd_policy.eval.options import EvalOptions
    from asd_policy.eval.studies.evaluate import evaluate

    run = tmp_path / "run"
    evaluate(EvalOptions(episodes=1, horizon=9, window=8, threads=1, out=run))
    capsys.readouterr()
    assert example("study_steps")["study_steps"](run) == [
        ["asd", "0", "none"],
        ["ddpm", "0", "none"],
    ]
    said = capsys.readouterr().out
    assert "successes" in said
    assert "ddpm" in said
