"""Policies with the parts and signatures of diffusion_policy's, written from its interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reference.others_unet import PublishedUnet1D

HORIZON, ACTION, OBSERVED, STEPS_SEEN = 8, 2, 3, 2


class SmallTransformer(nn.Module):
    """``model(sample, timestep, cond)``: tokens of the chunk attend, causally, to those before them
    and to those of the condition; without one, to the time's token beside them."""

    def __init__(self, input_dim: int, cond_dim: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(input_dim, 16), nn.Linear(16, input_dim)
        self.time, self.seen = nn.Linear(1, 16), nn.Linear(max(cond_dim, 1), 16)
        sizes: Any = {"dropout": 0.1, "activation": "gelu", "batch_first": True, "norm_first": True}
        tokens = HORIZON + (not cond_dim)
        self.encoder = self.decoder = None
        if cond_dim:
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, **sizes), 2)
        else:
            layer = nn.TransformerEncoderLayer(16, 2, 32, **sizes)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        later = torch.full((tokens, tokens), -torch.inf)
        self.register_buffer("mask", later.triu(1))
        self.register_buffer("memory_mask", later[:, : 1 + STEPS_SEEN].triu(2))

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor | None = None) -> Tensor:
        time = self.time(timestep.expand(len(sample)).to(sample)[:, None, None] / 100)
        tokens = self.into(sample)
        if self.decoder is not None:
            memory = torch.cat([time, self.seen(cond)], 1)
            x = self.decoder(tokens, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        else:
            assert self.encoder is not None
            x = self.encoder(torch.cat([time, tokens], 1), mask=self.mask)[:, 1:]
        out: Tensor = self.out(x)
        return out


class LocalNetwork(nn.Module):
    """Convolutions over a chunk and what is observed at its times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(ACTION + OBSERVED + 1, 16, 3, padding=1)
        self.last = nn.Conv1d(16, ACTION, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> Tensor:
        assert local_cond is not None
        time = timestep.expand(len(sample)).to(sample)[:, None, None] / 100
        whole = torch.cat([sample, local_cond, time.expand(-1, HORIZON, 1)], -1)
        return self.last(self.first(whole.moveaxis(1, 2)).tanh()).moveaxis(1, 2)


class _Loop(nn.Module):
    """Denoises step by step; what is known is put back before each step and at the end."""

    def __init__(self, model: nn.Module, noise_scheduler: Any, **kwargs: Any) -> None:
        super().__init__()
        self.model, self.noise_scheduler, self.kwargs = model, noise_scheduler, kwargs
        self.num_inference_steps = noise_scheduler.config.num_train_timesteps
        self.horizon, self.n_obs_steps, self.n_action_steps = HORIZON, STEPS_SEEN, 4
        self.obs_dim, self.action_dim = OBSERVED, ACTION

    def _loop(
        self, data: Tensor, mask: Tensor, generator: Any, step: dict[str, Any], **conds: Any
    ) -> Tensor:
        x = torch.randn(data.shape, generator=generator, dtype=data.dtype, device=data.device)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            x[mask] = data[mask]
            predicted = self.model(x, t, **conds)
            x = self.noise_scheduler.step(predicted, t, x, generator=generator, **step).prev_sample
        x[mask] = data[mask]
        return x

    def known(self, observed: Tensor, fixed: bool) -> tuple[Tensor, Tensor]:
        """``condition_data`` and ``condition_mask``, observations inpainted if ``fixed``."""
        width = ACTION + OBSERVED * fixed
        data = observed.new_zeros(len(observed), HORIZON, width)
        mask = torch.zeros_like(data, dtype=torch.bool)
        if fixed:
            data[:, :STEPS_SEEN, ACTION:] = observed
            mask[:, :STEPS_SEEN, ACTION:] = True
        return data, mask


class UnetPolicy(_Loop):
    """How it sees observations: "global", "local" or "fixed" (inpainting)."""

    def __init__(self, noise_scheduler: Any, how: str = "global", **kwargs: Any) -> None:
        net: nn.Module = LocalNetwork()
        if how != "local":
            net = PublishedUnet1D(
                ACTION + OBSERVED * (how == "fixed"),
                global_cond_dim=STEPS_SEEN * OBSERVED if how == "global" else None,
                diffusion_step_embed_dim=8,
                down_dims=(8, 16),
                cond_predict_scale=True,
            )
        super().__init__(net, noise_scheduler, **kwargs)
        self.how = how
        self.obs_as_global_cond, self.obs_as_local_cond = how == "global", how == "local"

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        return self._loop(
            condition_data, condition_mask, generator, kwargs,
            local_cond=local_cond, global_cond=global_cond,
        )  # fmt: skip

    def inputs(self, observed: Tensor) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        conds: dict[str, Any] = {"local_cond": None, "global_cond": None}
        if self.how == "global":
            conds["global_cond"] = observed.flatten(1)
        if self.how == "local":
            local = observed.new_zeros(len(observed), HORIZON, OBSERVED)
            local[:, :STEPS_SEEN] = observed
            conds["local_cond"] = local
        return self.known(observed, self.how == "fixed"), conds

    def predict_action(self, obs_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        known, conds = self.inputs(obs_dict["obs"])
        chunk = self.conditional_sample(*known, **conds, **self.kwargs)
        first = STEPS_SEEN - 1
        return {"action": chunk[:, first : first + 4, :ACTION], "action_pred": chunk[..., :ACTION]}


class TransformerPolicy(_Loop):
    """As :class:`UnetPolicy`; "cond" or "fixed"."""

    def __init__(self, noise_scheduler: Any, how: str = "cond", **kwargs: Any) -> None:
        net = SmallTransformer(ACTION + OBSERVED * (how == "fixed"), OBSERVED * (how == "cond"))
        super().__init__(net, noise_scheduler, **kwargs)
        self.how = how
        self.obs_as_cond = how == "cond"

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        cond: Tensor | None = None,
        generator: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        return self._loop(condition_data, condition_mask, generator, kwargs, cond=cond)

    def inputs(self, observed: Tensor) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        return self.known(observed, self.how == "fixed"), {
            "cond": observed if self.how == "cond" else None
        }
