"""The sampler names of the command line, and what each asks of the policy."""

from __future__ import annotations

from typing import Any

from asd_policy.eval.options import EvalOptions
from asd_policy.samplers.names import (
    ASD_CALLS,
    ASD_DRAFT,
    SAMPLER_FORMS,
    ddim_steps_of,
    sampler_form,
)


def sampler_settings(name: str, options: EvalOptions) -> dict[str, Any]:
    """Keyword arguments of `DiffusionPolicy.load` for one sampler name, all spelled out."""
    form = sampler_form(name)
    sampler = form["name"]
    if sampler == "asd":
        ddim = name == "asd-ddim"
        return {
            "sampler": "asd",
            "draft": form.get("draft", ASD_DRAFT),
            "calls_per_round": form.get("calls_per_round", ASD_CALLS),
            "window": options.window,
            "steps": options.ddim_steps if ddim else options.steps,
            "eta": options.eta if ddim else None,
            **{k: form[k] for k in ("rejoin",) if k in form},
        }
    if sampler == "ddpm":
        return {"sampler": "ddpm", "steps": options.steps}
    if sampler == "ddim":
        steps = form.get("steps", options.ddim_steps)
        clipped = {k: form[k] for k in ("use_clipped_model_output",) if k in form}
        return {"sampler": "ddim", "steps": steps, "eta": options.eta, **clipped}
    from asd_policy.samplers.table import METHODS  # needs PyTorch, and names alone do not

    taken = {"steps", *METHODS[sampler].options}
    given = {name: getattr(options, name) for name in ("window", "steps", "eta", "tolerance")}
    return {"sampler": sampler, **{k: v for k, v in given.items() if k in taken}}


def is_autospeculative(name: str) -> bool:
    """Whether the name is a form of ASD."""
    return bool(SAMPLER_FORMS.get(name, {}).get("name") == "asd")


def law_of(name: str) -> str | None:
    """What a sampler's samples are distributed as, in a few words; None for a name that is none.

    "exact" is the distribution of sequential DDPM, up to floating-point arithmetic.
    """
    if name == "ddpm":
        return "exact: the reference"
    if name == "asd-ddim":
        return "exact for ddim-clipped's chain, not DDPM's"
    if is_autospeculative(name):
        return "exact"
    if name in SAMPLER_FORMS or ddim_steps_of(name) is not None:
        return "approximate"
    return None
