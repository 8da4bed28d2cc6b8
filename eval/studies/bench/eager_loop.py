"""The sampling loop that packages run today, written from the equations: the outer baseline.

One call of the plain module a step, with the timestep moved to the device and expanded, then the
scheduler's arithmetic on (B, T, D) tensors in about a dozen small operations, its coefficients
computed anew from ᾱ each time, and noise sampled at each step; under ``torch.no_grad``. It flatters
no sampler of this package: diffusers' own ``step`` does all that, and takes twice as long for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from asd_policy.samplers.result import Clock, Stats, sequential_stats
from asd_policy.schedule import Schedule


@torch.no_grad()
def sample_eager_loop(
    network: nn.Module,
    schedule: Schedule,
    initial: Tensor,
    cond: Tensor | None,
    noise: Callable[[int], Tensor] | None = None,
) -> tuple[Tensor, Stats]:
    """DDPM ancestral sampling (Ho et al., 2020, eqs. 6-7, 15) as packages write it.

    Args:
        network: ``network(x, timesteps, cond)``. schedule: a DDPM's.
        initial: (B, *shape). cond: (B, …) or None.
        noise: (B, *shape) of step n, for tests; sampled where None.

    Returns:
        (B, *shape) samples and their statistics.
    """
    config, bars = schedule.config, schedule.signal.square().to(initial.dtype)
    x, clock = initial, Clock(initial.device)
    for n, timestep in enumerate(schedule.timesteps):
        expanded = timestep[None].to(x.device).expand(x.shape[0])
        clock.lap("other")
        output = network(x, expanded, cond)
        clock.lap("network")
        bar = bars[n]
        bar_next = bars[n + 1] if n + 1 < len(bars) else torch.ones_like(bar)
        beta_bar, beta_bar_next = 1 - bar, 1 - bar_next
        alpha = bar / bar_next
        beta = 1 - alpha
        x0 = _clean(config.prediction_type, x, output, bar, beta_bar)
        if config.clip_sample:
            x0 = x0.clamp(-config.clip_range, config.clip_range)
        x0_coefficient = bar_next**0.5 * beta / beta_bar
        x_coefficient = alpha**0.5 * beta_bar_next / beta_bar
        mean = x0_coefficient * x0 + x_coefficient * x
        if timestep > 0:
            variance = beta_bar_next / beta_bar * beta
            variance = beta if config.variance_type == "fixed_large" else variance.clamp(min=1e-20)
            step_noise = torch.randn_like(output) if noise is None else noise(n)
            mean = mean + variance**0.5 * step_noise
        x = mean
    clock.lap("other")
    return x, sequential_stats("eager-loop", len(x), len(bars), clock.seconds())


def _clean(kind: str, x: Tensor, output: Tensor, bar: Tensor, beta_bar: Tensor) -> Tensor:
    """x̂0 from what the network predicts."""
    if kind == "epsilon":
        return (x - beta_bar**0.5 * output) / bar**0.5
    if kind == "sample":
        return output
    return bar**0.5 * x - beta_bar**0.5 * output
