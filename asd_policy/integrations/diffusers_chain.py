"""The chain of a diffusers scheduler, as this package runs it. Needs no diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from asd_policy.errors import InputError
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import Schedule

_NAMES = ("beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample")


def trained_schedule(scheduler: Any) -> Schedule:
    """The DDPM that a network was trained for, by its ``DDPMScheduler`` or ``DDIMScheduler``.

    With a DDIM's settings (``set_alpha_to_one``, ``steps_offset``), which ``Schedule.ddim`` heeds.

    Raises:
        ValueError: another scheduler, or a setting that this package has not.
    """
    kind, config = _kind(scheduler), dict(scheduler.config)
    for name in ("thresholding", "rescale_betas_zero_snr"):
        if config.get(name):
            raise InputError(f"{name} of the {kind} is not supported; expected it to be off")
    given = {name: config[name] for name in _NAMES if config.get(name) is not None}
    if config.get("trained_betas") is not None:
        given["trained_betas"] = tuple(float(beta) for beta in config["trained_betas"])
    given["clip_range"] = float(config.get("clip_sample_range", 1.0))
    given["timestep_spacing"] = config.get("timestep_spacing", "leading")
    return Schedule.ddpm(int(config["num_train_timesteps"]), **given, **_own(kind, config))


def _kind(scheduler: Any) -> str:
    name = type(scheduler).__name__
    if name not in ("DDPMScheduler", "DDIMScheduler"):
        raise InputError(f"expected diffusers' DDPMScheduler or DDIMScheduler, got a {name}")
    return name


def _own(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What only one of the two has."""
    offset = int(config.get("steps_offset", 0))
    if kind == "DDIMScheduler":
        whole = bool(config.get("set_alpha_to_one", True))
        return {"set_alpha_to_one": whole, "steps_offset": offset}
    if offset:
        raise InputError(f"steps_offset of a DDPMScheduler is not supported, got {offset}")
    return {"variance_type": config.get("variance_type", "fixed_small")}


def chain_of(
    scheduler: Any, steps: int, config: SamplerConfig, eta: float = 0.0
) -> tuple[SamplerConfig, Schedule]:
    """What is run in place of a loop over the scheduler's ``steps`` timesteps.

    Args:
        config: the sampler that was asked for; its own ``steps`` are others than the loop's.
        eta: that the loop gives to a ``DDIMScheduler``.

    Raises:
        ValueError: as :func:`trained_schedule`; or ``config`` needs noise, and the loop has none.
    """
    schedule = trained_schedule(scheduler)
    if config.steps is not None:
        return config, schedule
    if _kind(scheduler) == "DDPMScheduler":
        return config, schedule if steps >= schedule.num_steps else schedule.respaced(steps)
    if config.name == "ddim":
        return replace(config, steps=steps, eta=eta), schedule
    raise InputError(
        f"this policy samples by DDIM ({steps} steps, eta={eta:g}), whose steps have no noise that "
        f"could be coupled: it cannot be accelerated exactly. Either steps={schedule.num_steps} "
        f"with sampler={config.name!r}, which samples the DDPM that the network was trained for (a "
        "different distribution of actions), or sampler='ddim', which keeps its DDIM"
    )
