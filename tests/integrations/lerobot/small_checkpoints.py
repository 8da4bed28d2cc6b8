"""Small policies of LeRobot's, saved as its own training saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors

STATE, ENV, PICTURE = "observation.state", "observation.environment_state", "observation.images.top"
INPUTS = {
    STATE: PolicyFeature(FeatureType.STATE, (2,)),
    ENV: PolicyFeature(FeatureType.ENV, (16,)),
    PICTURE: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
}
OUTPUTS = {"action": PolicyFeature(FeatureType.ACTION, (2,))}


def save(folder: Path, *inputs: str, steps: int = 30, **settings: Any) -> Path:
    """A diffusion policy that was trained a little: it goes from where it is to the middle."""
    torch.manual_seed(0)
    config = DiffusionConfig(
        input_features={key: INPUTS[key] for key in inputs}, output_features=dict(OUTPUTS),
        device="cpu", horizon=16, n_action_steps=8, down_dims=(16, 32), diffusion_step_embed_dim=16,
        n_groups=4, crop_shape=None, push_to_hub=False, pretrained_backbone_weights=None,
        use_group_norm=True, **settings,
    )  # fmt: skip
    policy = DiffusionPolicy(config)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    policy.train()
    for _ in range(steps):
        loss, _ = policy.forward(_batch(inputs, 32 if PICTURE not in inputs else 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    policy.save_pretrained(folder)
    stats = {
        key: {"min": torch.zeros(width), "max": torch.full((width,), 512.0)}
        for key, width in ((STATE, 2), (ENV, 16), ("action", 2))
    }
    stats[PICTURE] = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.5)}
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return folder


def _batch(inputs: tuple[str, ...], size: int) -> dict[str, torch.Tensor]:
    batch = {key: torch.rand(size, 2, *INPUTS[key].shape) * 2 - 1 for key in inputs}
    away = batch[STATE][:, -1:] * torch.linspace(1, 0, 16)[None, :, None]
    batch["action"] = away + 0.05 * torch.randn_like(away)
    return batch | {"action_is_pad": torch.zeros(size, 16, dtype=torch.bool)}
