"""ConditionalUnet1D laid out for sampling: fewer, larger operations and the same function.

A chunk asks for the network at many points, at K known timesteps and one observation per chain.
What follows from that is computed once:

* every residual block modulates by Linear(Mish([e(t), c])), and Mish is elementwise, so this is
  W_t·Mish(e(t)) + W_c·Mish(c) + bias: a (K, F) table and a (B, F) matrix for the whole network,
  where F is the sum of 2·out_channels over the residual blocks (scale and shift of each);
* on the CPU a convolution is one matrix product whose weights are laid out beforehand, over
  activations with the channels last (there, the library's convolution re-lays its weights in every
  call). On CUDA the convolutions stay; shapes are static, so the module can be captured in a CUDA
  graph or compiled.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.networks.unet1d import ConditionalResidualBlock1D, ConditionalUnet1D

PRECISIONS = ("fp32", "tf32", "bf16")

# Measured: a row-major (in, out) weight is the faster one while it fits into a core's cache, a
# row-major (out, in) weight beyond.
_IN_MAJOR_UP_TO = 1 << 19
# Measured: below, one slow pass of Mish costs less than four fast ones.
_MISH_IN_PARTS_FROM = 3072


class _Affine(nn.Module):
    """Rows (M, in) → (M, out)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        weight = weight.detach().clone(memory_format=torch.contiguous_format)
        if weight.numel() <= _IN_MAJOR_UP_TO:
            weight = weight.t().contiguous().t()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)


def _windows(padded: Tensor, start: int, width: int, stride: int) -> Tensor:
    """Windows of ``width`` times, from ``start`` on: (N, L, C) → (N, windows, width·C), a view."""
    batch, length, channels = padded.shape
    count = (length - 2 * start - width) // stride + 1
    return padded.as_strided(
        (batch, count, width * channels),
        (length * channels, stride * channels, 1),
        padded.storage_offset() + start * channels,
    )


def _rows(windows: Tensor) -> Tensor:
    return windows.reshape(-1, windows.shape[-1])


def _kernel_matrix(weight: Tensor) -> Tensor:
    """Conv1d weight (out, in, k) → (out, k·in), for windows that are contiguous in memory."""
    return weight.transpose(1, 2).flatten(1)


def mish(x: Tensor) -> Tensor:
    """x·tanh(softplus(x)) = x - x / (1 + e + e²/2), e = exp(x). May overwrite x.

    The right-hand side is right at e = ∞ as well.
    """
    if x.numel() < _MISH_IN_PARTS_FROM:
        return F.mish(x, inplace=True)
    e = x.exp()
    below = torch.addcmul(e, e, e, value=0.5).add_(1)
    return x.addcdiv_(x, below, value=-1)


class _ProductBlock(nn.Module):
    """Convolution, group norm, Mish; the input has ``edge`` ≥ kernel // 2 zeros on either side."""

    def __init__(self, block: nn.Sequential, edge: int) -> None:
        super().__init__()
        conv, norm = cast(nn.Conv1d, block[0]), cast(nn.GroupNorm, block[1])
        assert conv.bias is not None
        self.kernel = conv.kernel_size[0]
        self.start = edge - self.kernel // 2
        self.affine = _Affine(_kernel_matrix(conv.weight), conv.bias)
        self.norm = deepcopy(norm)

    def forward(self, rows: Tensor, batch: int) -> Tensor:
        """(N·T, k·in) → (N, T, out) in float32 at least."""
        h = self.affine(rows).view(batch, -1, self.norm.num_channels)
        # As a picture of height 1, which group norm takes with the channels last.
        image = h.transpose(1, 2).unsqueeze(2)
        norm = self.norm
        image = torch.group_norm(image, norm.num_groups, norm.weight, norm.bias, norm.eps)
        h = image.squeeze(2).transpose(1, 2)
        return mish(h.float() if h.dtype == torch.bfloat16 else h)

    def windows(self, padded: Tensor) -> Tensor:
        return _rows(_windows(padded, self.start, self.kernel, 1))


class _ProductResidual(nn.Module):
    def __init__(self, block: ConditionalResidualBlock1D, edge: int) -> None:
        super().__init__()
        first, second = ((cast(nn.Module, b).block) for b in block.blocks)
        self.edge = edge
        self.first = _ProductBlock(cast(nn.Sequential, first), edge)
        self.second = _ProductBlock(cast(nn.Sequential, second), edge)
        conv = block.residual_conv
        self.residual: _Affine | None = None
        if isinstance(conv, nn.Conv1d):
            assert conv.bias is not None
            self.residual = _Affine(_kernel_matrix(conv.weight), conv.bias)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """(N, edge + T + edge, in) → the same of out channels; zeros at the edges."""
        batch, length, channels = x.shape
        inside = slice(self.edge, length - self.edge)
        rows = self.first.windows(x)
        h = self.first(rows, batch)
        padded = x.new_zeros(batch, length, h.shape[-1])
        torch.addcmul(shift, h, scale, out=padded[:, inside])
        h = self.second(self.second.windows(padded), batch)
        skipped = x[:, inside]
        if self.residual is not None:
            # The middle of a window is the point itself, as a matrix that needs no copy.
            middle = (self.first.kernel // 2) * channels
            skipped = self.residual(rows[:, middle : middle + channels]).view(h.shape)
        out = torch.zeros_like(padded)
        torch.add(h, skipped, out=out[:, inside])
        return out


class _ProductDown(nn.Module):
    """Conv1d(dim, dim, 3, stride=2, padding=1)."""

    def __init__(self, conv: nn.Conv1d, edge: int) -> None:
        super().__init__()
        assert conv.bias is not None
        self.edge, self.affine = edge, _Affine(_kernel_matrix(conv.weight), conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        windows = _windows(x, self.edge - 1, 3, 2)
        h = self.affine(_rows(windows)).view(*windows.shape[:2], -1)
        return F.pad(h, (0, 0, self.edge, self.edge))


class _ProductUp(nn.Module):
    """ConvTranspose1d(dim, dim, 4, stride=2, padding=1): window j gives the outputs 2j-1 and 2j.

    With x_{-1} = x_T = 0 and the weight's taps W_0 … W_3, y_{2j-1} = W_2 x_{j-1} + W_0 x_j and
    y_{2j} = W_3 x_{j-1} + W_1 x_j for j = 0 … T; the first and the last y are not wanted.
    """

    def __init__(self, conv: nn.ConvTranspose1d, edge: int) -> None:
        super().__init__()
        assert conv.bias is not None
        taps = conv.weight.permute(2, 1, 0)  # (4, out, in)
        weight = torch.cat([torch.cat([taps[2], taps[0]], 1), torch.cat([taps[3], taps[1]], 1)])
        self.edge, self.affine = edge, _Affine(weight, conv.bias.repeat(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        y = self.affine(_rows(_windows(x, self.edge - 1, 2, 1))).view(batch, -1, channels)
        return F.pad(y[:, 1:-1], (0, 0, self.edge, self.edge))


class _ProductFinal(nn.Module):
    def __init__(self, final: nn.Sequential, edge: int) -> None:
        super().__init__()
        conv = cast(nn.Conv1d, final[1])
        assert conv.bias is not None
        self.block = _ProductBlock(cast(nn.Sequential, cast(nn.Module, final[0]).block), edge)
        self.affine = _Affine(_kernel_matrix(conv.weight), conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.block.windows(x), x.shape[0])
        return self.affine(h.to(x.dtype).flatten(0, 1)).view(*h.shape[:2], -1)


class _Products:
    """Matrix products: activations (N, edge + T + edge, C) with zeros at the edges."""

    channels = 2

    def __init__(self, kernel_size: int) -> None:
        self.edge = max(kernel_size // 2, 1)

    def enter(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, self.edge, self.edge))

    def residual(self, block: ConditionalResidualBlock1D) -> nn.Module:
        return _ProductResidual(block, self.edge)

    def down(self, conv: nn.Conv1d) -> nn.Module:
        return _ProductDown(conv, self.edge)

    def up(self, conv: nn.ConvTranspose1d) -> nn.Module:
        return _ProductUp(conv, self.edge)

    def final(self, final: nn.Sequential) -> nn.Module:
        return _ProductFinal(final, self.edge)


class _ConvolutionResidual(nn.Module):
    def __init__(self, block: ConditionalResidualBlock1D) -> None:
        super().__init__()
        self.blocks = deepcopy(block.blocks)
        self.residual_conv = deepcopy(block.residual_conv)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """(N, in, T) → (N, out, T)."""
        h = torch.addcmul(shift, self.blocks[0](x), scale)
        return self.blocks[1](h).add_(self.residual_conv(x))


class _ConvolutionFinal(nn.Module):
    def __init__(self, final: nn.Sequential) -> None:
        super().__init__()
        self.final = deepcopy(final)

    def forward(self, x: Tensor) -> Tensor:
        return self.final(x).transpose(1, 2)


class _Convolutions:
    """The library's convolutions: activations (N, C, T)."""

    channels = 1

    def enter(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def residual(self, block: ConditionalResidualBlock1D) -> nn.Module:
        return _ConvolutionResidual(block)

    def down(self, conv: nn.Conv1d) -> nn.Module:
        return deepcopy(conv)

    def up(self, conv: nn.ConvTranspose1d) -> nn.Module:
        return deepcopy(conv)

    def final(self, final: nn.Sequential) -> nn.Module:
        return _ConvolutionFinal(final)


class _Trunk(nn.Module):
    """The U-Net's course over layers of one layout, its modulation given."""

    def __init__(self, network: ConditionalUnet1D, layout: _Products | _Convolutions) -> None:
        super().__init__()
        self.layout = layout
        self.sizes = [half for block in _residual_blocks(network) for half in _film_sizes(block)]
        down, up = network.down_modules, network.up_modules
        self.down = nn.ModuleList(layout.residual(b) for level in down for b in level[:2])
        self.mid = nn.ModuleList(layout.residual(b) for b in network.mid_modules)
        self.up = nn.ModuleList(layout.residual(b) for level in up for b in level[:2])
        self.shorten = nn.ModuleList(layout.down(level[2].conv) for level in list(down)[:-1])
        self.lengthen = nn.ModuleList(layout.up(level[2].conv) for level in up)
        self.final = layout.final(network.final_conv)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """(N, T, input_dim), (N, F) → (N, T, input_dim)."""
        axis = self.layout.channels
        film_parts = iter(film.unsqueeze(3 - axis).split(self.sizes, axis))
        h, skips = self.layout.enter(x), []
        for i in range(0, len(self.down), 2):
            h = self.down[i](h, next(film_parts), next(film_parts))
            h = self.down[i + 1](h, next(film_parts), next(film_parts))
            skips.append(h)
            if i // 2 < len(self.shorten):
                h = self.shorten[i // 2](h)
        for block in self.mid:
            h = block(h, next(film_parts), next(film_parts))
        for i in range(0, len(self.up), 2):
            h = torch.cat([h, skips.pop()], dim=axis)
            h = self.up[i](h, next(film_parts), next(film_parts))
            h = self.up[i + 1](h, next(film_parts), next(film_parts))
            h = self.lengthen[i // 2](h)
        return self.final(h)


def _residual_blocks(network: ConditionalUnet1D) -> list[ConditionalResidualBlock1D]:
    """In the order of the forward pass."""
    return [
        m
        for part in (network.down_modules, network.mid_modules, network.up_modules)
        for m in part.modules()
        if isinstance(m, ConditionalResidualBlock1D)
    ]


def _film_sizes(block: ConditionalResidualBlock1D) -> tuple[int, int]:
    out_channels = cast(nn.Linear, block.cond_encoder[1]).out_features // 2
    return out_channels, out_channels


class InferenceUnet1D(nn.Module):
    timestep_film: Tensor
    cond_weight: Tensor

    def __init__(
        self, network: ConditionalUnet1D, timesteps: Tensor, precision: str = "fp32"
    ) -> None:
        super().__init__()
        weight = next(network.parameters())
        self.precision = precision
        embed = network.diffusion_step_encoder(timesteps.to(weight))
        blocks = _residual_blocks(network)
        linears = [cast(nn.Linear, b.cond_encoder[1]) for b in blocks]
        w = torch.cat([l.weight for l in linears]).detach()
        b = torch.cat([l.bias for l in linears]).detach()
        E = embed.shape[1]
        self.register_buffer("timestep_film", F.linear(F.mish(embed.detach()), w[:, :E], b))
        self.register_buffer("cond_weight", w[:, E:].contiguous())
        kernel = cast(nn.Conv1d, network.final_conv[0].block[0]).kernel_size[0]
        layout = _Products(kernel) if weight.device.type == "cpu" else _Convolutions()
        self.trunk = _Trunk(network, layout).requires_grad_(False)
        if precision == "bf16":
            self.trunk.bfloat16()

    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        if cond is None:
            return self.timestep_film.new_zeros(batch, self.timestep_film.shape[1])
        return F.linear(F.mish(cond), self.cond_weight)

    @torch.no_grad()
    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        h = x.bfloat16() if self.precision == "bf16" else x
        return self.trunk(h, film).to(x.dtype)
