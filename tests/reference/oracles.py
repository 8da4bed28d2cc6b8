"""Schedules, single steps and the coupling in plain NumPy float64, written from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Target = Callable[[Array, int], Array]  # clipped x̂0 at a point (D,), at a step


def betas(kind: str, num_steps: int, start: float = 1e-4, end: float = 0.02) -> list[float]:
    """β by training timestep: Ho et al. (2020), Rombach et al. (2022), Nichol & Dhariwal (2021)."""
    at = [i / max(1, num_steps - 1) for i in range(num_steps)]
    if kind == "linear":
        return [start + (end - start) * u for u in at]
    if kind == "scaled_linear":
        return [(math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * u) ** 2 for u in at]
    assert kind == "squaredcos_cap_v2"

    def bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(0.999, 1 - bar((i + 1) / num_steps) / bar(i / num_steps)) for i in range(num_steps)]


def alphas_cumprod(values: list[float]) -> list[float]:
    return [math.prod(1 - beta for beta in values[: t + 1]) for t in range(len(values))]


def timesteps(num_steps: int, steps: int, spacing: str) -> list[int]:
    """Visited training timesteps, descending (table 2 of Lin et al., 2024, arXiv 2305.08891)."""
    if spacing == "leading":
        return [i * (num_steps // steps) for i in range(steps)][::-1]
    if spacing == "linspace":
        gap = (num_steps - 1) / (steps - 1) if steps > 1 else 0
        return [round(i * gap) for i in range(steps)][::-1]
    assert spacing == "trailing"
    return [round(num_steps - i * num_steps / steps) - 1 for i in range(steps)]


@dataclass(frozen=True)
class Chain:
    """Lists over the steps of a reverse chain: x ← a·x̂0 + b·x + σ·ξ."""

    a: list[float]
    b: list[float]
    sigma: list[float]


def ddpm_chain(bars: list[float], visited: list[int], variance_type: str) -> Chain:
    """Posterior q(x_prev | x_t, x0) of the forward process between visited timesteps.

    Gaussian conditioning, not the papers' simplified form: x_prev has the prior
    N(√ᾱ_prev·x0, 1−ᾱ_prev), and x_t given it is N(√α·x_prev, 1−α), with α = ᾱ_t/ᾱ_prev.
    """
    a, b, sigma = [], [], []
    for t, prev in zip(visited, [*visited[1:], None], strict=True):
        bar, bar_prev = bars[t], 1.0 if prev is None else bars[prev]
        alpha = bar / bar_prev
        prior = 1 - bar_prev
        gain = prior * math.sqrt(alpha) / (alpha * prior + 1 - alpha)
        b.append(gain)
        a.append(math.sqrt(bar_prev) * (1 - gain * math.sqrt(alpha)))
        small = prior * (1 - gain * math.sqrt(alpha))
        variance = small if variance_type == "fixed_small" else 1 - alpha
        sigma.append(math.sqrt(max(0.0, variance)) if t > 0 else 0.0)
    return Chain(a, b, sigma)


def ddim_chain(bars: list[float], visited: list[int], eta: float) -> Chain:
    """Song et al. (2021), equations 12 and 16, with ε = (x − √ᾱ·x̂0)/√(1−ᾱ). A step goes to the
    timestep one stride below, whatever is visited next."""
    a, b, sigma = [], [], []
    for t in visited:
        below = t - len(bars) // len(visited)
        bar, bar_prev = bars[t], 1.0 if below < 0 else bars[below]
        noise = eta * math.sqrt((1 - bar_prev) / (1 - bar)) * math.sqrt(1 - bar / bar_prev)
        direction = math.sqrt(max(0.0, 1 - bar_prev - noise**2))
        a.append(math.sqrt(bar_prev) - direction * math.sqrt(bar) / math.sqrt(1 - bar))
        b.append(direction / math.sqrt(1 - bar))
        sigma.append(noise)
    return Chain(a, b, sigma)


def x0_from(kind: str, x: Array, prediction: Array, bar: float, clip: float | None) -> Array:
    """Clipped x̂0 from ε, x0 or v = √ᾱ·ε − √(1−ᾱ)·x0 (Salimans & Ho, 2022)."""
    if kind == "epsilon":
        x0 = (x - math.sqrt(1 - bar) * prediction) / math.sqrt(bar)
    elif kind == "sample":
        x0 = prediction
    else:
        assert kind == "v_prediction"
        x0 = math.sqrt(bar) * x - math.sqrt(1 - bar) * prediction
    return x0 if clip is None else np.clip(x0, -clip, clip)


def sequential(chain: Chain, target: Target, initial: Array, noise: Array) -> Array:
    """Ancestral sampling of one chain: initial (D,), noise (K, D)."""
    x = initial
    for n in range(len(chain.a)):
        x = chain.a[n] * target(x, n) + chain.b[n] * x + chain.sigma[n] * noise[n]
    return x


def couple(noise: Array, delta: Array, log_uniform: float) -> tuple[bool, Array]:
    """One decision, number by number: accepted or not, and the target's noise."""
    inner = sum(float(xi) * float(d) for xi, d in zip(noise, delta, strict=True))
    square = sum(float(d) ** 2 for d in delta)
    if square == 0:
        return True, noise
    ratio = -inner - 0.5 * square
    if math.isfinite(ratio) and log_uniform <= ratio:
        return True, noise + delta
    return False, np.array(
        [xi - 2 * d * inner / square for xi, d in zip(noise, delta, strict=True)]
    )


def left_over(log_uniform: float, ratio: float, accepted: bool) -> float:
    """The uniform, as a logarithm, that remains of one that decided on exp(ratio)."""
    if accepted:
        return log_uniform - min(ratio, 0.0)
    u, p = math.exp(log_uniform), math.exp(ratio)
    return math.log((u - p) / (1 - p))
