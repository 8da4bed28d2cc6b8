"""What stands where a LeRobot policy's ``conditional_sample`` was."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.errors import InputError
from asd_policy.integrations.diffusers_chain import trained_schedule
from asd_policy.integrations.hooked import Asked, Hook, Kind, Place, made_up
from asd_policy.samplers.config import SamplerConfig


class LeRobotSample(Hook):
    """A policy's ``conditional_sample``; LeRobot's own loop where that is wanted, and said so once.

    Args:
        owner: what has ``conditional_sample``, of ``policy``. config, place: as for :class:`Hook`.
    """

    condition = ""  # what the network calls it

    def __init__(self, policy: Any, owner: Any, config: SamplerConfig, place: Place) -> None:
        super().__init__(owner, config, place)
        self.policy = policy
        self._said: set[str] = set()

    def again(self, config: SamplerConfig) -> LeRobotSample:
        return type(self)(self.policy, self.owner, config, self.place)

    @property
    def width(self) -> int:
        """Numbers in a condition."""
        raise NotImplementedError

    @property
    def unsupported(self) -> str | None:
        """Why LeRobot's own loop runs, whatever is asked for; None where it need not."""
        try:
            trained_schedule(self.owner.noise_scheduler)
        except InputError as error:
            return str(error)
        return None

    @property
    def description(self) -> str:
        why = self.unsupported
        return super().description if why is None else _own_loop(why)

    @property
    def cold(self) -> bool:
        return self.unsupported is None and super().cold

    def warm(self) -> None:
        if self.unsupported is None:
            super().warm()

    def check(self) -> str:
        return super().check() if self.unsupported is None else "nothing to check: LeRobot's loop"

    @torch.compiler.disable  # it makes the chain, whose tables are NumPy's
    def _falls_back(self) -> bool:
        """Whether LeRobot's own loop is to run; why, is said once."""
        why = None
        if self.model().training:
            why = "the policy is in training mode (policy.eval() ends it)"
        else:
            try:
                self.chain()
            except InputError as error:
                why = str(error)
        if why is not None:
            self.stats = None  # those of the chunk before are not this one's
        if why is not None and why not in self._said:
            self._said.add(why)
            warnings.warn(_own_loop(why), stacklevel=4)
        return why is not None

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, width) conditions of what the policy has seen, through its own encoders."""
        raise NotImplementedError

    def for_rows(self, batch: int, rows: Tensor | None) -> Asked:
        """A chunk of each of ``batch`` conditions (B, width)."""
        config, width = self.policy.config, 0 if rows is None else rows.shape[1]
        shape = int(config.horizon), int(config.action_feature.shape[0])
        device = next(self.model().parameters()).device
        kind = Kind(shape, width, device, lambda: self._network(width))
        return Asked(kind, batch, None if rows is None else rows.float(), shape)

    def _network(self, width: int) -> nn.Module:
        return self.as_unet() or _AsItIs(self.model(), width, self.condition)


def _own_loop(why: str) -> str:
    return f"LeRobot's own loop runs: {why}"


class ConditionalSample(LeRobotSample):
    """``policy.diffusion.conditional_sample`` of a ``DiffusionPolicy``."""

    condition = "global_cond"

    def model(self) -> nn.Module:
        network: nn.Module = self.owner.unet
        return network

    @property
    def width(self) -> int:
        config, width = self.policy.config, 0
        for feature in (config.robot_state_feature, config.env_state_feature):
            width += int(feature.shape[0]) if feature else 0
        if config.image_features:
            encoders = self.owner.rgb_encoder
            one: Any = encoders[0] if isinstance(encoders, nn.ModuleList) else encoders
            width += int(one.feature_dim) * len(config.image_features)
        return width * int(config.n_obs_steps)

    def __call__(
        self,
        batch_size: int,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """(batch_size, horizon, action_dim) chunks.

        Args:
            global_cond: (batch_size, width). generator: seeds a random stream for each row.
            noise: (batch_size, horizon, action_dim) where the chains start.

        Raises:
            NonFiniteError: a NaN or infinity in a condition or in the sample.
            ValueError: noise of another shape.
        """
        if self._falls_back():
            return self.own(batch_size, global_cond, generator, noise)
        return self.draw(self.asked(batch_size, global_cond), generator, noise)

    def asked(self, batch_size: int, global_cond: Tensor | None = None) -> Asked:
        return self.for_rows(batch_size, global_cond)

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        cond: Tensor = self.owner._prepare_global_conditioning(batch)
        return cond

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        device = next(self.model().parameters()).device
        return (1, made_up((1, self.width), device)), {}


class TransformerSample(LeRobotSample):
    """``policy.objective.conditional_sample`` of a ``MultiTaskDiTPolicy`` that was trained by
    diffusion."""

    condition = "conditioning_vec"

    def model(self) -> nn.Module:
        network: nn.Module = self.policy.noise_predictor
        return network

    @property
    def width(self) -> int:
        return int(self.policy.observation_encoder.conditioning_dim)

    def __call__(self, model: nn.Module, batch_size: int, conditioning_vec: Tensor) -> Tensor:
        """(batch_size, horizon, action_dim) chunks.

        Args:
            model: the policy's own. conditioning_vec: (batch_size, width).

        Raises:
            NonFiniteError: a NaN or infinity in a condition or in the sample.
        """
        if self._falls_back():
            return self.own(model, batch_size, conditioning_vec)
        return self.draw(self.asked(model, batch_size, conditioning_vec))

    def asked(self, model: nn.Module, batch_size: int, conditioning_vec: Tensor) -> Asked:
        return self.for_rows(batch_size, conditioning_vec)

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        cond: Tensor = self.policy.observation_encoder.encode(batch)
        return cond

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        device = next(self.model().parameters()).device
        return (self.model(), 1, made_up((1, self.width), device)), {}


class _AsItIs(nn.Module):
    """LeRobot's network as samplers call it."""

    def __init__(self, model: nn.Module, width: int, condition: str) -> None:
        super().__init__()
        self.model, self.global_cond_dim, self._condition = model, width, condition

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.model(x, timesteps, **{self._condition: cond})
        return out
