"""A round's arithmetic in PyTorch, on any device and of any type: what the others are held to."""

from asd_policy.drafts import propose
from asd_policy.rejoin import walk
from asd_policy.samplers.asd import observe, settle, verify
from asd_policy.samplers.ddpm import advance

__all__ = ["advance", "observe", "propose", "settle", "verify", "walk"]
