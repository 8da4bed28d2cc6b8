"""Diffusion policies sampled exactly and fast by autospeculative decoding (ASD)."""

import contextlib
import importlib
import importlib.util
from typing import TYPE_CHECKING

from asd_policy.errors import AsdPolicyError, CheckpointError, NonFiniteError

if TYPE_CHECKING:
    from asd_policy.policy import DiffusionPolicy
    from asd_policy.sampler import Sampler
    from asd_policy.samplers.calibration import Calibration
    from asd_policy.samplers.config import SamplerConfig
    from asd_policy.samplers.result import Noise, Stats
    from asd_policy.sampling import Result, calibrate, sample
    from asd_policy.schedule import Schedule

__version__ = "0.1.0"
__all__ = [
    "AsdPolicyError",
    "Calibration",
    "CheckpointError",
    "DiffusionPolicy",
    "Noise",
    "NonFiniteError",
    "Result",
    "Sampler",
    "SamplerConfig",
    "Schedule",
    "Stats",
    "calibrate",
    "sample",
]

# Imported when first used: torch takes seconds to load, and `asd-policy --help` needs none of it.
_MODULES = {
    "asd_policy.policy": ("DiffusionPolicy",),
    "asd_policy.sampler": ("Sampler",),
    "asd_policy.samplers.calibration": ("Calibration",),
    "asd_policy.samplers.config": ("SamplerConfig",),
    "asd_policy.samplers.result": ("Noise", "Stats"),
    "asd_policy.sampling": ("Result", "calibrate", "sample"),
    "asd_policy.schedule": ("Schedule",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "serving":  # asd_policy.serving.Client: needs an extra
        return importlib.import_module("asd_policy.serving")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# `gym.make("asd_policy:asd_policy/Lift-v0")` imports this package and expects the environments
# to be registered; the core itself does not need gymnasium. A gymnasium that is there but broken
# says so to whoever uses it; here it must not keep `asd-policy doctor` from naming it.
if importlib.util.find_spec("gymnasium"):
    with contextlib.suppress(Exception):
        from asd_policy.envs.registration import register_envs

        register_envs()
