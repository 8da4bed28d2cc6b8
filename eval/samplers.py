"""The sampler names of the command line, and what each asks of the policy."""

from __future__ import annotations

from typing import Any

from asd_policy.eval.options import EvalOptions, ddim_steps_of

# name -> (draft, network calls a round)
_ASD_FORMS = {
    "asd": ("secant", 1),
    "asd-slope": ("slope", 1),
    "asd-memory": ("memory", 1),
    "asd-frozen": ("frozen", 1),
    "asd-paper": ("frozen", 2),  # Hu et al., ICML 2025, as published
    "asd-ddim": ("secant", 1),
}


def sampler_settings(name: str, options: EvalOptions) -> dict[str, Any]:
    """Keyword arguments of `DiffusionPolicy.load` for one sampler name, all spelled out."""
    if name in _ASD_FORMS:
        draft, calls = _ASD_FORMS[name]
        ddim = name == "asd-ddim"
        return {
            "sampler": "asd",
            "draft": draft,
            "calls_per_round": calls,
            "window": options.window,
            "steps": options.ddim_steps if ddim else options.steps,
            "eta": options.eta if ddim else None,
        }
    if name == "ddpm":
        return {"sampler": "ddpm", "steps": options.steps}
    own_steps = ddim_steps_of(name)
    if name == "ddim" or own_steps is not None:
        return {"sampler": "ddim", "steps": own_steps or options.ddim_steps, "eta": options.eta}
    assert name == "paradigms", name
    return {
        "sampler": "paradigms",
        "window": options.window,
        "steps": options.steps,
        "tolerance": options.tolerance,
    }


def is_autospeculative(name: str) -> bool:
    """Whether the name is a form of ASD."""
    return name in _ASD_FORMS


def law_of(name: str) -> str | None:
    """What a sampler's samples are distributed as, in a few words; None for a name that is none.

    "exact" is the distribution of sequential DDPM, up to floating-point arithmetic.
    """
    if name == "ddpm":
        return "exact: the reference"
    if name == "asd-ddim":
        return "exact for ddim's chain, not DDPM's"
    if is_autospeculative(name):
        return "exact"
    if name in ("ddim", "paradigms") or ddim_steps_of(name) is not None:
        return "approximate"
    return None
