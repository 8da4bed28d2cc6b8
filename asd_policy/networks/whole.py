"""The layers of ConditionalUnet1D for a GPU: one launch for each, with all that follows it.

``fused`` launches a product, and then what follows it: 76 launches a call of the three-level U-Net.
Here are 30: the kernel of ``layer_kernel`` reads the points around each point where they lie (and,
on the way up, both parts of what is joined), multiplies, and does norm, Mish, modulation and
residual in the tile that it has multiplied. How a layer is cut into programs says ``tiling``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.networks.tiling import (
    Card,
    Shape,
    blocks_of,
    card_of,
    interpreted,
    power_of_two,
    step_of,
    tiling,
)
from asd_policy.networks.unet1d import ConditionalResidualBlock1D

PDL = False  # programmatic dependent launch, from sm_90 on: not measured yet


class Flow(NamedTuple):
    """What goes from layer to layer: one activation (N, T, C), or two to be read side by side."""

    parts: tuple[Tensor, ...]
    work: Work


@dataclass
class Work:
    """A call's own: counters of the tiles that are summed by several programs, for all layers.

    Attributes:
        counts: the first launch sets them to zero. taken: by the layers so far. dtype: of the
            answer.
    """

    counts: Tensor
    card: Card
    dtype: torch.dtype
    taken: int = 0

    def take(self, tiles: int) -> Tensor:
        assert self.taken > 0 or not tiles, "the first launch sets the counters to zero"
        start, self.taken = self.taken, self.taken + tiles
        assert self.taken <= len(self.counts), (self.taken, len(self.counts))
        return self.counts[start:]


def columns_of(weight: Tensor, group: int, block: int) -> Tensor:
    """(out, …) → (…, groups · block): each group's channels, then zeros."""
    channels = weight.shape[0]
    padded = F.pad(weight.flatten(1).t(), (0, -channels % group))
    groups = padded.view(padded.shape[0], -1, group)
    return F.pad(groups, (0, block - group)).flatten(1).view(*weight.shape[1:], -1)


def matrix_of(weight: Tensor, inputs: int, step: int, group: int, block: int) -> Tensor:
    """A convolution weight (out, in, taps) as (columns, depth): of each of ``inputs`` equal parts
    of the input, each tap's channels and then zeros up to a multiple of ``step``."""
    rows = columns_of(weight.detach(), group, block).transpose(0, 1)  # (taps, in, columns)
    parts = (F.pad(p, (0, 0, 0, -p.shape[1] % step)) for p in rows.chunk(inputs, dim=1))
    return torch.cat([part.flatten(0, 1) for part in parts]).t().contiguous()


@dataclass(frozen=True)
class Conv:
    """A convolution as the kernel takes it.

    Attributes:
        weights: (out, in, taps), one for each of the points that a point becomes. stride, before:
            the window of point j begins at stride·j − before. inputs: parts of its input.
    """

    weights: tuple[Tensor, ...]
    bias: Tensor
    stride: int = 1
    before: int = 0
    inputs: int = 1

    @classmethod
    def of(cls, conv: nn.Conv1d, inputs: int = 1) -> Conv:
        assert conv.bias is not None
        return cls((conv.weight,), conv.bias, conv.stride[0], int(conv.padding[0]), inputs)

    @classmethod
    def up(cls, conv: nn.ConvTranspose1d) -> Conv:
        """Kernel 4, stride 2, padding 1.

        With taps W_0 … W_3: y_{2j} = W_3 x_{j-1} + W_1 x_j and y_{2j+1} = W_2 x_j + W_0 x_{j+1}.
        """
        assert conv.bias is not None
        taps = conv.weight.transpose(0, 1)
        return cls((taps[:, :, [3, 1]], taps[:, :, [2, 0]]), conv.bias, 1, 1)


class Layer(nn.Module):
    """A convolution and what follows it.

    Args:
        norm: group norm, and then Mish. skip: a convolution of one point, whose result is added.
        precision: of products of float32, "ieee" or "tf32".
    """

    weight: Tensor
    vectors: Tensor
    skip_weight: Tensor | None

    def __init__(
        self,
        conv: Conv,
        norm: nn.GroupNorm | None = None,
        skip: Conv | None = None,
        precision: str = "ieee",
    ) -> None:
        super().__init__()
        out, channels, self.taps = conv.weights[0].shape
        none = torch.empty(0, device=conv.bias.device)  # what is laid out is below
        self.conv = replace(conv, weights=(), bias=none)
        self.skip = None if skip is None else replace(skip, weights=(), bias=none)
        self.out, self.precision = out, precision
        self.group, self.block = blocks_of(out, None if norm is None else norm.num_groups)
        self.eps = None if norm is None else norm.eps
        self.step = step_of(channels // conv.inputs)
        rows = [matrix_of(w, conv.inputs, self.step, self.group, self.block) for w in conv.weights]
        self.register_buffer("weight", torch.stack(rows))
        self.skip_step = self.step
        matrix = None
        if skip is not None:
            self.skip_step = step_of(skip.weights[0].shape[1] // skip.inputs)
            given = skip.weights[0], skip.inputs, self.skip_step, self.group, self.block
            matrix = matrix_of(*given)
        self.register_buffer("skip_weight", matrix)
        self.register_buffer("vectors", self._vectors(conv, norm, skip))

    def _vectors(self, conv: Conv, norm: nn.GroupNorm | None, skip: Conv | None) -> Tensor:
        """(4, columns): bias; weight and bias of the norm; bias of the skip."""
        none = torch.zeros_like(conv.bias)
        given = (
            conv.bias, none if norm is None else norm.weight, none if norm is None else norm.bias,
            none if skip is None else skip.bias,
        )  # fmt: skip
        stacked = torch.stack([vector.detach() for vector in given], dim=1)
        return columns_of(stacked, self.group, self.block).contiguous()

    def shape(self, samples: int, length: int) -> Shape:
        """Sizes of a call on ``samples`` activations of ``length`` points."""
        phases, columns, depth = self.weight.shape
        skip = 0 if self.skip_weight is None else self.skip_weight.shape[1] // self.skip_step
        step = max(self.step, self.skip_step)
        return Shape(
            samples, length // self.conv.stride, phases, columns, self.block, depth // self.step,
            skip, step, self.weight.element_size(),
        )  # fmt: skip

    def forward(
        self,
        flow: Flow,
        film: tuple[Tensor, Tensor] | None = None,
        skip: tuple[Tensor, ...] = (),
        dtype: torch.dtype | None = None,
    ) -> Flow:
        """(N, T, in) → (N, T', out), of the weights' type or the one given.

        Args:
            film: (N, out) scale and shift. skip: added, as it is or through its convolution.
        """
        x = flow.parts[0]
        samples, length = x.shape[:2]
        shape = self.shape(samples, length)
        out = x.new_empty(
            samples, shape.phases * shape.points, self.out, dtype=dtype or self.weight.dtype
        )
        launch(self, shape, flow, film, skip, out)
        return Flow((out,), flow.work)


def source() -> Any:
    """The kernel's module, which imports triton."""
    return importlib.import_module("asd_policy.networks.layer_kernel")


def launch(
    layer: Layer, shape: Shape, flow: Flow, film: tuple[Tensor, Tensor] | None,
    skip: tuple[Tensor, ...], out: Tensor,
) -> None:  # fmt: skip
    work, conv = flow.work, layer.conv
    clear = work.taken == 0  # the first of a call
    cut = tiling(shape, work.card, split=not clear)
    split = cut.slices + cut.skip_slices > 1
    across = cut.columns * shape.phases
    if clear:
        work.taken = 1  # which is not used
    counts = work.take(across * cut.rows if split else 0)
    like = out if not split else out.new_empty(
        across * cut.rows, cut.slices + cut.skip_slices, cut.block_m, cut.block_n,
        dtype=torch.float32,
    )  # fmt: skip
    x, more = flow.parts[0], flow.parts[-1]
    skip_x, skip_more = (skip[0], skip[-1]) if skip else (out, out)
    scale, shift = film or (out, out)
    assert scale.stride() == shift.stride()
    assert all(part.is_contiguous() for part in (*flow.parts, *skip))
    kind = "none" if not skip else "same" if layer.skip_weight is None else "product"
    pdl = PDL and work.card.capability >= (9, 0)
    with torch.cuda.device_of(x):
        source().layer_kernel[(across, cut.rows, cut.slices + cut.skip_slices)](
            x, more, layer.weight, layer.vectors, scale, shift, skip_x, skip_more,
            out if layer.skip_weight is None else layer.skip_weight, out, like,
            work.counts if clear else counts, shape.samples, shape.points, x.shape[1], layer.taps,
            x.shape[2], more.shape[2], skip_x.shape[2], skip_more.shape[2], layer.out,
            shape.columns, layer.weight.shape[2], shape.skip_steps * layer.skip_step,
            layer.group, -(-layer.out // layer.group),
            scale.stride(0), shape.steps, shape.skip_steps, cut.slices, max(1, cut.skip_slices),
            cut.columns, len(work.counts), layer.eps or 0.0,
            BLOCK_M=cut.block_m, BLOCK_N=cut.block_n, BLOCK_T=power_of_two(shape.points),
            BLOCK_G=layer.block, BLOCK_K=layer.step, SKIP_K=layer.skip_step, STRIDE=conv.stride,
            BEFORE=conv.before, PHASES=shape.phases, MORE=len(flow.parts) > 1,
            SKIP_MORE=len(skip) > 1, NORM=layer.eps is not None, FILM=film is not None,
            SKIP=kind, SPLIT=split, CLEAR=clear, EXACT=layer.out == shape.columns,
            PRECISION="wide" if interpreted() else layer.precision, PDL=pdl,
            num_warps=cut.warps, num_stages=cut.stages, **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, block: ConditionalResidualBlock1D, inputs: int, precision: str) -> None:
        super().__init__()
        (first, norm), (second, second_norm) = (_parts(b) for b in block.blocks)
        conv = block.residual_conv
        skip = Conv.of(conv, inputs) if isinstance(conv, nn.Conv1d) else None
        self.first = Layer(Conv.of(first, inputs), norm, None, precision)
        self.second = Layer(Conv.of(second), second_norm, skip, precision)

    def forward(self, flow: Flow, scale: Tensor, shift: Tensor) -> Flow:
        """(N, T, in), (N, out) twice → (N, T, out)."""
        skip = flow.parts
        if self.second.skip is None and len(skip) > 1:  # added as it is
            skip = (torch.cat(skip, dim=2),)
        return self.second(self.first(flow, (scale, shift)), None, skip)


def _parts(block: nn.Module) -> tuple[nn.Conv1d, nn.GroupNorm]:
    layers = cast(nn.Sequential, block.block)
    return cast(nn.Conv1d, layers[0]), cast(nn.GroupNorm, layers[1])


class _Final(nn.Module):
    def __init__(self, final: nn.Sequential, precision: str) -> None:
        super().__init__()
        conv, norm = _parts(final[0])
        self.block = Layer(Conv.of(conv), norm, None, precision)
        self.last = Layer(Conv.of(cast(nn.Conv1d, final[1])), None, None, precision)

    def forward(self, flow: Flow) -> Tensor:
        """(N, T, C) → (N, T, input_dim)."""
        return self.last(self.block(flow), dtype=flow.work.dtype).parts[0]


class Whole:
    """Makes these layers out of a network's.

    Args:
        precision: "fp32", "tf32" or "bf16".
    """

    def __init__(self, precision: str) -> None:
        self.precision = "tf32" if precision == "tf32" else "ieee"
        self.launches = 0

    def enter(self, x: Tensor) -> Flow:
        """(N, T, C) → the layers' form of it."""
        card = card_of(x.device)
        counts = x.new_empty(1 + self.launches * card.multiprocessors, dtype=torch.int32)
        return Flow((x.contiguous(),), Work(counts, card, x.dtype))

    def join(self, flow: Flow, other: Flow) -> Flow:
        """The channels of both."""
        return Flow(flow.parts + other.parts, flow.work)

    def modulation(self, film: Tensor, sizes: list[int]) -> Sequence[Tensor]:
        """(N, F) → parts of these sizes, which scale and shift."""
        return film.split(sizes, dim=1)

    def residual(self, block: ConditionalResidualBlock1D, inputs: int = 1) -> nn.Module:
        self.launches += 2
        return _Residual(block, inputs, self.precision)

    def down(self, conv: nn.Conv1d) -> nn.Module:
        self.launches += 1
        return Layer(Conv.of(conv), None, None, self.precision)

    def up(self, conv: nn.ConvTranspose1d) -> nn.Module:
        self.launches += 1
        return Layer(Conv.up(conv), None, None, self.precision)

    def final(self, final: nn.Sequential) -> nn.Module:
        self.launches += 2
        return _Final(final, self.precision)
