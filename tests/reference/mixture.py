"""A Gaussian mixture whose network is known in closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asd_policy.denoiser import Network
from asd_policy.schedule import Schedule


class Mixture:
    """Five modes with one diagonal covariance in ``dim`` dimensions, and the exact E[x0 | x].

    The standard deviations differ between coordinates, so that no scalar slope describes the
    denoiser and secants have something left to learn. Half the coordinates' ranges cross ±1, so
    that clipping there matters a little.
    """

    weights = (0.1, 0.15, 0.2, 0.25, 0.3)

    def __init__(self, dim: int = 16, spread: float = 0.5) -> None:
        means = np.random.default_rng(7).normal(size=(5, dim)) * spread
        self.means = torch.from_numpy(means)
        self.scales = torch.logspace(-1.3, -0.5, dim, dtype=torch.float64)
        self._log_weights = torch.tensor(self.weights, dtype=torch.float64).log()

    def x0(self, x: Tensor, bar: Tensor) -> Tensor:
        """E[x0 | x] for x (N, dim) = √ᾱ·x0 + √(1−ᾱ)·ε, with ᾱ (N, 1)."""
        means, scales = self.means.to(x), self.scales.to(x)
        signal = bar.sqrt()
        inverse = 1 / (bar * scales**2 + 1 - bar)
        logits = signal * ((x * inverse) @ means.mT) - 0.5 * bar * (inverse @ (means**2).mT)
        mean = (logits + self._log_weights.to(x)).softmax(-1) @ means
        return mean + signal * scales**2 * inverse * (x - signal * mean)

    def network(self, schedule: Schedule) -> Network:
        """``network(x, timesteps, cond)`` that predicts what the schedule says, x (N, dim)."""
        kind = schedule.config.prediction_type

        def predict(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
            bar = schedule.alphas_cumprod[timesteps].to(x).unsqueeze(1)
            x0 = self.x0(x, bar)
            if kind == "sample":
                return x0
            epsilon = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
            if kind == "epsilon":
                return epsilon
            return bar.sqrt() * epsilon - (1 - bar).sqrt() * x0

        return predict

    def nearest(self, x: Tensor) -> Tensor:
        """(N,) index of the mode nearest to each point, in standard deviations."""
        means, scales = self.means.to(x), self.scales.to(x)
        return ((x.unsqueeze(1) - means) / scales).square().sum(-1).argmin(1)
