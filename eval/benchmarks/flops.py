"""Floating-point operations and bytes of weights of one network call, from module shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONDITIONING = ("cond_encoder", "diffusion_step_encoder")  # done once a chunk by a prepared network


@dataclass(frozen=True)
class NetworkSize:
    """Of one row, multiplications and additions counted separately, matrix products only.

    Attributes:
        flops: of the layers that work on the chunk. conditioning_flops: of the others.
        weights, conditioning_weights: numbers in them.
    """

    flops: int
    conditioning_flops: int
    weights: int
    conditioning_weights: int


def network_size(network: nn.Module, x: Tensor, cond: Tensor | None) -> NetworkSize:
    """Count one call on x (1, *shape) and cond (1, …) by the shapes that layers meet."""
    counts = {True: 0, False: 0}
    weights = {True: 0, False: 0}
    handles = []
    for name, module in network.named_modules():
        conditioning = any(part in name for part in CONDITIONING)
        weights[conditioning] += sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):

            def count(
                layer: nn.Module, inputs: tuple[Tensor], output: Tensor, key: bool = conditioning
            ) -> None:
                counts[key] += layer_flops(layer, inputs[0], output)

            handles.append(module.register_forward_hook(count))
    try:
        with torch.inference_mode():
            network(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), cond)
    finally:
        for handle in handles:
            handle.remove()
    return NetworkSize(counts[False], counts[True], weights[False], weights[True])


def layer_flops(layer: nn.Module, given: Tensor, output: Tensor) -> int:
    """2·(multiply-adds) of a linear layer or a one-dimensional convolution, without its bias."""
    if isinstance(layer, nn.Linear):
        return 2 * given.numel() // layer.in_features * layer.in_features * layer.out_features
    assert isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d))
    # Each position of a convolution's output, or of a transposed one's input, meets every tap.
    places = (given if isinstance(layer, nn.ConvTranspose1d) else output)[:, 0].numel()
    pairs = layer.in_channels * layer.out_channels // layer.groups
    return 2 * places * pairs * layer.kernel_size[0]
