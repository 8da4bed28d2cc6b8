"""ParaDiGMS: Picard iteration over a sliding window, to a tolerance. Approximate."""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.denoiser import Denoiser
from asd_policy.samplers.result import Clock, Noise, Stats
from asd_policy.schedule import Schedule


def sample_paradigms(
    denoiser: Denoiser, schedule: Schedule, noise: Noise, window: int, tolerance: float
) -> tuple[Tensor, Stats]:
    """Parallel sampling by Picard iteration (Shih et al., 2023, arXiv 2305.16317, algorithm 1).

    All points of a window move at once along the sum of their drifts; the window then slides past
    the points whose mean squared change was at most tolerance²·σ². The result is close to the
    sequential sample of the same noise, not distributed as it.

    Returns:
        (B, D) samples and their statistics.

    Raises:
        NonFiniteError: the network returned a NaN or an infinity.
        ValueError: a DDIM that uses the network's own prediction.
    """
    schedule.check_speculation("ParaDiGMS")
    batch, num_steps, _ = noise.steps.shape
    like = noise.initial
    a, b, sigma = (t.to(like) for t in (schedule.a, schedule.b, schedule.sigma))
    threshold = torch.cat([(tolerance * sigma).square(), like.new_zeros(1)])
    kicks = sigma[:, None] * noise.steps
    # path[:, k] is the point at step k; everything ahead starts at the initial noise.
    path = like.unsqueeze(1).repeat(1, num_steps + 1, 1)
    position = torch.zeros(batch, dtype=torch.long, device="cpu")
    calls, evaluations = torch.zeros_like(position), torch.zeros_like(position)
    clock = Clock(like.device)
    while int(position.min()) < num_steps:
        for chain in (position < num_steps).nonzero().flatten().tolist():
            calls[chain] += 1
            evaluations[chain] += min(window, num_steps - int(position[chain]))
        chain, step = _window_rows(position, window, num_steps)
        chain, step = chain.to(like.device), step.to(like.device)
        x = path[chain, step]
        clock.lap("draft")
        x0 = denoiser(x, step, chain)
        clock.lap("network")
        drift = torch.addcmul((b[step, None] - 1) * x, a[step, None], x0) + kicks[chain, step]
        position = _slide(path, drift, threshold, position, window, num_steps)
        clock.lap("verify")
    clock.lap("other")
    zeros = torch.zeros((batch, num_steps), dtype=torch.long, device="cpu")
    stats = Stats(
        "paradigms", window, calls, evaluations, zeros, zeros.clone(), seconds=clock.seconds()
    )
    return path[:, -1], stats


def _window_rows(position: Tensor, window: int, num_steps: int) -> tuple[Tensor, Tensor]:
    """Chain and step of every row that this iteration evaluates, chain by chain."""
    steps = position.unsqueeze(1) + torch.arange(window, device=position.device)
    chain, column = (steps < num_steps).nonzero(as_tuple=True)
    return chain, steps[chain, column]


def _slide(
    path: Tensor, drift: Tensor, threshold: Tensor, position: Tensor, window: int, num_steps: int
) -> Tensor:
    """Move the window's points of each chain in place; return the new positions."""
    moved, row = position.clone(), 0
    for chain, start in enumerate(position.tolist()):
        width = min(window, num_steps - start)
        if width <= 0:
            continue
        points = path[chain, start] + drift[row : row + width].cumsum(0)
        row += width
        ahead = slice(start + 1, start + width + 1)
        error = (points - path[chain, ahead]).square().mean(-1)
        path[chain, ahead] = points
        path[chain, start + width + 1 :] = points[-1]
        # The first point is exact; the window stops before the first that still moves.
        still = error[1:] <= threshold[start + 1 : start + width]
        moved[chain] = start + 1 + int(still.cumprod(0).sum())
    return moved
