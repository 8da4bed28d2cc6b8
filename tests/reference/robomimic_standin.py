"""What robomimic 0.5's diffusion policy looks like from outside, written from its interfaces.

0.5 is not on the package index. Same attributes, parameter names, sampling loop (diffusers'
scheduler), checkpoint layout, and the same fault: its queue keeps the first element of a batch.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from robomimic.algo import RolloutPolicy
from robomimic.config.config import Config
from torch import Tensor, nn

from asd_policy.networks.unet1d import ConditionalUnet1D

SHAPES = OrderedDict(
    object=[10], robot0_eef_pos=[3], robot0_eef_quat=[4], robot0_gripper_qpos=[2]
)  # as sorted in shape_metadata
CHAIN = {
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "prediction_type": "epsilon",
}


def algo_config(
    ddim: bool = False, steps: int = 100, horizons: tuple[int, ...] = (2, 8, 16)
) -> Config:
    names = ("observation_horizon", "action_horizon", "prediction_horizon")
    chain = {**CHAIN, "num_train_timesteps": steps}
    return Config(
        horizon=dict(zip(names, horizons, strict=True)),
        unet={"enabled": True, "down_dims": [256, 512, 1024], "n_groups": 8},
        ema={"enabled": True, "power": 0.75},
        ddpm={"enabled": not ddim, "num_inference_timesteps": steps, **chain},
        ddim={"enabled": ddim, "num_inference_timesteps": 10, "set_alpha_to_one": True,
              "steps_offset": 0, **chain},
    )  # fmt: skip


class GroupEncoder(nn.Module):
    """Low-dimensional keys concatenated, pictures through a small network (nets.obs.…)."""

    def __init__(self, shapes: dict[str, list[int]]) -> None:
        super().__init__()
        self.shapes, self.nets = shapes, nn.ModuleDict({"obs": nn.ModuleDict()})
        for key, shape in shapes.items():
            if len(shape) == 3:
                self.nets["obs"][key] = nn.Sequential(
                    nn.Conv2d(shape[0], 4, 3, 2), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1)
                )

    def forward(self, **inputs: Any) -> Tensor:
        parts = []
        for key in self.shapes:
            value = inputs["obs"][key]
            net = self.nets["obs"]
            parts.append((net[key](value).relu() if key in net else value).flatten(1))
        return torch.cat(parts, -1)

    def output_shape(self) -> list[int]:
        return [sum(4 if len(s) == 3 else s[0] for s in self.shapes.values())]


class Unet(ConditionalUnet1D):
    """With 0.5's signature, and a time step that may be a number."""

    def forward(self, sample: Tensor, timestep: Any, global_cond: Tensor) -> Tensor:  # type: ignore[override]
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        return super().forward(sample, timestep, global_cond)


class AveragedModel:
    def __init__(self, nets: nn.Module) -> None:
        self.averaged_model = copy.deepcopy(nets).eval()


class DiffusionPolicyUNet:
    """0.5's algorithm, as far as rollouts see it."""

    def __init__(
        self, config: Config, shapes: dict[str, list[int]] = SHAPES, ac_dim: int = 7,
        ema: bool = True, **sizes: Any,
    ) -> None:  # fmt: skip
        self.algo_config, self.obs_shapes, self.ac_dim = config, OrderedDict(shapes), ac_dim
        self.device = torch.device("cpu")
        self.global_config = Config(
            algo_name="diffusion_policy",
            train={
                "action_keys": ["actions"],
                "action_config": {"actions": {"normalization": None}},
            },
        )
        encoder = GroupEncoder(self.obs_shapes)
        cond = encoder.output_shape()[0] * config.horizon.observation_horizon
        parts = {"obs_encoder": encoder, "noise_pred_net": Unet(ac_dim, cond, **sizes)}
        self.nets = nn.ModuleDict({"policy": nn.ModuleDict(parts)})
        self.ema = AveragedModel(self.nets) if ema else None
        kind = "ddpm" if config.ddpm.enabled else "ddim"
        values = {k: v for k, v in config[kind].items() if k in
                  (*CHAIN, "set_alpha_to_one", "steps_offset")}  # fmt: skip
        self.noise_scheduler = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[kind](**values)
        self.reset()

    def set_eval(self) -> None:
        self.nets.eval()

    def reset(self) -> None:
        self.action_queue: deque[Tensor] = deque(maxlen=self.algo_config.horizon.action_horizon)

    def get_action(self, obs_dict: dict[str, Tensor], goal_dict: Any = None) -> Tensor:
        if not self.action_queue:
            self.action_queue.extend(self._get_action_trajectory(obs_dict)[0])
        return self.action_queue.popleft()[None]

    def _get_action_trajectory(self, obs_dict: dict[str, Tensor]) -> Tensor:
        nets = self.nets if self.ema is None else self.ema.averaged_model
        batch = len(next(iter(obs_dict.values())))
        flat = {key: obs_dict[key].flatten(0, 1) for key in self.obs_shapes}
        cond = nets["policy"]["obs_encoder"](obs=flat, goal=None).reshape(batch, -1)
        horizon = self.algo_config.horizon
        sample = torch.randn(batch, horizon.prediction_horizon, self.ac_dim)
        kind = "ddpm" if self.algo_config.ddpm.enabled else "ddim"
        self.noise_scheduler.set_timesteps(self.algo_config[kind].num_inference_timesteps)
        for step in self.noise_scheduler.timesteps:
            predicted = nets["policy"]["noise_pred_net"](
                sample=sample, timestep=step, global_cond=cond
            )
            sample = self.noise_scheduler.step(predicted, step, sample).prev_sample
        first = horizon.observation_horizon - 1
        return sample[:, first : first + horizon.action_horizon]

    def serialize(self) -> dict[str, Any]:
        return {
            "nets": self.nets.state_dict(),
            "optimizers": {},
            "lr_schedulers": {"policy": None},
            "ema": None if self.ema is None else self.ema.averaged_model.state_dict(),
        }


class RolloutPolicy05(RolloutPolicy):
    """0.5's wrapper: batches, statistics called offset and scale, actions to their own units."""

    def __init__(self, policy: Any, obs: Any = None, actions: Any = None) -> None:
        super().__init__(policy, obs_normalization_stats=obs)
        self.action_normalization_stats = actions

    def _prepare_observation(
        self, ob: Any, batched_ob: bool = False, postprocess_visual_obs: bool = True
    ) -> dict[str, Tensor]:
        made = {k: torch.as_tensor(np.asarray(v)).float() for k, v in ob.items()}
        if not batched_ob:
            made = {k: v[None] for k, v in made.items()}
        if self.obs_normalization_stats is not None:
            stats = self.obs_normalization_stats
            made = {k: (v - torch.as_tensor(stats[k]["offset"][0]).float())
                    / torch.as_tensor(stats[k]["scale"][0]).float()
                    for k, v in made.items() if k in stats}  # fmt: skip
        for key, value in made.items():
            if key.endswith("image") and postprocess_visual_obs:
                made[key] = (value / 255).clip(0, 1).movedim(-1, -3)
        return made

    def __call__(self, ob: Any, goal: Any = None, batched_ob: bool = False) -> np.ndarray:
        action = self.policy.get_action(self._prepare_observation(ob, batched_ob))
        made = (action if batched_ob else action[0]).numpy()
        if self.action_normalization_stats is not None:
            stats = self.action_normalization_stats["actions"]
            made = made * stats["scale"][0] + stats["offset"][0]
        return made


def small_policy(**options: Any) -> RolloutPolicy05:
    """A network small enough for a test, with averages unlike the weights."""
    torch.manual_seed(0)
    config = options.pop("config", None) or algo_config(steps=20)
    stats = {name: options.pop(name, None) for name in ("obs", "actions")}
    sizes = {"diffusion_step_embed_dim": 8, "down_dims": (8, 16), "n_groups": 4}
    algo = DiffusionPolicyUNet(config, **{**sizes, **options})
    with torch.no_grad():
        for value in algo.nets.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return RolloutPolicy05(algo, **stats)
