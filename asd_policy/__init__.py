"""Diffusion policies sampled exactly and fast by autospeculative decoding (ASD)."""

import importlib.util

from asd_policy.errors import AsdPolicyError, CheckpointError, NonFiniteError
from asd_policy.policy import DiffusionPolicy
from asd_policy.samplers import Calibration, Result, SamplerConfig, Stats, calibrate, sample
from asd_policy.schedule import Schedule

__version__ = "0.1.0"
__all__ = [
    "AsdPolicyError",
    "Calibration",
    "CheckpointError",
    "DiffusionPolicy",
    "NonFiniteError",
    "Result",
    "SamplerConfig",
    "Schedule",
    "Stats",
    "calibrate",
    "sample",
]

# `gym.make("asd_policy:asd_policy/Lift-v0")` imports this package and expects the environments
# to be registered; the core itself does not need gymnasium.
if importlib.util.find_spec("gymnasium"):
    from asd_policy.envs.registration import register_envs

    register_envs()
