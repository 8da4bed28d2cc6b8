"""Small policies of the installed LeRobot, trained in memory on a task that has two answers."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file, save_file
from torch import Tensor

import asd_policy.integrations.lerobot  # noqa: F401  # first: torchvision may want its help

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
SIDE = 64  # of pictures, in points
BEFORE_PROCESSORS = {"observation": "normalize_inputs", "action": "unnormalize_outputs"}


def config(cameras: int = 0, **changes: Any) -> DiffusionConfig:
    """Of a policy that sees a state and either a goal or so many pictures."""
    inputs = {STATE: PolicyFeature(type=FeatureType.STATE, shape=(2,))}
    for name in camera_names(cameras):
        inputs[name] = PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIDE, SIDE))
    if not cameras:
        inputs[ENVIRONMENT] = PolicyFeature(type=FeatureType.ENV, shape=(3,))
    sizes = {
        "horizon": 16, "n_action_steps": 8, "down_dims": (16, 32), "diffusion_step_embed_dim": 16,
        "crop_shape": None, "pretrained_backbone_weights": None, "use_group_norm": True,
        "spatial_softmax_num_keypoints": 4, "use_separate_rgb_encoder_per_camera": False,
    }  # fmt: skip
    outputs = {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(2,))}
    return DiffusionConfig(
        input_features=inputs, output_features=outputs, device="cpu", **{**sizes, **changes}
    )


def camera_names(cameras: int) -> list[str]:
    return [f"observation.images.view{n}" for n in range(cameras)]


def observation(batch: int, cameras: int = 0, seed: int = 1, steps: int | None = None) -> Any:
    """Normalized, as a policy takes it; with ``steps``, so many of each in a row."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> Tensor:
        lead = (batch,) if steps is None else (batch, steps)
        return torch.rand(*lead, *shape, generator=generator)

    values = {STATE: 2 * made(2) - 1}
    for name in camera_names(cameras):
        values[name] = made(3, SIDE, SIDE)
    if not cameras:
        values[ENVIRONMENT] = 2 * made(3) - 1
    return values


@functools.lru_cache(maxsize=4)
def _trained(cameras: int, steps: int, changes: tuple[tuple[str, Any], ...]) -> DiffusionPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = DiffusionPolicy(config(cameras, **dict(changes))).train()
        optimizer = torch.optim.Adam(policy.parameters(), 2e-3)
        for step in range(steps):
            seen = policy.config.n_obs_steps
            batch = observation(8 if cameras else 64, cameras, seed=step, steps=seen)
            start, rows = batch[STATE][:, -1:], len(batch[STATE])
            side = torch.rand(rows, 1, 1).sub(0.5).sign()  # either way is right
            batch[ACTION] = start + torch.linspace(0, 0.5, 16)[:, None] * side
            batch["action_is_pad"] = torch.zeros(rows, 16, dtype=torch.bool)
            loss, _ = policy.forward(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return policy.eval()


def trained(cameras: int = 0, steps: int = 100, **changes: Any) -> DiffusionPolicy:
    """A policy of its own, a hundred steps old."""
    policy = copy.deepcopy(_trained(cameras, steps, tuple(sorted(changes.items()))))
    policy.reset()
    return policy


def encoded(policy: DiffusionPolicy, batch: int = 3, seed: int = 1) -> Tensor:
    """(batch, width) conditions of observations, by the policy's own encoders."""
    cameras = camera_names(len(policy.config.image_features))
    seen = observation(batch, len(cameras), seed, steps=policy.config.n_obs_steps)
    if cameras:
        seen["observation.images"] = torch.stack([seen[name] for name in cameras], dim=2)
    with torch.no_grad():
        return policy.diffusion._prepare_global_conditioning(seen)


def precise(policy: DiffusionPolicy) -> None:
    """Give its scheduler tables of double precision. diffusers' are of single precision: 1 - ᾱ of
    the last steps is then off by 1e-4 of itself where betas begin at 1e-4."""
    scheduler = policy.diffusion.noise_scheduler
    kind, start, end = (scheduler.config[f"beta_{name}"] for name in ("schedule", "start", "end"))
    betas, count = scheduler.betas.double(), len(scheduler.betas)
    if kind == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64).square()
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = torch.ones((), dtype=torch.float64)


def statistics(policy: DiffusionPolicy) -> dict[str, dict[str, Tensor]]:
    """Of made-up data."""
    made: dict[str, dict[str, Tensor]] = {}
    for number, (name, feature) in enumerate(
        {**policy.config.input_features, **policy.config.output_features}.items()
    ):
        shape = (3, 1, 1) if len(feature.shape) == 3 else feature.shape
        ones = torch.ones(shape)
        made[name] = {
            "min": -(number + 1) * ones, "max": (number + 2) * ones,
            "mean": 0.1 * number * ones, "std": (0.5 + number) * ones,
        }  # fmt: skip
    return made


def saved(policy: DiffusionPolicy, folder: Path) -> Path:
    """As ``lerobot-train`` saves it: the policy, and processors of its data's statistics."""
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=statistics(policy)):
        pipeline.save_pretrained(folder)
    return folder


def as_of_old(folder: Path) -> Path:
    """As LeRobot 0.3 wrote it: statistics in the weights, and no processors."""
    weights = load_file(folder / "model.safetensors")
    for feature, values in statistics(trained()).items():
        start = BEFORE_PROCESSORS[feature.partition(".")[0]]
        for name, value in values.items():
            weights[f"{start}.buffer_{feature.replace('.', '_')}.{name}"] = value
            if feature == "action":
                weights[f"normalize_targets.buffer_action.{name}"] = value.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for path in folder.glob("policy_*"):
        path.unlink()
    return folder
