"""A round's arithmetic in PyTorch, on any device and of any type: what the others are held to."""

from asd_policy.drafts import propose
from asd_policy.samplers.asd import observe, verify
from asd_policy.samplers.ddpm import advance

__all__ = ["advance", "observe", "propose", "verify"]
