"""The shipped policies: whole, small, and sampled in as few calls as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy import Calibration, CheckpointError, DiffusionPolicy
from asd_policy.checkpoints import shipped, shipped_names
from asd_policy.policy import Checkpoint, load_checkpoint

DATA = Path(__file__).parent / "data"
LARGEST = {"lift": 12e6}  # bytes; of the others:
LARGEST_OF_OTHERS = 16e6
LOOKS_AFTER = {"square": 4, "tool_hang": 4}  # actions; of the others: 8


@pytest.fixture(scope="module", params=shipped_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(name: str) -> Checkpoint:
    return load_checkpoint(shipped(name))


@pytest.fixture(scope="module")
def observations(name: str) -> dict[str, Any]:
    """What a policy sees: pairs of successive observations, drawn from the demonstrations."""
    content: dict[str, Any] = json.loads((DATA / f"{name}_observations.json").read_text())
    return content


@pytest.fixture(scope="module")
def conditions(checkpoint: Checkpoint, observations: dict[str, Any]) -> Tensor:
    windows = torch.tensor(observations["windows"])
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


def test_it_is_whole_and_small(
    checkpoint: Checkpoint, observations: dict[str, Any], name: str
) -> None:
    files = [path for path in shipped(name).iterdir() if path.is_file()]
    assert {path.name for path in files} == {"model.safetensors", "card.json", "README.md"}
    assert sum(path.stat().st_size for path in files) <= LARGEST.get(name, LARGEST_OF_OTHERS)
    assert checkpoint.card["task"] == name
    assert dict(checkpoint.config.observation_keys) == observations["columns"]
    assert checkpoint.config.horizons == (2, LOOKS_AFTER.get(name, 8), 16)
    assert checkpoint.schedule.num_steps == 100
    assert checkpoint.card["success"]["samplers"]["ddpm"]["n"] == 200


@pytest.mark.parametrize(("window", "lift", "others"), [(32, 9.5, 11.0), (16, 12.0, 14.0)])
def test_calls_of_the_default_sampler(
    checkpoint: Checkpoint,
    conditions: Tensor,
    name: str,
    window: int,
    lift: float,
    others: float,
) -> None:
    most = lift if name == "lift" else others
    assert calls(checkpoint, conditions, window=window) <= most


@pytest.mark.slow
def test_calls_of_the_paper_s_form(checkpoint: Checkpoint, conditions: Tensor, name: str) -> None:
    mean = calls(checkpoint, conditions, window=32, draft="frozen", calls_per_round=2)
    assert mean > 1.5 * calls(checkpoint, conditions, window=32)
    if name == "lift":
        assert mean == pytest.approx(24, abs=3)


def test_it_acts(name: str, observations: dict[str, Any]) -> None:
    policy = DiffusionPolicy.load(shipped(name), window=16)
    pair, columns = np.array(observations["windows"][0]), observations["columns"]
    parts = np.split(pair, np.cumsum(list(columns.values()))[:-1], axis=1)
    for t in range(2):
        action = policy.act({key: part[t] for key, part in zip(columns, parts, strict=True)})
        assert action.shape == (policy.action_dim,)
        assert float(np.abs(action).max()) <= 1 + 1e-5


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        CheckpointError, match=r"no checkpoint named 'mars' ships .*; there is .*lift"
    ):
        shipped("mars")
