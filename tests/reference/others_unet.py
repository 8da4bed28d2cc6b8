"""Chi et al.'s ConditionalUnet1D as its users have it, written from its interface and behaviour.

Its own names, defaults and signature: modulation that only shifts unless ``cond_predict_scale``,
and a last block with 8 groups, whatever ``n_groups`` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from asd_policy.networks.unet1d import SinusoidalPosEmb


class Resample(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Block(nn.Module):
    def __init__(self, into: int, out: int, kernel_size: int, n_groups: int = 8) -> None:
        super().__init__()
        conv = nn.Conv1d(into, out, kernel_size, padding=kernel_size // 2)
        self.block = nn.Sequential(conv, nn.GroupNorm(n_groups, out), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    def __init__(
        self, into: int, out: int, cond_dim: int, kernel_size: int, n_groups: int, scales: bool
    ) -> None:
        super().__init__()
        sizes = (into, out), (out, out)
        self.blocks = nn.ModuleList([Block(*size, kernel_size, n_groups) for size in sizes])
        self.scales, self.out = scales, out
        width = 2 * out if scales else out
        layers = nn.Mish(), nn.Linear(cond_dim, width), nn.Unflatten(-1, (-1, 1))
        self.cond_encoder = nn.Sequential(*layers)
        self.residual_conv = nn.Conv1d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        embed = self.cond_encoder(cond)
        h = self.blocks[0](x)
        if self.scales:
            embed = embed.reshape(len(embed), 2, self.out, 1)
            h = embed[:, 0] * h + embed[:, 1]
        else:
            h = h + embed
        return self.blocks[1](h) + self.residual_conv(x)


class RenamedBlock(ResidualBlock):
    """The same, under LeRobot's names."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.conv1, self.conv2 = self.blocks
        del self.blocks

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        self.__dict__["blocks"] = self.conv1, self.conv2
        return super().forward(x, cond)


class PublishedUnet1D(nn.Module):
    block: type[ResidualBlock] = ResidualBlock
    resample: type[Resample] | None = Resample

    def __init__(
        self,
        input_dim: int,
        local_cond_dim: int | None = None,
        global_cond_dim: int | None = None,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 3,
        n_groups: int = 8,
        cond_predict_scale: bool = False,
    ) -> None:
        super().__init__()
        embed, dims = diffusion_step_embed_dim, [input_dim, *down_dims]
        layers = nn.Linear(embed, 4 * embed), nn.Mish(), nn.Linear(4 * embed, embed)
        self.diffusion_step_encoder = nn.Sequential(SinusoidalPosEmb(embed), *layers)
        rest = embed + (global_cond_dim or 0), kernel_size, n_groups, cond_predict_scale
        self.local_cond_encoder = None
        if local_cond_dim is not None:
            self.local_cond_encoder = nn.ModuleList([self.block(local_cond_dim, dims[1], *rest)])
        pairs = list(pairwise(dims))
        self.mid_modules = nn.ModuleList([self.block(dims[-1], dims[-1], *rest) for _ in "ab"])
        self.down_modules = nn.ModuleList()
        for level, (into, out) in enumerate(pairs):
            down: nn.Module = self._resampling(nn.Conv1d(out, out, 3, 2, 1))
            down = down if level < len(pairs) - 1 else nn.Identity()
            blocks = self.block(into, out, *rest), self.block(out, out, *rest)
            self.down_modules.append(nn.ModuleList([*blocks, down]))
        self.up_modules = nn.ModuleList()
        for into, out in reversed(pairs[1:]):
            blocks = self.block(2 * out, into, *rest), self.block(into, into, *rest)
            up = self._resampling(nn.ConvTranspose1d(into, into, 4, 2, 1))
            self.up_modules.append(nn.ModuleList([*blocks, up]))
        first = down_dims[0]
        self.final_conv = nn.Sequential(
            Block(first, first, kernel_size), nn.Conv1d(first, input_dim, 1)
        )

    def _resampling(self, conv: nn.Module) -> nn.Module:
        return conv if self.resample is None else self.resample(conv)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> Tensor:
        x = sample.moveaxis(-1, -2)
        feature = self.diffusion_step_encoder(timestep.to(x.dtype).expand(len(x)))
        if global_cond is not None:
            feature = torch.cat([feature, global_cond], -1)
        skips = []
        for first, second, down in self.down_modules:
            x = second(first(x, feature), feature)
            skips.append(x)
            x = down(x)
        for block in self.mid_modules:
            x = block(x, feature)
        for first, second, up in self.up_modules:
            x = torch.cat((x, skips.pop()), 1)
            x = up(second(first(x, feature), feature))
        return self.final_conv(x).moveaxis(-1, -2)


class RenamedUnet1D(PublishedUnet1D):
    """As LeRobot has it: a block's two parts are attributes, and resampling has no wrapper."""

    block, resample = RenamedBlock, None
