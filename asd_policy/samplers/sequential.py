"""The sequential chain as equal steps on state that stays where it is: what an engine captures."""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.chains import make_tables
from asd_policy.denoiser import Denoiser
from asd_policy.samplers.kernels import Kernels
from asd_policy.samplers.result import Noise
from asd_policy.schedule import Schedule


class SequentialSteps:
    """:func:`asd_policy.samplers.ddpm.sample_ddpm`, a step at a time, nothing read by the host.

    Attributes:
        x: (B, D) current points; samples once finished.
        marks: (2, B) steps taken, and the first whose prediction was not finite (−1: none).
    """

    def __init__(
        self, denoiser: Denoiser, schedule: Schedule, like: Tensor, kernels: Kernels
    ) -> None:
        self.denoiser, self._kernels = denoiser, kernels
        self._tables = make_tables(schedule, 1, like.dtype, like.device)
        self.x = torch.zeros_like(like)
        self._noise = like.new_zeros(len(like), schedule.num_steps, like.shape[1])
        self.marks = torch.zeros((2, len(like)), dtype=torch.int64, device=like.device)
        self._chains = torch.arange(len(like), device=like.device)

    def load(self, noise: Noise) -> None:
        """Start a chunk."""
        self.x.copy_(noise.initial)
        self._noise.copy_(noise.steps)
        self.marks[0].zero_()
        self.marks[1].fill_(-1)

    def step(self) -> None:
        """One network call, one step."""
        n, bad = self.marks
        prediction = self.denoiser.predict(self.x, n, self._chains)
        self._kernels.advance(self.x, prediction, self._noise, n, bad, self._tables, self.denoiser)
