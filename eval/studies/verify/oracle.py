"""A subject without a checkpoint, whose denoiser is known in closed form.

Observation i is a number s between 0 and 1. Given s, a chunk is a mixture of five Gaussians whose
means lie s times as far apart; its last action number is ±1-like, as a gripper's. At s = 0 the
modes coincide, the denoiser is linear, and the distribution of the sequential chain itself,
discretization and all, is a Gaussian whose mean and variance follow by recursion.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from asd_policy.denoiser import Network
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.eval.studies.verify.subjects import Exact, Subject, gripper_column
from asd_policy.schedule import Schedule

SHAPE = (8, 3)
WEIGHTS = (0.1, 0.15, 0.2, 0.25, 0.3)
TRAINED_STEPS = 100


class Oracle:
    """Means, deviations, and E[x0 | x, s]."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        offsets = 0.5 * rng.normal(size=(len(WEIGHTS), *SHAPE))
        side = np.array([-1.0, -1.0, 1.0, -1.0, 1.0])[:, None]
        offsets[:, :, -1] = 0.8 * side
        offsets[2, : SHAPE[0] // 2, -1] *= -1  # closes half-way
        self.centre = torch.from_numpy(0.2 * rng.normal(size=SHAPE).ravel())
        self.offsets = torch.from_numpy(offsets.reshape(len(WEIGHTS), -1))
        # Deviations that differ, so that no scalar slope describes the denoiser.
        deviations = np.geomspace(0.05, 0.3, int(np.prod(SHAPE)))
        self.deviations = torch.from_numpy(rng.permutation(deviations))
        self._log_weights = torch.tensor(WEIGHTS, dtype=torch.float64, device="cpu").log()

    def x0(self, x: Tensor, bar: Tensor, s: Tensor) -> Tensor:
        """E[x0 | x] of x (N, D) = √ᾱ·x0 + √(1−ᾱ)·ε, with ᾱ (N, 1) and s (N, 1)."""
        centre, offsets = self.centre.to(x), self.offsets.to(x)
        variances, logs = self.deviations.to(x).square(), self._log_weights.to(x)
        signal, marginal = bar.sqrt(), bar * variances + 1 - bar
        from_centre = (x - signal * centre) / marginal
        logits = signal * s * (from_centre @ offsets.mT)
        logits -= 0.5 * bar * s.square() * ((1 / marginal) @ offsets.square().mT)
        mean = centre + s * ((logits + logs).softmax(-1) @ offsets)
        return mean + signal * variances / marginal * (x - signal * mean)

    def network(self, schedule: Schedule) -> Network:
        """Predicts ε of x (N, *SHAPE), cond (N, 1)."""
        return functools.partial(self._predict, schedule)

    def _predict(
        self, schedule: Schedule, x: Tensor, timesteps: Tensor, cond: Tensor | None
    ) -> Tensor:
        assert cond is not None
        flat, bar = x.flatten(1), schedule.alphas_cumprod.to(x)[timesteps].unsqueeze(1)
        epsilon = (flat - bar.sqrt() * self.x0(flat, bar, cond)) / (1 - bar).sqrt()
        return epsilon.view(x.shape)

    def exact(self, chain: Schedule) -> Exact:
        """The distribution of a chain's last point at s = 0: steps are linear, noise Gaussian."""
        variances = self.deviations.square()
        mean, variance = torch.zeros_like(variances), torch.ones_like(variances)
        bars = chain.alphas_cumprod[chain.timesteps]
        for a, b, sigma, bar in zip(chain.a, chain.b, chain.sigma, bars, strict=True):
            gain = bar.sqrt() * variances / (bar * variances + 1 - bar)
            guess = self.centre + gain * (mean - bar.sqrt() * self.centre)
            mean = a * guess + b * mean
            variance = (a * gain + b).square() * variance + sigma**2
        return Exact(0, mean.view(SHAPE).numpy(), variance.sqrt().view(SHAPE).numpy())


def oracle_subject(options: VerifyOptions) -> Subject:
    """The mixture, at ``options.observations`` values of s from 0 to 1."""
    oracle = Oracle()
    dtype = torch.float64 if options.precision == "fp64" else torch.float32
    s = torch.linspace(0, 1, options.observations, device="cpu", dtype=dtype).unsqueeze(1)
    return Subject(
        describe={
            "kind": "oracle",
            "name": "oracle",
            "checkpoint": None,
            "sha256": None,
            "parameters": 0,
            "observations": len(s),
            "observations_from": "distances between the modes from 0 to 1",
        },
        network=oracle.network,
        schedule=Schedule.ddpm(TRAINED_STEPS, clip_sample=False),
        shape=SHAPE,
        conditions=s.to(options.device),
        action_scale=np.ones(SHAPE[1]),
        gripper=gripper_column(options.gripper, SHAPE[1]),
        exact=oracle.exact,
    )
