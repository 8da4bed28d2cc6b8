"""Real pictures with a law that is known: a Gaussian around each of scikit-learn's 1,797 digits."""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.denoiser import Network
from asd_policy.schedule import Schedule

SPREAD = 0.1  # standard deviation around each digit, whose pixels are in [−1, 1]


class Digits:
    """The mixture, and its denoiser in closed form: E[x0 | x] is a softmax over the digits."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        self.pictures = torch.from_numpy(data.data / 8 - 1).float()  # (1797, 64)
        self.labels = torch.from_numpy(data.target)
        self._squares = self.pictures.square().sum(1)

    def network(self, schedule: Schedule) -> Network:
        """Predicts ε, x (N, 64)."""

        def predict(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
            bar = schedule.alphas_cumprod[timesteps].to(x).unsqueeze(1)
            signal, scale = bar.sqrt(), (1 - bar).sqrt()
            variance = bar * SPREAD**2 + 1 - bar
            logits = (signal * (x @ self.pictures.T) - bar / 2 * self._squares) / variance
            mean = logits.softmax(-1) @ self.pictures
            x0 = mean + signal * SPREAD**2 / variance * (x - signal * mean)
            return (x - signal * x0) / scale

        return predict

    def nearest(self, x: Tensor) -> Tensor:
        """(N,) number of the picture that each point is nearest to."""
        return torch.cdist(x, self.pictures).argmin(1)
