"""What a server says of itself to whoever connects."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

import asd_policy
from asd_policy.policy.sampled import SampledSource
from asd_policy.serving.protocol import VERSION
from asd_policy.serving.requests import CALLS, Seen

if TYPE_CHECKING:
    from asd_policy.serving.server import Limits


def metadata_of(policy: Any, seen: Seen, wait_s: float, limits: Limits) -> dict[str, Any]:
    """Of a server of this policy: numbers, text, lists and mappings."""
    to, ta, tp = policy.horizons
    card = getattr(policy, "card", {})
    return {
        "server": f"asd-policy {asd_policy.__version__}",
        "protocol": VERSION,
        "calls": list(CALLS),
        "observations": {key: list(shape) for key, shape in seen.shapes.items()},
        "pictures": list(policy.pictures),
        "texts": list(seen.texts),
        "action_dim": policy.action_dim,
        "observation_horizon": to,
        "action_horizon": ta,
        "prediction_horizon": tp,
        "chunk": tp - to + 1,
        "steps": policy.schedule.num_steps,
        "window": policy.window,
        "sampler_config": dataclasses.asdict(policy.source.sampler.config),
        "device": str(policy.device),
        "gpu": torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else None,
        "engine": policy.engine.name,
        "kernels": policy.engine.kernels,
        "threads": policy.threads,
        "parameters": policy.parameters,
        "task": card.get("task"),
        "checkpoint_sha256": card.get("sha256"),
        # Whether `begin` can go on with a seed after chunks that were drawn from it.
        "resumes": isinstance(policy.source, SampledSource),
        "conditions": policy.source.conditions,  # whether it takes `committed`
        "wait_ms": 1e3 * wait_s,
        "limits": {"message_bytes": limits.message_bytes, "robots": limits.robots},
    }
