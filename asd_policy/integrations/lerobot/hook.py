"""What stands where a LeRobot policy's ``conditional_sample`` was."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.errors import InputError
from asd_policy.integrations.diffusers_chain import is_ddim, trained_schedule
from asd_policy.integrations.hooked import Hook, Kind, Place
from asd_policy.samplers.config import SamplerConfig

_PARTS = ("unet", "noise_scheduler", "num_inference_steps", "conditional_sample")


def accelerate(
    policy: Any,
    sampler: str | SamplerConfig = "auto",
    *,
    engine: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    copy: bool = True,
    warmup: bool = False,
    verbose: bool = True,
    **options: Any,
) -> Any:
    """The same policy, its chunks sampled by another sampler.

    Its own loop comes back with ``del policy.diffusion.conditional_sample``, and runs in training
    mode. ``num_inference_steps`` is read at each call, and so are weights: the policy may be
    trained on. The first chunk of a kind takes longer: drafts learn from four throw-away chunks, so
    that afterwards a seed gives the same ones.

    Args:
        policy: a ``DiffusionPolicy`` of LeRobot's, on its device.
        sampler, options: a name with options of ``SamplerConfig``, or a ``SamplerConfig``. "asd"
            samples exactly the distribution of the DDPM that the network was trained for. "auto":
            "asd" for a policy that samples by DDPM; one that samples by DDIM keeps its chain.
        engine, precision, compile: as for ``DiffusionPolicy``.
        copy: keep a copy of a U-Net's weights in a form that is faster to sample (once more the
            network's memory); without, the network is called as it is.
        warmup: do the slow first things now: compile, capture, time, teach drafts.
        verbose: say in one line what is run.

    Raises:
        ValueError: no such policy, an unknown option, or a sampler that its chain does not allow.
    """
    owner = getattr(policy, "diffusion", None)
    missing = [part for part in _PARTS if not hasattr(owner, part)]
    if missing:
        raise InputError(
            f"expected a DiffusionPolicy of LeRobot's, got a {type(policy).__name__}: only "
            "diffusion has steps to save"
        )
    config = _config(owner, sampler, options)
    made = ConditionalSample(owner, config, Place(engine, precision, compile, copy))
    if warmup:
        made.warm(made.kind(_width(owner)))
    if verbose:
        print(f"asd-policy: {made.description}")
    vars(owner)["conditional_sample"] = made
    return policy


def _config(owner: Any, sampler: str | SamplerConfig, options: dict[str, Any]) -> SamplerConfig:
    """What was asked for; on a DDIM, what needs noise takes the DDPM that was trained."""
    ddim = is_ddim(owner.noise_scheduler)
    if sampler == "auto":
        sampler = "ddim" if ddim else "asd"
    config = SamplerConfig.named(sampler, **options)
    if ddim and config.steps is None and config.name != "ddim":
        config = replace(config, steps=trained_schedule(owner.noise_scheduler).num_steps)
    return config


class ConditionalSample(Hook):
    """Stands in the place of ``policy.diffusion.conditional_sample``."""

    def __init__(self, owner: Any, config: SamplerConfig, place: Place) -> None:
        super().__init__(owner, config, place)
        self._said: set[str] = set()

    def model(self) -> nn.Module:
        network: nn.Module = self.owner.unet
        return network

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
        """
        why = self._why_not()
        if why is not None:
            if why not in self._said:
                self._said.add(why)
                warnings.warn(f"LeRobot's own loop runs: {why}", stacklevel=2)
            return self.own(batch_size, global_cond, generator, noise)
        kind = self.kind(0 if global_cond is None else global_cond.shape[1])
        rows = None if global_cond is None else global_cond.to(torch.float32)
        return self.draw(kind, rows, batch_size, generator, noise)

    def _why_not(self) -> str | None:
        if self.owner.training:
            return "the policy is in training mode; policy.eval() accelerates it"
        try:
            self.chain()
        except InputError as error:
            return str(error)
        return None

    def kind(self, width: int) -> Kind:
        """Chunks of this policy, with so many numbers of condition."""
        config = self.owner.config
        shape = int(config.horizon), int(config.action_feature.shape[0])
        device = next(self.model().parameters()).device
        return Kind(shape, width, device, lambda: self.as_unet() or _AsItIs(self.model(), width))


class _AsItIs(nn.Module):
    """LeRobot's network as samplers call it."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.global_cond_dim = model, width

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.model(x, timesteps, global_cond=cond)
        return out


def _width(owner: Any) -> int:
    """Numbers of a policy's condition: its observations, encoded."""
    config = owner.config
    width = int(config.robot_state_feature.shape[0])
    if config.image_features:
        encoders = owner.rgb_encoder
        one = encoders[0] if isinstance(encoders, nn.ModuleList) else encoders
        width += int(one.feature_dim) * len(config.image_features)
    if config.env_state_feature:
        width += int(config.env_state_feature.shape[0])
    return width * int(config.n_obs_steps)


def difference_to_its_loop(policy: Any, global_cond: Tensor, seed: int = 0) -> float:
    """How far this package's sequential chain is from LeRobot's own loop on the same noise: the
    largest absolute difference of a number. (5e-6, say, is rounding.)

    Args:
        policy: accelerated. global_cond: (B, width) encoded observations. seed: of the noise.
    """
    ours: ConditionalSample = vars(policy.diffusion)["conditional_sample"]
    kind, batch = ours.kind(global_cond.shape[1]), len(global_cond)
    like = global_cond.new_empty(batch, *kind.shape)
    return ours.difference(
        kind, global_cond, like, lambda x: x.flatten(1),
        lambda: ours.own(batch, global_cond=global_cond), seed,
    )  # fmt: skip
