"""The names of samplers: of the four, and of forms that set some of their options.

Imports no torch: the command line lists the names before it needs any.
"""

from __future__ import annotations

import re
from typing import Any

from asd_policy.errors import InputError, did_you_mean

# name -> what it sets of ``SamplerConfig``; further options are free.
SAMPLER_FORMS: dict[str, dict[str, Any]] = {
    "asd": {"name": "asd"},
    "asd-slope": {"name": "asd", "draft": "slope", "calls_per_round": 1},
    "asd-memory": {"name": "asd", "draft": "memory", "calls_per_round": 1},
    "asd-frozen": {"name": "asd", "draft": "frozen", "calls_per_round": 1},
    # Hu et al., ICML 2025, as published
    "asd-paper": {"name": "asd", "draft": "frozen", "calls_per_round": 2},
    "asd-rejoin": {"name": "asd", "draft": "secant", "calls_per_round": 1, "rejoin": True},
    "asd-ddim": {"name": "asd"},
    "ddpm": {"name": "ddpm"},
    "ddim": {"name": "ddim"},
    # What "asd-ddim" reproduces: ε from the clipped sample.
    "ddim-clipped": {"name": "ddim", "use_clipped_model_output": True},
    "paradigms": {"name": "paradigms"},
}
SAMPLER_NAMES = SAMPLER_FORMS.keys()
ASD_DRAFT, ASD_CALLS = "secant", 1  # of "asd", where nothing else is asked for
ASD_DDIM_STEPS = 10  # of "asd-ddim", as of "ddim"
_DDIM_OF_N_STEPS = re.compile(r"ddim-([1-9][0-9]*)")


def ddim_steps_of(name: str) -> int | None:
    """N of the name ddim-N; None of other names."""
    match = _DDIM_OF_N_STEPS.fullmatch(name)
    return None if match is None else int(match[1])


def sampler_form(name: str) -> dict[str, Any]:
    """What a name sets of ``SamplerConfig``: "asd-paper" → name, draft and calls a round.

    Raises:
        ValueError: an unknown name.
    """
    steps = ddim_steps_of(name) if isinstance(name, str) else None
    if steps is not None:
        return {"name": "ddim", "steps": steps}
    if name not in SAMPLER_FORMS:
        raise InputError(
            f"sampler must be one of {', '.join((*SAMPLER_NAMES, 'ddim-N'))}; got {name!r}"
            f"{did_you_mean(name, SAMPLER_NAMES)}"
        )
    return dict(SAMPLER_FORMS[name])
