"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Averages a network's weights with a decay that warms up: 1 − (1 + step)^−power.

    The warm-up is that of Chi et al. (2023; power 0.75) with a ceiling ``max_decay``.
    """

    def __init__(self, network: nn.Module, power: float = 0.75, max_decay: float = 0.9999) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.power, self.max_decay = power, max_decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Fold in ``network`` after optimizer step number ``step`` (from 1)."""
        decay = min(self.max_decay, 1 - (1 + step) ** -self.power)
        ours = list(self.network.parameters())
        torch._foreach_lerp_(ours, [p.detach() for p in network.parameters()], 1 - decay)
