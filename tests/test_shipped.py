"""The shipped Lift policy: whole, small, and sampled in as few calls as it should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy import Calibration, CheckpointError, DiffusionPolicy
from asd_policy.checkpoints import shipped
from asd_policy.policy import Checkpoint, load_checkpoint

# What a policy sees: pairs of successive observations, drawn from the demonstrations.
OBSERVATIONS = json.loads((Path(__file__).parent / "data" / "lift_observations.json").read_text())


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(shipped("lift"))


@pytest.fixture(scope="module")
def conditions(checkpoint: Checkpoint) -> Tensor:
    windows = torch.tensor(OBSERVATIONS["windows"])
    return checkpoint.observation_normalizer.normalize(windows).flatten(1)


def calls(checkpoint: Checkpoint, conditions: Tensor, **options: object) -> float:
    """Mean sequential network calls of a chunk, K = 100, with the card's calibration."""
    calibration = Calibration.from_dict(checkpoint.card["calibration"])
    calibration.frozen = True
    stats = asd_policy.sample(
        checkpoint.network,
        checkpoint.schedule,
        shape=(len(conditions), *checkpoint.config.chunk_shape),
        cond=conditions,
        generator=torch.Generator().manual_seed(0),
        calibration=calibration,
        **options,
    ).stats
    return float(stats.calls.double().mean())


def test_it_is_whole_and_small(checkpoint: Checkpoint) -> None:
    files = [path for path in shipped("lift").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert checkpoint.card["task"] == "lift"
    assert dict(checkpoint.config.observation_keys) == OBSERVATIONS["columns"]
    assert checkpoint.config.horizons == (2, 8, 16)
    assert checkpoint.schedule.num_steps == 100


@pytest.mark.parametrize(("window", "most"), [(32, 9.5), (16, 12.0)])
def test_calls_of_the_default_sampler(
    checkpoint: Checkpoint, conditions: Tensor, window: int, most: float
) -> None:
    assert calls(checkpoint, conditions, window=window) <= most


@pytest.mark.slow
def test_calls_of_the_paper_s_form(checkpoint: Checkpoint, conditions: Tensor) -> None:
    mean = calls(checkpoint, conditions, window=32, draft="frozen", calls_per_round=2)
    assert mean == pytest.approx(24, abs=2)


def test_it_acts() -> None:
    policy = DiffusionPolicy.load(shipped("lift"), window=16)
    pair = np.array(OBSERVATIONS["windows"][0])
    columns = np.split(pair, np.cumsum(list(OBSERVATIONS["columns"].values()))[:-1], axis=1)
    for t in range(2):
        names = OBSERVATIONS["columns"]
        row = {name: column[t] for name, column in zip(names, columns, strict=True)}
        action = policy.act(row)
        assert action.shape == (7,)
        assert float(np.abs(action).max()) <= 1 + 1e-5


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        CheckpointError, match=r"no checkpoint named 'mars' ships .*; there is lift"
    ):
        shipped("mars")
