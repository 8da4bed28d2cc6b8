"""Sequential sampling: one network call a step. The law that ASD reproduces, and its baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.denoiser import Denoiser
from asd_policy.samplers.result import Clock, Noise, Stats, sequential_stats
from asd_policy.schedule import Schedule


def sample_ddpm(
    denoiser: Denoiser, schedule: Schedule, noise: Noise, name: str = "ddpm"
) -> tuple[Tensor, Stats]:
    """Ancestral sampling (Ho et al., 2020, algorithm 2); on a DDIM schedule, DDIM.

    Returns:
        (B, D) samples and their statistics.

    Raises:
        NonFiniteError: the network returned a NaN or an infinity.
    """
    # A copy: made in inference mode, as every later point is (a compiled network tells them apart).
    x = noise.initial.clone()
    clock = Clock(x.device)
    chains = torch.arange(len(x), device=x.device)
    coefficients = torch.stack([schedule.a, schedule.b, schedule.sigma], 1).tolist()
    for n, (a, b, sigma) in enumerate(coefficients):
        steps = torch.full_like(chains, n)
        clock.lap("other")
        x0 = denoiser(x, steps, chains)
        clock.lap("network")
        x = (a * x0).add_(x, alpha=b).add_(noise.steps[:, n], alpha=sigma)
    clock.lap("other")
    return x, sequential_stats(name, len(x), len(coefficients), clock.seconds())


class SequentialSteps:
    """The same chain as equal steps on state that stays where it is: what an engine captures.

    Attributes:
        x: (B, D) current points. n: (B,) steps taken, the same for all.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, like: Tensor) -> None:
        self.denoiser, size = denoiser, schedule.num_steps
        self.x, self.noise = torch.zeros_like(like), like.new_zeros(len(like), size, like.shape[1])
        self.n = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        self.chains = torch.arange(len(like), device=like.device)
        table = torch.stack([schedule.a, schedule.b, schedule.sigma], 1)
        self.coefficients = table.to(like)

    def load(self, noise: Noise) -> None:
        """Start a chunk."""
        self.x.copy_(noise.initial)
        self.noise.copy_(noise.steps)
        self.n.zero_()

    def step(self) -> None:
        """One network call, one step; nothing is read by the host."""
        prediction = self.denoiser.predict(self.x, self.n, self.chains)
        self.advance(prediction)

    def advance(self, prediction: Tensor) -> None:
        """x ← a·x̂0 + b·x + σ·ξ."""
        x0 = self.denoiser.x0(self.x, prediction, self.n)
        a, b, sigma = self.coefficients[self.n].unsqueeze(-1).unbind(1)
        self.x.copy_(a * x0 + b * self.x + sigma * self.noise[self.chains, self.n])
        self.n.add_(1).clamp_(max=self.noise.shape[1] - 1)
