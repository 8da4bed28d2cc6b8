"""Layers in the forms that a CPU trains faster: a matter of time alone, not of what is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

# Weights of a convolution from which the product is the faster one, measured with batches of 64 and
# 128 on a Xeon with AMX: below, what it copies costs more.
_PRODUCT_FROM = 500_000


@contextmanager
def faster_on_cpu(device: torch.device) -> Iterator[None]:
    """While it lasts, networks compute in those forms, if they are on a CPU.

    - A transformer's attention as plain products: its fused kernel goes back through a chunk's few
      tokens so slowly that a step of Chi et al.'s transformer takes a third longer.
    - Large convolutions as one product with their input's windows: the library's goes back through
      a chunk's few actions at a small part of the processor's speed, most of all in bfloat16. A
      step of Chi et al.'s U-Net (64 M, batch 64) takes 0.4 of its time in bfloat16, 0.7 in float32.
    """
    if device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), _Convolutions():
        yield


class _Convolutions(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv1d and args[1].numel() >= _PRODUCT_FROM:
            return _convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    *_: Any,
) -> Tensor:
    """(N, in, T), (out, in, k), (out,) → (N, out, T'), without dilation or groups."""
    windows = F.pad(x, padding * 2).unfold(2, weight.shape[2], stride[0])  # (N, in, T', k)
    rows = windows.transpose(1, 2).flatten(2)
    # Contiguous: what follows (group norm, Mish) goes back slowly through another order.
    return F.linear(rows, weight.flatten(1), bias).transpose(1, 2).contiguous()
