"""``accelerate``: a LeRobot policy, its chunks sampled by this package."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from asd_policy.errors import InputError
from asd_policy.integrations.diffusers_chain import is_ddim
from asd_policy.integrations.hooked import Place, put
from asd_policy.integrations.lerobot.hook import (
    ConditionalSample,
    LeRobotSample,
    TransformerSample,
)
from asd_policy.samplers.config import SamplerConfig

_LOOP = ("noise_scheduler", "num_inference_steps", "conditional_sample")
# By their own documentation, in LeRobot 0.6.1.
_FLOW_MATCHING = {
    "eo1", "evo1", "fastwam", "groot", "lingbot_va", "molmoact2", "pi0", "pi05", "smolvla",
    "vla_jepa", "wall_x",
}  # fmt: skip


def accelerate(
    policy: Any,
    sampler: str | SamplerConfig = "auto",
    *,
    engine: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    copy: bool = True,
    warmup: bool = False,
    check: bool = False,
    verbose: bool = True,
    device: str | None = None,
    **options: Any,
) -> Any:
    """The same policy, its chunks sampled by another sampler.

    LeRobot's own loop comes back with ``del policy.diffusion.conditional_sample``
    (``policy.objective``'s of a multi_task_dit), and runs in training mode.
    ``num_inference_steps`` is read at each call, and so are weights: the policy may be trained on.
    The first chunk takes longer: drafts learn from four throw-away chunks, so that afterwards a
    seed gives the same ones.

    Args:
        policy: a ``DiffusionPolicy``, or a ``MultiTaskDiTPolicy`` with the objective "diffusion",
            on its device.
        sampler, options: a name with options of ``SamplerConfig``, or a ``SamplerConfig``. "asd"
            samples exactly the distribution of the DDPM that the network was trained for. "auto":
            "asd" for a policy that samples by DDPM; one that samples by DDIM keeps its chain.
        engine, precision, compile: as for ``DiffusionPolicy`` of this package.
        copy: keep a copy of a U-Net's weights in a form that is faster to sample (once more the
            network's memory); without, the network is called as it is.
        warmup: do the slow first things now, not when the robot waits: compile, capture, time the
            network, teach drafts.
        check: compare with LeRobot's own loop, and print what was found.
        verbose: say in one line what is run.
        device: that the policy will be moved to; None: it is there. (LeRobot makes policies on the
            CPU first.)

    Raises:
        ValueError: no such policy, an unknown option, a sampler that its chain does not allow, or a
            check that failed.
    """
    made = hook_of(policy, sampler, Place(engine, precision, compile, copy), **options)
    if made.unsupported is None:
        made.chain()  # what cannot be run is said now
    else:
        warnings.warn(made.description, stacklevel=2)
    put(made, verbose, warmup, check, device)
    return policy


_OWN_LOOPS = ContextVar("own_loops", default=False)


@contextmanager
def own_loops(wanted: bool = True) -> Iterator[None]:
    """Within it, where wanted, policies of the type ``asd_diffusion`` are made with LeRobot's own
    loop: by those who accelerate them as they were asked to, which need not be what is saved, nor
    possible."""
    before = _OWN_LOOPS.set(wanted)
    try:
        yield
    finally:
        _OWN_LOOPS.reset(before)


def making_own_loops() -> bool:
    """Whether this is within :func:`own_loops`."""
    return _OWN_LOOPS.get()


def as_saved(policy: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of :func:`accelerate`: these, and where they are silent what the settings of a
    policy of the type ``asd_diffusion`` say. (A window belongs to its sampler.)"""
    sampling = getattr(getattr(policy, "config", None), "sampling", dict)
    saved: dict[str, Any] = sampling()
    given = {k: v for k, v in options.items() if (k, v) != ("sampler", "auto")}
    if "sampler" in given:
        saved.pop("window", None)
    return {**saved, **given}


def hook_of(
    policy: Any, sampler: str | SamplerConfig, place: Place, **options: Any
) -> LeRobotSample:
    """What draws a policy's chunks, not yet in the place of its own loop.

    Args, errors: as for :func:`accelerate`.
    """
    kind, owner = _found(policy)
    return kind(policy, owner, _config(owner.noise_scheduler, sampler, options), place)


def _found(policy: Any) -> tuple[type[LeRobotSample], Any]:
    """What replaces which object's loop."""
    name = str(getattr(policy, "name", type(policy).__name__))
    parts = [
        (ConditionalSample, "diffusion", ("unet", *_LOOP)),
        (TransformerSample, "objective", _LOOP),
    ]
    for kind, part, needed in parts:
        owner = getattr(policy, part, None)
        owner = getattr(owner, "_orig_mod", owner)  # before torch.compile, whose methods are its
        if owner is not None and all(hasattr(owner, each) for each in needed):
            return kind, owner
    objective = getattr(getattr(policy, "config", None), "objective", None)
    if name in _FLOW_MATCHING or objective == "flow_matching":
        raise InputError(
            f"{name} samples by flow matching, an ODE: its steps have no noise that could be "
            "coupled, so that it cannot be accelerated exactly; expected a policy of the type "
            "diffusion, or multi_task_dit with the objective diffusion"
        )
    raise InputError(
        "expected a policy of LeRobot's of the type diffusion, or multi_task_dit with the "
        f"objective diffusion, got {name}: only diffusion has steps to save"
    )


def _config(scheduler: Any, sampler: str | SamplerConfig, options: dict[str, Any]) -> SamplerConfig:
    """What was asked for; on a DDIM, what needs noise takes the DDPM that was trained."""
    ddim = is_ddim(scheduler)
    if sampler == "auto":
        sampler = "ddim" if ddim else "asd"
    config = SamplerConfig.named(sampler, asked_of=accelerate, **options)
    if ddim and config.steps is None and config.name != "ddim":
        config = replace(config, steps=int(scheduler.config.num_train_timesteps))
    return config


def difference_to_its_loop(policy: Any, *given: Any, seed: int = 0, **named: Any) -> float:
    """How far this package's sequential chain is from LeRobot's own loop on the same noise: the
    largest absolute difference of a number. (5e-6, say, is rounding.)

    Args:
        policy: accelerated. given, named: of ``conditional_sample``, without a generator and noise;
            by default a made-up observation. seed: of the noise.
    """
    _, owner = _found(policy)
    ours: LeRobotSample = vars(owner)["conditional_sample"]
    if not given and not named:
        given, named = ours.example()
    return ours.difference(*given, seed=seed, **named)[0]
