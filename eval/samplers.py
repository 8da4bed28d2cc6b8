"""The sampler names of the command line, and what each asks of the policy."""

from __future__ import annotations

from typing import Any

from asd_policy.eval.options import EvalOptions
from asd_policy.samplers.names import ASD_CALLS, ASD_DRAFT, SAMPLER_FORMS, sampler_form


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
        }
    if sampler == "ddpm":
        return {"sampler": "ddpm", "steps": options.steps}
    if sampler == "ddim":
        steps = form.get("steps", options.ddim_steps)
        return {"sampler": "ddim", "steps": steps, "eta": options.eta}
    assert sampler == "paradigms", name
    return {
        "sampler": "paradigms",
        "window": options.window,
        "steps": options.steps,
        "tolerance": options.tolerance,
    }


def is_autospeculative(name: str) -> bool:
    """Whether the name is a form of ASD."""
    return bool(SAMPLER_FORMS.get(name, {}).get("name") == "asd")
