"""Floating-point operations and weights of one network call, as PyTorch counts them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

CONDITIONING = ("cond_encoder", "diffusion_step_encoder")  # done once a chunk by a prepared network


@dataclass(frozen=True)
class NetworkSize:
    """The size of a network for one row. Multiplications and additions count separately, and only
    those of matrix products and convolutions count.

    Attributes:
        flops: operations of the layers that work on the chunk.
        conditioning_flops: operations of the other layers.
        weights, conditioning_weights: numbers in them.
    """

    flops: int
    conditioning_flops: int
    weights: int
    conditioning_weights: int


def network_size(network: nn.Module, x: Tensor, cond: Tensor | None) -> NetworkSize:
    """Count the operations of one call on x (1, *shape) and cond (1, …)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), cond)
    conditioning = sum(
        sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if name.rpartition(".")[2] in CONDITIONING
    )
    weights = {True: 0, False: 0}
    for name, parameter in network.named_parameters():
        weights[any(part in CONDITIONING for part in name.split("."))] += parameter.numel()
    flops = counter.get_total_flops() - conditioning
    return NetworkSize(flops, conditioning, weights[False], weights[True])
