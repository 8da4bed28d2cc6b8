"""A policy whose chunks are known, and which keeps the conditions it was asked with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from asd_policy import DiffusionPolicy
from asd_policy.policy import Checkpoint, SamplerConfig
from reference.tiny import tiny_checkpoint

TO, TA, TP = 2, 3, 8


class Recorder(nn.Module):
    """A network that predicts ε for a clean chunk known from the condition, and keeps conditions.

    Row j of that chunk is (j/10, first number of the latest observation/10), in [−1, 1] units.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.schedule, self.conditions = checkpoint.schedule, []

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
        self.conditions.append(cond.clone())
        latest = cond.view(len(cond), TO, -1)[:, -1, 0]
        clean = torch.stack(
            [
                torch.arange(x.shape[1]).expand(x.shape[:2]) / 10,
                latest[:, None].expand(x.shape[:2]) / 10,
            ],
            2,
        )
        bar = self.schedule.alphas_cumprod[timesteps].to(x).view(-1, 1, 1)
        return (x - bar.sqrt() * clean) / (1 - bar).sqrt()


def recording(sampler: str = "ddpm") -> tuple[DiffusionPolicy, Recorder]:
    checkpoint = tiny_checkpoint()
    network = Recorder(checkpoint)
    checkpoint.network = network
    return DiffusionPolicy(checkpoint, SamplerConfig(sampler, window=4)), network


def observation(value: float, batch: int | None = None) -> dict[str, np.ndarray]:
    """Observations filled with numbers that start at ``value`` (rows: value, value + 1 …)."""
    rows = 1 if batch is None else batch
    first = value + np.arange(rows, dtype=np.float64)
    full = {
        "object": np.stack([first, first + 0.1, first + 0.2], 1),
        "arm": np.stack([first + 0.3, first + 0.4], 1),
    }
    return full if batch is not None else {k: v[0] for k, v in full.items()}
