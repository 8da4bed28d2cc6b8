"""Sequential sampling: one network call a step. What ASD reproduces, and its baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.chains import Tables
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
    tables = schedule.a, schedule.b, schedule.sigma, schedule.c
    coefficients = torch.stack(tables, 1).tolist()
    for n, (a, b, sigma, c) in enumerate(coefficients):
        steps = torch.full_like(chains, n)
        clock.lap("other")
        x0, prediction = denoiser.both(x, steps, chains)
        clock.lap("network")
        x = (a * x0).add_(x, alpha=b).add_(noise.steps[:, n], alpha=sigma)
        if c:
            x = x.add_(prediction, alpha=c)
    clock.lap("other")
    return x, sequential_stats(name, len(x), len(coefficients), clock.seconds())


def advance(
    x: Tensor,
    prediction: Tensor,
    noise: Tensor,
    n: Tensor,
    bad: Tensor,
    tables: Tables,
    denoiser: Denoiser,
) -> None:
    """The step of :func:`sample_ddpm`, in place and unread by the host; at the end, nothing.

    Args:
        x: (B, D) points. prediction: (B, D), the network's. noise: (B, K, D) ξ.
        n: (B,) steps taken. bad: (B,) first step whose prediction was not finite, −1 before.
    """
    going = n < tables.num_steps
    x0 = denoiser.x0(x, prediction, n)
    tables_of = (tables.a, tables.b, tables.sigma, tables.c)
    a, b, sigma, c = (t[n].unsqueeze(1) for t in tables_of)
    kick = noise[torch.arange(len(x), device=x.device), n.clamp(max=tables.num_steps - 1)]
    moved = a * x0 + b * x + sigma * kick + c * prediction
    x.copy_(torch.where(going.unsqueeze(1), moved, x))
    broken = going & (bad < 0) & ~prediction.isfinite().all(1)
    bad.copy_(torch.where(broken, n, bad))
    n.add_(going)
