"""Policies that servers draw for (`asd-policy serve`), as an evaluation takes them."""

from __future__ import annotations

import dataclasses
from typing import Any

from asd_policy.errors import InputError
from asd_policy.eval.plan import Parts
from asd_policy.progress import Stage
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.names import ASD_DDIM_STEPS


def remote_policies(parts: Parts) -> tuple[dict[str, Any], dict[str, Any]]:
    """One for each sampler, and where the first is: they must be of one checkpoint.

    Raises:
        ConnectionLostError, ServerError: nobody is there, or not a server of this package.
        ValueError: a server of another sampler, task or checkpoint.
    """
    from asd_policy.serving import Client, RemotePolicy  # need the extra

    policies: dict[str, Any] = {}
    for (name, settings), address in zip(parts.samplers.items(), parts.remote, strict=True):
        with Stage(f"connecting to {address}, {name}"):
            policies[name] = RemotePolicy(Client(address))
        _check(policies[name].client.metadata, name, dict(settings), address, parts.task)
    told = [policy.client.metadata for policy in policies.values()]
    if len({each["checkpoint_sha256"] for each in told}) > 1:
        raise InputError("the servers of --remote have different checkpoints; expected one")
    first = told[0]
    return policies, {
        "checkpoint": f"{first.get('policy', 'policy')} at {', '.join(parts.remote)}",
        "device": first["device"],
        "gpu": first["gpu"],
        "precision": first.get("precision", "fp32"),
        "compile": first.get("compile", False),
    }


def _meant(config: dict[str, Any]) -> dict[str, Any]:
    """A sampler's options with a DDIM's defaults spelled out."""
    if config["name"] != "ddim":
        return dict(config)
    return config | {
        "eta": config.get("eta") or 0.0,
        "steps": config.get("steps") or ASD_DDIM_STEPS,
    }


def _check(told: dict[str, Any], name: str, settings: Any, address: str, task: str) -> None:
    asked = dataclasses.asdict(SamplerConfig.named(**settings))
    wanted, has = _meant(asked), _meant(told["sampler_config"])
    if wanted["steps"] == told["steps"]:  # by its number, what is spelled there as all there are
        has["steps"] = told["steps"]
    other = [key for key, value in wanted.items() if has.get(key) != value]
    if other:
        raise InputError(
            f"{address} draws otherwise than {name} is asked for: {other[0]} is "
            f"{has.get(other[0])!r} there, and {wanted[other[0]]!r} here"
        )
    if told["task"] not in (None, task):
        raise InputError(
            f"{address} has a policy of the task {told['task']!r}; --task says {task!r}"
        )
    if told["checkpoint_sha256"] is None:
        raise InputError(f"{address} does not say its checkpoint's SHA-256, which a run keeps")
