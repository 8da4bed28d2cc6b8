"""The layers of ConditionalUnet1D for a GPU: matrix products, and one kernel for all between two.

A small network's time on a GPU is launches and the laying out of activations. Here these are kept
as a convolution reads them: the k points around each point side by side, (N, T, k, C), zeros beyond
the ends. A convolution is then one product, and a single kernel does what follows it (group norm,
Mish, modulation or the residual) and writes the windows that the next product reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.networks.unet1d import ConditionalResidualBlock1D

LEAST_KERNEL = 3  # resampling reads the points before and after


def follow_in_torch(
    h: Tensor,
    taps: int,
    norm: nn.GroupNorm | None = None,
    film: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """What follows a product, in windows of ``taps`` points.

    Args:
        h: (N, T, C). taps: odd.
        norm: group norm, and then Mish. film: (N, C) scale and shift. residual: (N, T, C), added.

    Returns:
        (N, T, taps, C), of h's type; computed in float32 at least.
    """
    y = h.to(torch.promote_types(h.dtype, torch.float32))
    if norm is not None:
        weight, bias = norm.weight.to(y.dtype), norm.bias.to(y.dtype)
        normed = F.group_norm(y.transpose(1, 2), norm.num_groups, weight, bias, norm.eps)
        y = F.mish(normed).transpose(1, 2)
    if film is not None:
        scale, shift = film
        y = torch.addcmul(shift.unsqueeze(1), y, scale.unsqueeze(1))
    if residual is not None:
        y = y + residual
    padded = F.pad(y.to(h.dtype), (0, 0, taps // 2, taps // 2))
    return padded.unfold(1, taps, 1).transpose(2, 3).contiguous()


def follow(
    h: Tensor,
    taps: int,
    norm: nn.GroupNorm | None = None,
    film: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """:func:`follow_in_torch` in one launch on a GPU.

    Args:
        h: contiguous. film: rows of any stride. residual: any stride between rows, which are
            T·N in number and evenly spaced.
    """
    if not h.is_cuda:
        return follow_in_torch(h, taps, norm, film, residual)
    return launch(h, taps, norm, film, residual)


def launch(
    h: Tensor,
    taps: int,
    norm: nn.GroupNorm | None,
    film: tuple[Tensor, Tensor] | None,
    residual: Tensor | None,
) -> Tensor:
    """The kernel: one program for each sample and group of channels."""
    source = importlib.import_module("asd_policy.networks.follow_kernel")  # imports triton
    power_of_two = source.triton.next_power_of_2
    (batch, length, channels), unused = h.shape, h
    assert h.is_contiguous(), h.stride()
    out = h.new_empty(batch, length, taps, channels)
    groups = norm.num_groups if norm is not None else 8 if channels % 8 == 0 else 1
    scale, shift = film or (unused, unused)
    added = unused if residual is None else residual
    assert scale.stride() == shift.stride()
    assert added.stride(0) == length * added.stride(1), added.stride()
    blocks = power_of_two(length), power_of_two(channels // groups)
    with torch.cuda.device_of(h):
        source.follow_kernel[(batch, groups)](
            h, out, *((norm.weight, norm.bias) if norm is not None else (unused, unused)),
            scale, shift, scale.stride(0), added, added.stride(1),
            eps=0.0 if norm is None else norm.eps, T=length, C=channels, G=channels // groups,
            BLOCK_T=blocks[0], BLOCK_G=blocks[1], TAPS=taps, NORM=norm is not None,
            FILM=film is not None, RESIDUAL=residual is not None,
            num_warps=max(1, min(8, blocks[0] * blocks[1] // 256)),
        )  # fmt: skip
    return out


class _Matrix(nn.Module):
    """Rows (M, k·in), of any stride, → (M, out), from a weight (out, in, k)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        assert bias is not None
        matrix = weight.detach().transpose(1, 2).flatten(1)
        self.register_buffer("weight", matrix.clone(memory_format=torch.contiguous_format))
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)


class _Block(nn.Module):
    """Convolution, group norm, Mish; then what is given."""

    def __init__(self, block: nn.Sequential) -> None:
        super().__init__()
        conv = cast(nn.Conv1d, block[0])
        self.matrix = _Matrix(conv.weight, conv.bias)
        self.norm = deepcopy(cast(nn.GroupNorm, block[1]))

    def forward(
        self,
        windows: Tensor,
        taps: int,
        film: tuple[Tensor, Tensor] | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """(N, T, k, in) → (N, T, taps, out)."""
        batch, length = windows.shape[:2]
        h = self.matrix(windows.view(batch * length, -1))
        return follow(h.view(batch, length, -1), taps, self.norm, film, residual)


class _Residual(nn.Module):
    def __init__(self, block: ConditionalResidualBlock1D) -> None:
        super().__init__()
        self.first, self.second = (_Block(cast(nn.Sequential, b.block)) for b in block.blocks)
        conv = block.residual_conv
        self.residual = _Matrix(conv.weight, conv.bias) if isinstance(conv, nn.Conv1d) else None

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """(N, T, k, in), (N, out) twice → (N, T, k, out)."""
        batch, length, taps, _ = x.shape
        middle = x[:, :, taps // 2]
        if self.residual is not None:
            middle = self.residual(middle.flatten(0, 1)).view(batch, length, -1)
        return self.second(self.first(x, taps, (scale, shift)), taps, None, middle)


class _Down(nn.Module):
    """Conv1d with kernel 3, stride 2 and padding 1."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.matrix = _Matrix(conv.weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, taps, _ = x.shape
        rows = x[:, ::2, taps // 2 - 1 : taps // 2 + 2].flatten(0, 1).flatten(1)
        return follow(self.matrix(rows).view(batch, length // 2, -1), taps)


class _Up(nn.Module):
    """ConvTranspose1d with kernel 4, stride 2 and padding 1, as one product.

    With taps W_0 … W_3: y_{2j} = W_3 x_{j-1} + W_1 x_j and y_{2j+1} = W_2 x_j + W_0 x_{j+1}.
    """

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        super().__init__()
        assert conv.bias is not None
        taps = conv.weight.detach().transpose(0, 1)  # (out, in, 4)
        none = torch.zeros_like(taps[:, :, 0])
        even = torch.stack([taps[:, :, 3], taps[:, :, 1], none], 2)
        odd = torch.stack([none, taps[:, :, 2], taps[:, :, 0]], 2)
        self.matrix = _Matrix(torch.cat([even, odd]), conv.bias.repeat(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, taps, _ = x.shape
        rows = x[:, :, taps // 2 - 1 : taps // 2 + 2].flatten(0, 1).flatten(1)
        return follow(self.matrix(rows).view(batch, 2 * length, -1), taps)


class _Final(nn.Module):
    def __init__(self, final: nn.Sequential) -> None:
        super().__init__()
        conv = cast(nn.Conv1d, final[1])
        self.block = _Block(cast(nn.Sequential, cast(nn.Module, final[0]).block))
        self.matrix = _Matrix(conv.weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, k, C) → (N, T, input_dim)."""
        h = self.block(x, 1)
        return self.matrix(h.flatten(0, 2)).view(*x.shape[:2], -1)


class Fused:
    """Makes these layers out of a network's.

    Args:
        kernel_size: of its convolutions, ``LEAST_KERNEL`` at least.
    """

    def __init__(self, kernel_size: int) -> None:
        assert kernel_size >= LEAST_KERNEL, kernel_size
        self.taps = kernel_size

    def enter(self, x: Tensor) -> Tensor:
        """(N, T, C) → the layers' form of it."""
        return follow(x.contiguous(), self.taps)

    def modulation(self, film: Tensor, sizes: list[int]) -> Sequence[Tensor]:
        """(N, F) → parts of these sizes, which scale and shift."""
        return film.split(sizes, dim=1)

    def join(self, h: Tensor, skipped: Tensor) -> Tensor:
        """Side by side along the channels."""
        return torch.cat([h, skipped], dim=3)

    def residual(self, block: ConditionalResidualBlock1D, inputs: int = 1) -> nn.Module:
        return _Residual(block)

    def down(self, conv: nn.Conv1d) -> nn.Module:
        return _Down(conv)

    def up(self, conv: nn.ConvTranspose1d) -> nn.Module:
        return _Up(conv)

    def final(self, final: nn.Sequential) -> nn.Module:
        return _Final(final)
