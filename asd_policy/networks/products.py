"""The layers of ConditionalUnet1D as matrix products, for the CPU and for torch.compile.

The library's convolution lays its weights out anew in every call (on a GPU, its activations), which
for the few rows of a chunk costs more than the convolution. Here a convolution is one product of
the input's windows with a matrix laid out once. Activations have the channels last, (N, T, C),
because a window is then contiguous in memory; between the layers they carry ``edge`` zeros on
either side of the time axis, (N, edge + T + edge, C), because a layer then writes its result where
the next one reads it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.networks.unet1d import ConditionalResidualBlock1D

# Measured with 1 to 128 rows: up to here a matrix that is contiguous along its outputs is the
# faster operand, beyond it one that is contiguous along its inputs.
_OUTPUTS_CONTIGUOUS_UP_TO = 2_000_000
# Measured: from here on, and in bfloat16 at any size, oneDNN's product with a matrix laid out for
# it is the faster one: 2.4 times with the few rows of one chunk, 1.3 times with many.
_PACKED_FROM = 250_000
_PACKED_FOR = 16  # rows to lay it out for; any number is multiplied
# Measured: below, one slow pass of Mish costs less than four fast ones.
_MISH_IN_PARTS_FROM = 3072


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether those products, which are not part of PyTorch's public interface, are there; in
    bfloat16 oneDNN refuses them on a processor without AVX-512."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    wanted = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(
        hasattr(torch.ops.mkldnn, name) for name in wanted
    ):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mish(x: Tensor) -> Tensor:
    """x·tanh(softplus(x)), in place.

    Equal to x - x / (1 + e + e²/2) with e = exp(x), which holds at e = ∞ too and takes one
    transcendental function instead of three.
    """
    if torch.compiler.is_compiling() or x.numel() < _MISH_IN_PARTS_FROM:
        return F.mish(x, inplace=True)
    e = x.exp()
    return x.addcdiv_(x, torch.addcmul(e, e, e, value=0.5).add_(1), value=-1)


# The two below take tensors that were made here: contiguous, from the start of their storage.


def _windows(x: Tensor, start: int, width: int, stride: int) -> Tensor:
    """(N, L, C) → (N·windows, width·C): ``start`` points are left out at either end."""
    batch, length, channels = x.shape
    count = (length - 2 * start - width) // stride + 1
    sizes, strides = (batch, count, width * channels), (length * channels, stride * channels, 1)
    windows = x.as_strided(sizes, strides, start * channels)
    return windows.reshape(batch * count, width * channels)


def _picture(x: Tensor, edge: int = 0) -> Tensor:
    """(N, edge + T + edge, C) → (N, C, 1, T), a view: what group norm takes with channels last."""
    batch, length, channels = x.shape
    sizes = (batch, channels, 1, length - 2 * edge)
    strides = (length * channels, 1, length * channels, channels)
    return x.as_strided(sizes, strides, edge * channels)


def _write(operation: Callable[..., Tensor], arguments: tuple[Tensor, ...], out: Tensor) -> None:
    """The result into a strided view. torch.compile takes no such ``out=``, and fuses a copy."""
    if torch.compiler.is_compiling():
        out.copy_(operation(*arguments))
    else:
        operation(*arguments, out=out)


class Product(nn.Module):
    """Rows (M, in) → (M, out), from a convolution weight (out, in, k) and windows of k points."""

    weight: Tensor
    bias: Tensor
    _packed: Tensor | None = None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        assert bias is not None
        matrix = weight.detach().transpose(1, 2).flatten(1)  # (out, k·in)
        if matrix.numel() <= _OUTPUTS_CONTIGUOUS_UP_TO:
            matrix = matrix.t().clone(memory_format=torch.contiguous_format)
        else:
            matrix = matrix.clone(memory_format=torch.contiguous_format).t()
        self.register_buffer("weight", matrix)
        self.register_buffer("bias", bias.detach().clone())

    @torch.no_grad()
    def pack(self) -> None:
        """Lay the matrix out as oneDNN reads it, once, where that pays; for good."""
        if self._packed is not None:
            return
        matrix = self.weight
        smallest = {torch.float32: _PACKED_FROM, torch.bfloat16: 0}.get(matrix.dtype)
        if (
            smallest is not None
            and matrix.numel() >= smallest
            and _packs(matrix.device, matrix.dtype)
        ):
            rows = matrix.t().contiguous()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(rows, _PACKED_FOR)
            self.weight = matrix.new_empty(0)

    def take(self, other: nn.Module) -> None:
        """The layout of other weights, of the same sizes."""
        assert isinstance(other, Product)
        if other._packed is not None:  # a compiled call looks at whether the attribute is there
            self._packed = other._packed

    def __getstate__(self) -> dict[str, Any]:
        """oneDNN's layout can neither be copied nor pickled: a copy lays the matrix out itself."""
        state: dict[str, Any] = super().__getstate__()
        if self._packed is None:
            return state
        matrix = self._packed.to_dense().t()
        return state | {"_packed": True, "_buffers": self._buffers | {"weight": matrix}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("_packed", None)
        super().__setstate__(state)
        if packed:
            self.pack()

    def forward(self, rows: Tensor) -> Tensor:
        if self._packed is None:
            return torch.addmm(self.bias, rows, self.weight)
        product = torch.ops.mkldnn._linear_pointwise
        return cast(Tensor, product(rows, self._packed, self.bias, "none", [], ""))


class _Block(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, block: nn.Sequential, edge: int) -> None:
        super().__init__()
        conv, norm = cast(nn.Conv1d, block[0]), cast(nn.GroupNorm, block[1])
        self.kernel = conv.kernel_size[0]
        self.start = edge - self.kernel // 2
        self.product = Product(conv.weight, conv.bias)
        self.norm = deepcopy(norm)

    def windows(self, x: Tensor) -> Tensor:
        return _windows(x, self.start, self.kernel, 1)

    def forward(self, windows: Tensor, batch: int) -> Tensor:
        """(N·T, k·in) → (N, out, 1, T), channels last, in float32 at least."""
        norm = self.norm
        h = _picture(self.product(windows).view(batch, -1, norm.num_channels))
        h = torch.group_norm(h, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return mish(h.float() if h.dtype == torch.bfloat16 else h)


class _Residual(nn.Module):
    def __init__(self, block: ConditionalResidualBlock1D, edge: int) -> None:
        super().__init__()
        self.edge = edge
        self.first, self.second = (_Block(cast(nn.Sequential, b.block), edge) for b in block.blocks)
        conv = block.residual_conv
        self.residual = Product(conv.weight, conv.bias) if isinstance(conv, nn.Conv1d) else None

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """(N, edge + T + edge, in), (N, out, 1, 1) twice → (N, edge + T + edge, out)."""
        batch, length, channels = x.shape
        windows = self.first.windows(x)
        h = self.first(windows, batch)
        modulated, out = (x.new_zeros(batch, length, h.shape[1]) for _ in range(2))
        _write(torch.addcmul, (shift, h, scale), _picture(modulated, self.edge))
        h = self.second(self.second.windows(modulated), batch)
        if self.residual is None:
            skipped = _picture(x, self.edge)
        else:
            # The middle of a window is the point itself: an operand that needs no copy.
            middle = windows.narrow(1, self.first.kernel // 2 * channels, channels)
            skipped = _picture(self.residual(middle).view(batch, -1, h.shape[1]))
        _write(torch.add, (h, skipped), _picture(out, self.edge))
        return out


class _Down(nn.Module):
    """Conv1d with kernel 3, stride 2 and padding 1."""

    def __init__(self, conv: nn.Conv1d, edge: int) -> None:
        super().__init__()
        self.edge, self.product = edge, Product(conv.weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(_windows(x, self.edge - 1, 3, 2)).view(x.shape[0], -1, x.shape[2])
        return F.pad(y, (0, 0, self.edge, self.edge))


class _Up(nn.Module):
    """ConvTranspose1d with kernel 4, stride 2 and padding 1: window j gives outputs 2j-1 and 2j.

    With taps W_0 … W_3 and x_{-1} = x_T = 0: y_{2j-1} = W_2 x_{j-1} + W_0 x_j and
    y_{2j} = W_3 x_{j-1} + W_1 x_j for j = 0 … T. The first and the last of these y lie outside.
    """

    def __init__(self, conv: nn.ConvTranspose1d, edge: int) -> None:
        super().__init__()
        assert conv.bias is not None
        taps = conv.weight.transpose(0, 1)  # (out, in, 4)
        weight = torch.cat([taps[:, :, [2, 0]], taps[:, :, [3, 1]]])
        self.edge, self.product = edge, Product(weight, conv.bias.repeat(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(_windows(x, self.edge - 1, 2, 1)).view(x.shape[0], -1, x.shape[2])
        return F.pad(y.narrow(1, 1, y.shape[1] - 2), (0, 0, self.edge, self.edge))


class _Final(nn.Module):
    def __init__(self, final: nn.Sequential, edge: int) -> None:
        super().__init__()
        conv = cast(nn.Conv1d, final[1])
        self.block = _Block(cast(nn.Sequential, cast(nn.Module, final[0]).block), edge)
        self.product = Product(conv.weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, edge + T + edge, C) → (N, T, input_dim)."""
        h = self.block(self.block.windows(x), x.shape[0])
        rows = h.permute(0, 2, 3, 1).reshape(-1, h.shape[1]).to(x.dtype)
        return self.product(rows).view(x.shape[0], h.shape[3], -1)


def pack(module: nn.Module) -> None:
    """Lay out the matrices of all layers in it for good; it must not be compiled or moved after."""
    for layer in module.modules():
        if isinstance(layer, Product):
            layer.pack()


class Products:
    """Makes these layers out of a network's."""

    def __init__(self, kernel_size: int) -> None:
        self.edge = max(kernel_size // 2, 1)  # down- and upsampling need 1

    def enter(self, x: Tensor) -> Tensor:
        """(N, T, C) → the layers' form of it."""
        return F.pad(x, (0, 0, self.edge, self.edge))

    def modulation(self, film: Tensor, sizes: list[int]) -> Sequence[Tensor]:
        """(N, F) → parts of these sizes, which scale and shift."""
        return film.view(*film.shape, 1, 1).split(sizes, dim=1)

    def join(self, h: Tensor, skipped: Tensor) -> Tensor:
        """Side by side along the channels."""
        return torch.cat([h, skipped], dim=2)

    def residual(self, block: ConditionalResidualBlock1D, inputs: int = 1) -> nn.Module:
        return _Residual(block, self.edge)

    def down(self, conv: nn.Conv1d) -> nn.Module:
        return _Down(conv, self.edge)

    def up(self, conv: nn.ConvTranspose1d) -> nn.Module:
        return _Up(conv, self.edge)

    def final(self, final: nn.Sequential) -> nn.Module:
        return _Final(final, self.edge)
