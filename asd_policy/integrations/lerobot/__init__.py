"""LeRobot: its diffusion policies, with chunks sampled by this package.

    import asd_policy.integrations.lerobot as asd
    policy = asd.accelerate(policy, sampler="asd")     # a policy of LeRobot's, and still one

Imported first, it also helps a torchvision that was built for another PyTorch.
"""

from asd_policy.errors import imported_as_command
from asd_policy.integrations.lerobot.version import check_version
from asd_policy.integrations.torchvision_operators import import_torchvision

with imported_as_command(__name__):
    import_torchvision()
    VERSION = check_version()

    from asd_policy.integrations.lerobot.accelerating import accelerate, difference_to_its_loop
    from asd_policy.integrations.lerobot.folders import load, renewed

__all__ = ["VERSION", "accelerate", "difference_to_its_loop", "load", "renewed"]
