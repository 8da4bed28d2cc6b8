"""Real small policies in a world that costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.eval.plan import Parts
from asd_policy.eval.rollout.loop import Setup
from asd_policy.eval.slots import LocalSlot
from asd_policy.integrations.loaders import open_policies
from asd_policy.policy import save_checkpoint
from asd_policy.samplers.calibration import Learned
from reference.tiny import KEYS, tiny_checkpoint

PLACE = {"device": "cpu", "engine": "auto", "precision": "fp32", "compile": False}


class Drift:
    """Observations that follow from the actions; over after a number of steps that a seed sets."""

    def reset(self, *, seed: int) -> Any:
        self.random = np.random.default_rng(seed)
        self.left = int(self.random.integers(5, 10))
        self.at = self.random.normal(size=sum(KEYS.values())) * 0.5
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        self.left -= 1
        self.at = np.tanh(self.at + 0.1 * np.resize(action, len(self.at)))
        return self._observation(), 0.0, False, self.left == 0, {"is_success": self.left % 2 == 0}

    def _observation(self) -> dict[str, np.ndarray]:
        parts = np.split(self.at.astype(np.float32), np.cumsum(list(KEYS.values()))[:-1])
        return dict(zip(KEYS, parts, strict=True))

    def close(self) -> None:
        pass


def make_checkpoint(folder: Path) -> Path:
    """A policy of 12 steps, whose card holds a calibration for ASD."""
    made, known = tiny_checkpoint(num_steps=12), Learned()
    known.chunks, known._cross, known._square = 4, np.linspace(0, 1, 12), np.ones(12)
    known._accepted, known._decided = np.full(12, 90.0), np.full(12, 100.0)
    made.card["calibration"] = known.to_dict()
    return save_checkpoint(folder, made)


def prepare(parts: Parts, checkpoint: Path) -> Setup:
    make = open_policies(checkpoint, PLACE)
    policies = {name: make(settings) for name, settings in parts.samplers.items()}
    policy = next(iter(policies.values()))
    return Setup(
        policies=policies,
        slots=[LocalSlot(Drift) for _ in range(parts.num_envs)],
        render_fps=20.0,
        checkpoint_sha256=policy.card["sha256"],
        resolved={
            "control_hz": 20,
            "horizons": list(policy.horizons),
            **PLACE,
            "engine": policy.engine.name,
            "kernels": policy.engine.kernels,
            "checkpoint": str(checkpoint),
            "gpu": None,
            "threads": torch.get_num_threads(),
            "steps": {name: p.schedule.num_steps for name, p in policies.items()},
        },
    )
