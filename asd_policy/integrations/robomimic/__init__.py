"""robomimic: its diffusion policies, accelerated; on 0.3, an algorithm "diffusion_policy".

    import asd_policy.integrations.robomimic as asd
    policy, _ = FileUtils.policy_from_checkpoint(ckpt_path="model.pth", device="cuda")
    policy = asd.accelerate(policy, sampler="asd")

Importing this applies the fixes of :mod:`asd_policy.integrations.robomimic.compat`, and registers
the algorithm where robomimic has none (0.3). 0.4 has none either, and is refused.
"""

from asd_policy.errors import imported_as_command
from asd_policy.integrations.robomimic import compat

with imported_as_command(__name__):
    VERSION = compat.robomimic_version()
    compat.apply(VERSION)

    from asd_policy.integrations.robomimic.rollout import AcceleratedPolicy, accelerate

    if VERSION < (0, 4):
        import asd_policy.integrations.robomimic.algorithm
        import asd_policy.integrations.robomimic.config  # noqa: F401

__all__ = ["VERSION", "AcceleratedPolicy", "accelerate"]
