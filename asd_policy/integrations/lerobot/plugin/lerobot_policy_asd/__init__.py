"""LeRobot's commands import this distribution by its name; it registers ``asd_diffusion``."""

from asd_policy.integrations.lerobot.configuration_asd_diffusion import AsdDiffusionConfig
from asd_policy.integrations.lerobot.modeling_asd_diffusion import AsdDiffusionPolicy
from asd_policy.integrations.lerobot.policy_type import register
from asd_policy.integrations.lerobot.processor_asd_diffusion import (
    make_asd_diffusion_pre_post_processors,
)

register()

__all__ = [
    "AsdDiffusionConfig",
    "AsdDiffusionPolicy",
    "make_asd_diffusion_pre_post_processors",
]
