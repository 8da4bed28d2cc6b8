"""Files of the installed robomimic: converted, exported, there and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.checkpoints import shipped
from asd_policy.data import object_layout
from asd_policy.integrations.robomimic import accelerate
from asd_policy.integrations.robomimic.check_verdict import OK, Check, load, verdict
from asd_policy.integrations.robomimic.small_policies import LOW_DIM, Variant, make_file
from asd_policy.integrations.robomimic_checkpoint import read_checkpoint, to_checkpoint
from asd_policy.integrations.robomimic_convert import to_robomimic
from asd_policy.policy import DiffusionPolicy, SamplerConfig, load_checkpoint
from asd_policy.policy.checkpoint import Checkpoint


def frames(count: int) -> list[dict[str, np.ndarray]]:
    """Of Lift's shapes, `object` in published order."""
    rng = np.random.default_rng(3)
    return [
        {key: rng.normal(size=shape).astype(np.float32) for key, shape in LOW_DIM.items()}
        for _ in range(count)
    ]


def simulated(frame: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The frame as robosuite 1.5 gives it."""
    columns, signs = object_layout.from_published("Lift")
    return {**frame, "object": signs * frame["object"][columns]}


def _alike(theirs: Any, made: Checkpoint, what: str) -> tuple[str, str]:
    """robomimic's policy, accelerated, and a checkpoint of this package: ten control steps."""
    fast = accelerate(theirs, "ddpm", verbose=False)
    fast.start_episode(seeds=3)
    ours = DiffusionPolicy(made, SamplerConfig("ddpm"))
    ours.reset(3)
    got, expected = zip(
        *((fast(simulated(frame)), ours.act(frame)) for frame in frames(10)), strict=True
    )
    return verdict(got, expected, what)


def _export() -> tuple[str, str]:
    made = load_checkpoint(shipped("lift"))
    return _alike(load(to_robomimic(made)), made, "shipped Lift, loaded and run by robomimic")


def _read(content: dict[str, Any]) -> Checkpoint:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        torch.save(content, path)
        return to_checkpoint(read_checkpoint(path))


def _convert() -> tuple[str, str]:
    content = make_file(Variant(normalized=True))
    return _alike(load(content), _read(content), "its file, run here")


def _there_and_back() -> tuple[str, str]:
    """The averages come back as they were, in the order that they were in."""
    content = make_file(Variant(normalized=True))
    back = to_robomimic(_read(content))
    before, after = content["model"]["ema"], back["model"]["ema"]
    assert before.keys() == after.keys(), "other weights came back"
    assert back["env_metadata"] == content["env_metadata"], "another environment came back"
    assert all(torch.equal(before[key], after[key]) for key in before), "weights changed"
    statistics = [made["obs_normalization_stats"]["object"] for made in (back, content)]
    for name in ("offset", "scale"):
        np.testing.assert_allclose(statistics[0][name], statistics[1][name], rtol=1e-5, atol=1e-6)
    return OK, "converted and exported: the same weights, bit for bit"


CHECKS: dict[str, Check] = {
    "export": _export,
    "convert": _convert,
    "convert, export": _there_and_back,
}
