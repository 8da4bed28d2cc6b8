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
    x = noise.initial
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
    return x, sequential_stats(name, len(x), len(coefficients), clock)
