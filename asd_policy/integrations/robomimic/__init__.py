"""robomimic: its diffusion policies, accelerated; on 0.3, an algorithm "diffusion_policy".

    import asd_policy.integrations.robomimic as asd
    policy, _ = FileUtils.policy_from_checkpoint(ckpt_path="model.pth", device="cuda")
    policy = asd.accelerate(policy, sampler="asd")

Importing this applies the fixes of :mod:`asd_policy.integrations.robomimic.compat`, and registers
the algorithm where robomimic has none (0.3). 0.4 has none either, and is refused.
"""

import sys

from asd_policy.errors import IntegrationError, say_to_user
from asd_policy.integrations.robomimic import compat

try:
    VERSION = compat.robomimic_version()
    compat.apply(VERSION)

    from asd_policy.integrations.robomimic.rollout import AcceleratedPolicy, accelerate

    if VERSION < (0, 4):
        import asd_policy.integrations.robomimic.algorithm
        import asd_policy.integrations.robomimic.config  # noqa: F401
except (IntegrationError, ModuleNotFoundError) as error:
    # As a command, which imports this before __main__; argv[0] is "-m" meanwhile.
    if sys.argv[:1] != ["-m"]:
        raise
    sys.exit(say_to_user(error, f"`python -m {__name__}`"))

__all__ = ["VERSION", "AcceleratedPolicy", "accelerate"]
