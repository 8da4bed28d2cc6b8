"""The transformer of diffusion policy: a decoder of actions that attends to what was observed.

Parameter names and shapes are those of Chi et al.'s ``TransformerForDiffusion`` (Diffusion Policy,
RSS 2023, arXiv 2303.04137) with observations and time as conditions, so that their checkpoints load
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.errors import InputError, whole_from
from asd_policy.networks.unet1d import SinusoidalPosEmb


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a :class:`TransformerForDiffusion`, as Chi et al.'s configurations name them.

    Attributes:
        n_layer: layers of the decoder. n_head: heads of each attention.
        n_emb: numbers of a token. n_cond_layers: layers of the conditions' encoder; 0 is a small
            network for each token by itself.
        causal_attn: an action sees those before it, and observations up to its own time.
    """

    n_layer: int = 8
    n_head: int = 4
    n_emb: int = 256
    n_cond_layers: int = 0
    causal_attn: bool = True

    def __post_init__(self) -> None:
        for name, least in (("n_layer", 1), ("n_head", 1), ("n_emb", 4), ("n_cond_layers", 0)):
            object.__setattr__(self, name, whole_from(least, name, getattr(self, name)))
        if not isinstance(self.causal_attn, bool):
            raise InputError(f"causal_attn must be True or False, got {self.causal_attn!r:.80}")
        if self.n_emb % self.n_head or self.n_emb % 2:
            raise InputError(
                "a transformer's n_emb must be even and a multiple of n_head, got "
                f"n_emb {self.n_emb} and n_head {self.n_head}"
            )


class TransformerForDiffusion(nn.Module):
    """Noise prediction with a token for each action, for each observation and for the time.

    It has no dropout: where published weights were trained with some, it is off when they are
    sampled, and its place holds no weights.

    Args:
        input_dim: numbers in one action. cond_dim: numbers in one observation.
        horizon: actions in a chunk. n_obs_steps: observations that condition it.
        sizes: layers, heads, width and masks.
    """

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self,
        input_dim: int,
        cond_dim: int,
        horizon: int,
        n_obs_steps: int,
        sizes: TransformerSizes | None = None,
    ) -> None:
        super().__init__()
        sizes = TransformerSizes() if sizes is None else sizes
        width = sizes.n_emb
        self.n_obs_steps, self.global_cond_dim = n_obs_steps, n_obs_steps * cond_dim
        self.input_emb, self.cond_obs_emb = nn.Linear(input_dim, width), nn.Linear(cond_dim, width)
        like = self.input_emb.weight.detach()
        self.pos_emb = nn.Parameter(like.new_zeros(1, horizon, width))
        self.cond_pos_emb = nn.Parameter(like.new_zeros(1, 1 + n_obs_steps, width))
        self.time_emb = SinusoidalPosEmb(width)
        self.encoder = _encoder(sizes)
        layer = nn.TransformerDecoderLayer(width, sizes.n_head, 4 * width, **_LAYER)
        self.decoder = nn.TransformerDecoder(layer, sizes.n_layer)
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, input_dim)
        later = like.new_full((horizon, max(horizon, 1 + n_obs_steps)), -torch.inf)
        masks = (
            # The first token of the condition is the time, which all actions see.
            (later[:, :horizon].triu(1), later[:, : 1 + n_obs_steps].triu(2))
            if sizes.causal_attn
            else (None, None)
        )
        for name, mask in zip(("mask", "memory_mask"), masks, strict=True):
            self.register_buffer(name, mask, persistent=False)
        self.apply(_initialize)
        for embedding in (self.pos_emb, self.cond_pos_emb):
            nn.init.normal_(embedding, std=0.02)

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
        """(N, T, input_dim) chunks, (N,) timesteps, (N, To · cond_dim) → (N, T, input_dim)."""
        seen = self.cond_obs_emb(cond.unflatten(-1, (self.n_obs_steps, -1)))
        time = self.time_emb(timesteps.to(x.dtype))[:, None]
        memory = self.encoder(torch.cat([time, seen], dim=1) + self.cond_pos_emb)
        hidden = self.decoder(
            self.input_emb(x) + self.pos_emb,
            memory,
            tgt_mask=self.mask,
            memory_mask=self.memory_mask,
            tgt_is_causal=False,  # PyTorch need not look whether the mask is causal
        )
        return self.head(self.ln_f(hidden))


# As of all published ones; normalized first, which trains stably.
_LAYER: dict[str, Any] = {
    "dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True,
}  # fmt: skip


def _encoder(sizes: TransformerSizes) -> nn.Module:
    width = sizes.n_emb
    if sizes.n_cond_layers == 0:
        return nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
    layer = nn.TransformerEncoderLayer(width, sizes.n_head, 4 * width, **_LAYER)
    return nn.TransformerEncoder(layer, sizes.n_cond_layers, enable_nested_tensor=False)


def _initialize(module: nn.Module) -> None:
    """Products begin with weights of N(0, 0.02²), as in GPT-2, and no offset."""
    if isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
