"""The one-dimensional U-Net of diffusion policy, conditioned by feature-wise modulation (FiLM).

Parameter names and shapes are those of Chi et al. (Diffusion Policy, RSS 2023, arXiv 2303.04137)
and of robomimic's copy, so that their checkpoints load here and ours load there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from asd_policy.errors import InputError


class SinusoidalPosEmb(nn.Module):
    """Timestep embedding: sines, then cosines, of geometrically spaced frequencies."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise InputError(f"the step embedding needs an even dimension of 4 or more, got {dim}")
        self.dim = dim

    def forward(self, timesteps: Tensor) -> Tensor:
        """(N,) timesteps → (N, dim), both of one floating dtype; computed in float32 at least."""
        half, dtype = self.dim // 2, torch.promote_types(timesteps.dtype, torch.float32)
        rates = torch.arange(half, device=timesteps.device, dtype=dtype)
        angles = timesteps[:, None] * torch.exp(rates * (-math.log(10000.0) / (half - 1)))[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(timesteps.dtype)


class Downsample1d(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample1d(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Conv1dBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(groups, out_channels),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ConditionalResidualBlock1D(nn.Module):
    """Two convolution blocks; the first one's output is scaled and shifted by the condition, or
    only shifted."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_dim: int,
        kernel_size: int,
        groups: int,
        scales: bool = True,
    ) -> None:
        super().__init__()
        self.scales = scales
        self.blocks = nn.ModuleList(
            [
                Conv1dBlock(in_channels, out_channels, kernel_size, groups),
                Conv1dBlock(out_channels, out_channels, kernel_size, groups),
            ]
        )
        outputs = 2 * out_channels if scales else out_channels
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, outputs))
        self.residual_conv = (
            nn.Conv1d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """(N, in_channels, T), (N, cond_dim) → (N, out_channels, T)."""
        film = self.cond_encoder(cond).unsqueeze(-1)
        if self.scales:
            scale, shift = film.chunk(2, dim=1)
            out = self.blocks[0](x) * scale + shift
        else:
            out = self.blocks[0](x) + film
        return self.blocks[1](out) + self.residual_conv(x)


class ConditionalUnet1D(nn.Module):
    """U-Net over the time axis of an action chunk.

    Args:
        input_dim: numbers in one action.
        global_cond_dim: length of the condition vector (0: unconditional).
        diffusion_step_embed_dim: length of the timestep embedding.
        down_dims: channels per resolution; the chunk is halved in length between them.
        kernel_size: odd length of the convolutions.
        n_groups: groups of the group norms; must divide every entry of ``down_dims``.
        cond_predict_scale: whether the condition scales activations, or only shifts them.
        final_n_groups: groups in the last block, ``n_groups`` if None. The published classes have 8
            there, whatever their ``n_groups``: weights do not tell, ``OthersUnet1D`` reads it.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
        final_n_groups: int | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be odd, got {kernel_size}")
        if not down_dims or any(dim < 1 or dim % n_groups for dim in down_dims):
            raise InputError(f"down_dims must be multiples of {n_groups=}, got {tuple(down_dims)}")
        final_groups = final_n_groups or n_groups
        if down_dims[0] % final_groups:
            raise InputError(f"final_n_groups={final_groups} must divide {down_dims[0]}")
        self.input_dim, self.global_cond_dim = input_dim, global_cond_dim
        self.length_multiple = 2 ** (len(down_dims) - 1)
        embed = diffusion_step_embed_dim
        cond_dim = embed + global_cond_dim

        def residual(dim_in: int, dim_out: int) -> ConditionalResidualBlock1D:
            return ConditionalResidualBlock1D(
                dim_in, dim_out, cond_dim, kernel_size, n_groups, cond_predict_scale
            )

        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalPosEmb(embed),
            nn.Linear(embed, 4 * embed),
            nn.Mish(),
            nn.Linear(4 * embed, embed),
        )
        dims = [input_dim, *down_dims]
        pairs = list(pairwise(dims))
        self.mid_modules = nn.ModuleList([residual(dims[-1], dims[-1]) for _ in range(2)])
        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    residual(dim_in, dim_out),
                    residual(dim_out, dim_out),
                    Downsample1d(dim_out) if i < len(pairs) - 1 else nn.Identity(),
                ]
            )
            for i, (dim_in, dim_out) in enumerate(pairs)
        )
        self.up_modules = nn.ModuleList(
            nn.ModuleList(
                [residual(2 * dim_out, dim_in), residual(dim_in, dim_in), Upsample1d(dim_in)]
            )
            for dim_in, dim_out in reversed(pairs[1:])
        )
        self.final_conv = nn.Sequential(
            Conv1dBlock(down_dims[0], down_dims[0], kernel_size, final_groups),
            nn.Conv1d(down_dims[0], input_dim, 1),
        )

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        """(N, T, input_dim) chunks, (N,) timesteps, (N, global_cond_dim) → (N, T, input_dim)."""
        embedding = self.diffusion_step_encoder(timesteps.to(x.dtype))
        if cond is not None:
            embedding = torch.cat([embedding, cond], dim=-1)
        h = x.transpose(1, 2)
        skips = []
        for level in self.down_modules:
            first, second, down = cast(nn.ModuleList, level)
            h = second(first(h, embedding), embedding)
            skips.append(h)
            h = down(h)
        for block in self.mid_modules:
            h = block(h, embedding)
        for level in self.up_modules:
            first, second, up = cast(nn.ModuleList, level)
            h = torch.cat([h, skips.pop()], dim=1)
            h = up(second(first(h, embedding), embedding))
        return self.final_conv(h).transpose(1, 2)
