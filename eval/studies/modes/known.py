"""Two ways whose distribution is known: samplers alone, without a network's errors.

A chunk of 16 commands is near one constant or another, and the network is the exact E[x0 | x] of
that mixture (as a prediction of the noise): what comes out else than the chances is the sampler's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import asd_policy
from asd_policy.denoiser import Network
from asd_policy.eval.runs.modes import Known
from asd_policy.eval.studies.modes.samplers import spaced
from asd_policy.schedule import Schedule

LENGTH = 16  # of a chunk
SPREAD = 0.02  # standard deviation of each command around its mode
TOGETHER = 1000  # chunks


@dataclass(frozen=True)
class Case:
    """Commands, normalized to [-1, 1], of the two ways, and the chance of the second."""

    first: float
    second: float
    chance: float


# To either side; both to one side; the same and alike; one rare; large, and rare.
CASES = (
    Case(-0.1, 0.1, 0.5), Case(-0.5, 0.5, 0.5), Case(0.2, 0.4, 0.5), Case(0.3, 0.9, 0.5),
    Case(-0.5, 0.5, 0.9), Case(-0.9, 0.9, 0.95),
)  # fmt: skip


def network(case: Case, schedule: Schedule) -> Network:
    """What predicts the noise in chunks (N, LENGTH, 1), exactly."""
    means = torch.tensor([case.first, case.second], device="cpu")
    chances = torch.tensor([1 - case.chance, case.chance], device="cpu").log()

    def predict(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        bar = schedule.alphas_cumprod[timesteps].to(x)[:, None]
        signal, rows = bar.sqrt(), x[..., 0]
        variance = bar * SPREAD**2 + 1 - bar
        away = (rows[:, None] - signal[:, None] * means.to(x)[:, None]).square().sum(-1)
        which = (chances.to(x) - away / variance / 2).softmax(1)
        mean = (which @ means.to(x))[:, None]
        x0 = mean + signal * SPREAD**2 / variance * (rows - signal * mean)
        return ((rows - signal * x0) / (1 - bar).sqrt())[..., None]

    return predict


def count(case: Case, sampler: str, chunks: int, seed: int) -> Known:
    """Draw chunks, and count those that are in the middle half of the way between the modes, and
    those beyond it on either side."""
    name, schedule = spaced(sampler, Schedule.ddpm(num_steps=100))
    predict = network(case, schedule)
    shares: list[np.ndarray] = []
    kept: dict[str, Any] = {}
    for block in range(-(-chunks // TOGETHER)):
        shape = (min(TOGETHER, chunks - block * TOGETHER), LENGTH, 1)
        drawn = asd_policy.sample(
            predict, schedule, shape=shape, sampler=name, seed=seed + block, **kept
        )
        kept = {"engine": drawn.engine, "calibration": drawn.calibration}
        middle = drawn.sample[..., 0].mean(1).double().numpy()
        shares.append((middle - case.first) / (case.second - case.first))
    share = np.concatenate(shares)
    return {
        "sampler": sampler, "first": case.first, "second": case.second, "chance": case.chance,
        "counts": [
            int((share < 0.25).sum()), int(((share >= 0.25) & (share <= 0.75)).sum()),
            int((share > 0.75).sum()),
        ],
    }  # fmt: skip


def same(case: Case, sampler: str, found: Known) -> bool:
    """Whether what was found is of this case and sampler."""
    asked = (sampler, case.first, case.second, case.chance)
    return asked == (found["sampler"], found["first"], found["second"], found["chance"])
