"""Processors of the policy type ``asd_diffusion``: LeRobot's for diffusion."""

from lerobot.policies.diffusion.processor_diffusion import (
    make_diffusion_pre_post_processors as make_asd_diffusion_pre_post_processors,
)

__all__ = ["make_asd_diffusion_pre_post_processors"]
