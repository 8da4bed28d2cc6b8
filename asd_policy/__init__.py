"""Diffusion policies sampled exactly and fast by autospeculative decoding (ASD)."""

import importlib.util

if importlib.util.find_spec("gymnasium"):
    from asd_policy.envs.registration import register_envs

    register_envs()
