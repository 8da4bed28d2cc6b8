"""The chain that a robomimic policy is sampled on, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from asd_policy.errors import CheckpointError, InputError
from asd_policy.integrations.robomimic_format import check_finite, ddim_steps
from asd_policy.networks import ConditionalUnet1D, OthersUnet1D
from asd_policy.networks.layers import is_plain
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import Schedule


def check_algorithm(algo: Any) -> None:
    """Raise a ValueError unless it is a diffusion policy with a U-Net."""
    nets = getattr(algo, "nets", {})
    parts = (
        set(nets["policy"].keys()) if "policy" in nets and hasattr(nets["policy"], "keys") else {}
    )
    if not {"obs_encoder", "noise_pred_net"} <= set(parts) or "horizon" not in algo.algo_config:
        name = getattr(getattr(algo, "global_config", None), "algo_name", "unknown")
        raise InputError(
            f"expected a policy of the algorithm 'diffusion_policy' (a UNet), got a "
            f"{type(algo).__name__} of the algorithm {name!r}: only diffusion has steps to save"
        )


def as_unet(network: nn.Module) -> nn.Module:
    """The algorithm's network as samplers call it: itself, not a copy.

    Raises:
        CheckpointError: it is no ``ConditionalUnet1D``, or its weights are not finite.
    """
    check_finite(network.state_dict())
    if isinstance(network, ConditionalUnet1D) and is_plain(network, ConditionalUnet1D):
        return network
    try:
        return OthersUnet1D(network)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def for_chain(config: SamplerConfig, algo_config: Any) -> SamplerConfig:
    """The sampler's options, checked against a chain that is configured for DDIM.

    Raises:
        CheckpointError: a sampler that needs noise, on one that has none.
    """
    steps = ddim_steps(algo_config)
    if steps is None or config.steps is not None:
        return config
    if config.name == "ddim":
        return replace(config, steps=steps)
    trained = int(algo_config["ddim"]["num_train_timesteps"])
    raise CheckpointError(
        f"this checkpoint is configured for DDIM ({steps} steps, eta=0), whose steps have no noise "
        f"that could be coupled: it cannot be accelerated exactly. Either steps={trained} with "
        f"sampler={config.name!r}, which samples the DDPM that the network was trained for (a "
        f"different distribution of actions than DDIM's), or sampler='ddim', which keeps its DDIM"
    )


def describe(schedule: Schedule, algo_config: Any) -> str:
    """The chain, ``{weights}`` to be filled in, and where robomimic's own is another."""
    kind = "DDPM" if schedule.config.eta is None else f"DDIM, eta={schedule.config.eta:g},"
    text = f"{kind} of {schedule.num_steps} steps, {{weights}}"
    own_ddim = ddim_steps(algo_config) is not None
    if schedule.config.eta is not None:
        if own_ddim and schedule.config.prediction_type == "sample":
            text += (
                "; robomimic's own chain is another: diffusers 0.11.1, its pin, adds the predicted "
                "x̂0 where the predicted noise belongs"
            )
        return text
    if own_ddim:
        return (
            f"{text}; the checkpoint is configured for DDIM, whose distribution of actions is "
            "different"
        )
    if schedule.num_steps < schedule.config.num_steps:
        text += (
            f"; robomimic's own chain is another: diffusers 0.11.1, its pin, goes from t to t-1 "
            f"of the {schedule.config.num_steps} training steps at each of its steps, and so does "
            "not remove all noise"
        )
    return text
