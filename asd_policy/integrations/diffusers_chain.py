"""The chain of a diffusers scheduler, as this package runs it. Needs no diffusers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from asd_policy.errors import InputError
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import BETA_SCHEDULES, Schedule

# What diffusers takes where its constructors are not told.
_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "prediction_type": "epsilon", "clip_sample": True, "clip_sample_range": 1.0,
    "variance_type": "fixed_small", "timestep_spacing": "leading", "steps_offset": 0,
    "set_alpha_to_one": True, "trained_betas": None,
}  # fmt: skip

_SAME_VARIANCE = {"fixed_small_log": "fixed_small"}  # only computed in another way


def is_ddim(scheduler: Any) -> bool:
    """Whether a scheduler samples by DDIM."""
    return type(scheduler).__name__ == "DDIMScheduler"


def trained_schedule(scheduler: Any, **changes: Any) -> Schedule:
    """The DDPM that a network was trained for, by its ``DDPMScheduler`` or ``DDIMScheduler``.

    Args:
        changes: settings in place of the scheduler's.

    Raises:
        ValueError: as :func:`schedule_of`, or its tables are not those of its settings.
    """
    config = dict(scheduler.config) | changes
    if config.get("beta_schedule", BETA_SCHEDULES[0]) not in BETA_SCHEDULES:
        config |= {"beta_schedule": BETA_SCHEDULES[0], "trained_betas": scheduler.betas.tolist()}
    schedule = schedule_of(type(scheduler).__name__, config)
    kept, made = getattr(scheduler, "alphas_cumprod", None), schedule.alphas_cumprod
    if kept is None:
        return schedule
    # add_noise moves it to the GPU that it is called on.
    kept = torch.as_tensor(kept, device="cpu").detach().double()
    if kept.shape != made.shape or not torch.allclose(kept, made, rtol=1e-3, atol=1e-6):
        raise InputError(
            f"the alphas_cumprod of the {type(scheduler).__name__} are not those of its settings; "
            "expected a scheduler that is changed by its settings (trained_betas, say)"
        )
    return schedule


def schedule_of(kind: str, config: Mapping[str, Any]) -> Schedule:
    """The DDPM that a network was trained for, by a scheduler's class and its arguments.

    With a DDIM's settings (``set_alpha_to_one``, ``steps_offset``), which ``Schedule.ddim`` heeds.

    Raises:
        ValueError: another scheduler, or a setting that this package has not.
    """
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise InputError(f"expected diffusers' DDPMScheduler or DDIMScheduler, got a {kind}")
    values = _DEFAULTS | dict(config)
    for name in ("thresholding", "rescale_betas_zero_snr"):
        if values.get(name):
            raise InputError(f"{name} of the {kind} is not supported; expected it to be off")
    names = "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample"
    given = {name: values[name] for name in (*names, "timestep_spacing")}
    if values["trained_betas"] is not None:
        given["trained_betas"] = tuple(float(beta) for beta in values["trained_betas"])
    if kind == "DDIMScheduler":
        given |= {name: values[name] for name in ("set_alpha_to_one", "steps_offset")}
    elif values["steps_offset"]:
        offset = values["steps_offset"]
        raise InputError(
            f"steps_offset of a DDPMScheduler is not supported, got {offset}; without it, it is "
            "DDPMScheduler.from_config(scheduler.config, steps_offset=0)"
        )
    else:
        given["variance_type"] = _SAME_VARIANCE.get(
            values["variance_type"], values["variance_type"]
        )
    steps, clip = int(values["num_train_timesteps"]), float(values["clip_sample_range"])
    return Schedule.ddpm(steps, clip_range=clip, **given)


def of_steps(schedule: Schedule, steps: int) -> Schedule:
    """The schedule in as many steps as are taken, which are all where more are asked for."""
    return schedule if steps >= schedule.num_steps else schedule.respaced(steps)


def check_spacing(schedule: Schedule, steps: int) -> None:
    """Raise a ValueError for the few numbers of steps of which diffusers' own loop runs one more.

    Spaced "trailing", rounding gives 29 of 100 a thirtieth, at timestep −1, which no DDPM has.
    """
    trained = schedule.config.num_steps
    if schedule.config.timestep_spacing != "trailing":
        return
    theirs = np.arange(trained, 0, -trained / steps)
    if len(theirs) != steps:
        raise InputError(
            f"{steps} of {trained} steps, spaced 'trailing', are {len(theirs)} in diffusers' loop, "
            "the last at timestep -1; expected another number of steps"
        )


def _check_steps(scheduler: Any, steps: int) -> None:
    """Raise a ValueError for more steps than were trained where the loop does: diffusers 0.11.1,
    which diffusion_policy pins, runs all that were trained instead."""
    if steps > int(scheduler.config.num_train_timesteps):
        try:
            copy.copy(scheduler).set_timesteps(steps)
        except ValueError:
            raise InputError(
                f"num_inference_steps={steps} is more than the network was trained for; expected "
                f"at most {scheduler.config.num_train_timesteps}"
            ) from None


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
    check_spacing(schedule, steps)
    if type(scheduler).__name__ == "DDPMScheduler":
        _check_steps(scheduler, steps)
        return config, of_steps(schedule, steps)
    if config.name == "ddim":
        eta = eta if config.eta is None else config.eta
        return replace(config, steps=steps, eta=eta), schedule
    why = "have no noise that could be coupled"
    if eta:
        why = "take the network's own prediction beside the clipped x̂0, and it has no drafts"
    raise InputError(
        f"this policy samples by DDIM ({steps} steps, eta={eta:g}), whose steps {why}: it cannot "
        f"be accelerated exactly. Either steps={schedule.num_steps} with sampler={config.name!r}, "
        "which samples the DDPM that the network was trained for (a different distribution of "
        "actions), or sampler='ddim', which keeps its DDIM"
    )
