"""Whether a U-Net is made of the layers that its forms for sampling are made for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from asd_policy.errors import InputError
from asd_policy.networks.unet1d import (
    ConditionalResidualBlock1D,
    ConditionalUnet1D,
    Conv1dBlock,
    Downsample1d,
    Upsample1d,
)
from asd_policy.networks.weights import hooks_of

_OWN = (ConditionalUnet1D, ConditionalResidualBlock1D, Conv1dBlock, Downsample1d, Upsample1d)
_LAYERS = (
    nn.Conv1d, nn.ConvTranspose1d, nn.GroupNorm, nn.Mish, nn.Linear, nn.Identity, nn.Sequential,
    nn.ModuleList,
)  # fmt: skip


def check_layers(network: ConditionalUnet1D) -> None:
    """Raise a ValueError, which names the layer, unless all are those that the class makes.

    Others (an activation that was exchanged, a subclass with a forward pass of its own, hooks,
    weights that are computed from others) would be left out without a word.
    """
    for name, found, expected in _differences(network):
        of = f"{name!r}" if name else "network"
        raise InputError(f"the U-Net's {of} is {found}; expected {expected}")


def is_plain(module: nn.Module, own: type[nn.Module]) -> bool:
    """Whether a module computes what its class does, and nothing is hooked in."""
    return type(module).forward is own.forward and not hooks_of(module)


def _differences(network: ConditionalUnet1D) -> Iterator[tuple[str, str, str]]:
    for name, module in network.named_modules():
        if name.startswith("diffusion_step_encoder"):
            continue  # called as it is
        own = next((kind for kind in _OWN if isinstance(module, kind)), None)
        if own is None and type(module) not in _LAYERS:
            yield name, _named(module), "one of the layers that ConditionalUnet1D makes"
        elif not isinstance(module, nn.ModuleList) and not is_plain(module, own or type(module)):
            yield name, f"{_named(module)} with a hook or a forward pass of its own", "none"
    kernel = first_kernel(network)
    for name, module in network.named_modules():
        wanted = _wanted(module, kernel)
        if wanted is not None and _found(module) != wanted:
            yield name, str(_found(module)), str(wanted)


def _named(module: nn.Module) -> str:
    return f"a {type(module).__name__}"


def first_kernel(network: ConditionalUnet1D) -> int:
    block = cast(nn.Sequential, cast(nn.Module, network.final_conv[0]).block)
    return int(cast(nn.Conv1d, block[0]).kernel_size[0])


def _wanted(module: nn.Module, kernel: int) -> tuple[Any, ...] | None:
    """What :func:`_found` says of a module as it is made; None where nothing is asked of it."""
    if isinstance(module, Conv1dBlock):
        return (_conv(nn.Conv1d, kernel, 1, kernel // 2), "GroupNorm, affine", "Mish")
    if isinstance(module, Downsample1d):
        return (_conv(nn.Conv1d, 3, 2, 1),)
    if isinstance(module, Upsample1d):
        return (_conv(nn.ConvTranspose1d, 4, 2, 1),)
    if isinstance(module, ConditionalResidualBlock1D):
        return ("Mish", "Linear", _conv(nn.Conv1d, 1, 1, 0))
    if isinstance(module, ConditionalUnet1D):
        return ("Conv1dBlock", _conv(nn.Conv1d, 1, 1, 0))
    return None


def _found(module: Any) -> tuple[Any, ...]:
    if isinstance(module, Conv1dBlock):
        parts: list[Any] = list(cast(nn.Sequential, module.block))
    elif isinstance(module, (Downsample1d, Upsample1d)):
        parts = [module.conv]
    elif isinstance(module, ConditionalResidualBlock1D):
        parts = [*module.cond_encoder, module.residual_conv]
    else:
        parts = list(module.final_conv)
    return tuple(_kind(part) for part in parts)


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
        sizes = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        plain = (
            layer.dilation, layer.groups, layer.padding_mode, layer.output_padding
        ) == ((1,), 1, "zeros", (0,))  # fmt: skip
        made = _conv(type(layer), *sizes)
        return made if plain and layer.bias is not None else f"{made} of another kind: {layer}"
    if isinstance(layer, nn.Identity):  # where a block's ends have as many channels
        return _conv(nn.Conv1d, 1, 1, 0)
    if isinstance(layer, nn.GroupNorm) and layer.affine:
        return "GroupNorm, affine"
    return type(layer).__name__


def _conv(kind: type[nn.Module], kernel: int, stride: int, padding: Any) -> str:
    return f"{kind.__name__}({kernel} points, stride {stride}, padding {padding})"
