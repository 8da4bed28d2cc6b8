"""A tiny pipeline of diffusers, and the noise of its own loop."""

from __future__ import annotations

from typing import Any

import torch

import asd_policy.integrations.diffusers  # noqa: F401 - before diffusers: it says why

# isort: split
import diffusers

from asd_policy.samplers.result import Noise

STEPS, SIDE = 20, 8


def unet(**options: Any) -> torch.nn.Module:
    """A tiny UNet2DModel, always the same."""
    torch.manual_seed(0)
    given = {
        "sample_size": SIDE, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
        "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DModel(**given | options).eval()


def pipeline(**options: Any) -> Any:
    given = {"num_train_timesteps": STEPS, "beta_end": 0.3} | options
    scheduler = diffusers.DDPMScheduler(**given)
    made = diffusers.DDPMPipeline(unet=unet(), scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def its_noise(batch: int, steps: int, seed: int) -> Noise:
    """What the pipeline's own loop draws, step by step, from a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(batch, 3, SIDE, SIDE, generator=generator) for _ in range(steps)]
    return Noise(
        drawn[0].flatten(1),
        torch.stack([*drawn[1:], torch.zeros_like(drawn[0])], 1).flatten(2),
        torch.zeros(batch, steps),
    )
