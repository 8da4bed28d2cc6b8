"""The one place that turns what a network predicts (ε, x0 or v) into the clipped x̂0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from asd_policy.errors import NonFiniteError
from asd_policy.schedule import Schedule

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Denoiser:
    """x̂0 for any rows of a batch of chains, at any steps.

    Args:
        network: ``network(x, timesteps, cond)`` with x (N, *shape), timesteps (N,) int64 and cond
            with N rows, or None.
        schedule: the tables.
        shape: of one sample.
        cond: condition of each chain, (B, …), or None.
        like: a tensor whose dtype and device are the chain's.
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        shape: tuple[int, ...],
        cond: Tensor | None,
        like: Tensor,
    ) -> None:
        self._network, self._schedule, self._shape, self._cond = network, schedule, shape, cond
        self._timesteps = schedule.timesteps.to(like.device)
        self._clip = schedule.config.clip_range if schedule.config.clip_sample else None
        # x̂0 = u·x + v·prediction
        signal, noise = schedule.signal, schedule.noise
        u, v = {
            "epsilon": (1 / signal, -noise / signal),
            "sample": (torch.zeros_like(signal), torch.ones_like(signal)),
            "v_prediction": (signal, -noise),
        }[schedule.config.prediction_type]
        self._uv = torch.stack([u, v], dim=1).to(like)

    def __call__(self, x: Tensor, steps: Tensor, chains: Tensor) -> Tensor:
        """Clipped x̂0.

        Args:
            x: (N, D) points. steps: (N,) step of each. chains: (N,) chain of each.

        Returns:
            (N, D).

        Raises:
            NonFiniteError: the network returned a NaN or an infinity (step and chain are named).
            ValueError: the network returned another shape than it was given.
        """
        cond = None if self._cond is None else self._cond[chains]
        points = x.view(-1, *self._shape)
        prediction = self._network(points, self._timesteps[steps], cond)
        if prediction.shape != points.shape:
            raise ValueError(
                f"the network must return the shape it is given, {tuple(points.shape)}; "
                f"got {tuple(prediction.shape)}"
            )
        flat = prediction.reshape(x.shape).to(x.dtype)
        self._check(flat, steps, chains)
        return self._to_x0(x, flat, steps)

    def _to_x0(self, x: Tensor, prediction: Tensor, steps: Tensor) -> Tensor:
        u, v = self._uv[steps].unsqueeze(-1).unbind(1)
        x0 = torch.addcmul(u * x, v, prediction)
        return x0 if self._clip is None else x0.clamp_(-self._clip, self._clip)

    def clip(self, x0: Tensor) -> Tensor:
        """Clip a draft as the target is clipped (in place)."""
        return x0 if self._clip is None else x0.clamp_(-self._clip, self._clip)

    def _check(self, prediction: Tensor, steps: Tensor, chains: Tensor) -> None:
        # One reduction in the common case; a finite overflow of the sum is cleared below.
        if torch.isfinite(prediction.sum()):
            return
        bad = ~torch.isfinite(prediction).all(-1)
        if bad.any():
            row = int(bad.nonzero()[0])
            step = int(steps[row])
            raise NonFiniteError(
                f"the network returned a NaN or infinite value at step {step} (timestep "
                f"{int(self._timesteps[step])}) of chain {int(chains[row])}"
            )
