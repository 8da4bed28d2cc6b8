"""What a network is made of, by the names of one that is not wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from asd_policy.networks.transformer import TransformerForDiffusion


def bare_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what ``DataParallel`` and ``torch.compile`` put before names."""
    bare = {name.replace("_orig_mod.", ""): value for name, value in values.items()}
    while bare and all(name.startswith("module.") for name in bare):
        bare = {name.removeprefix("module."): value for name, value in bare.items()}
    return bare


def untold_by_weights(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """What two networks of equal weights may differ in, by name: numbers of groups and of heads,
    and shapes of masks."""
    found: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.GroupNorm):
            found[f"{prefix}num_groups"] = (module.num_groups,)
        elif isinstance(module, nn.MultiheadAttention):
            found[f"{prefix}num_heads"] = (module.num_heads,)
        elif isinstance(module, TransformerForDiffusion):
            found[f"{prefix}mask"] = () if module.mask is None else tuple(module.mask.shape)
    return bare_names(found)
