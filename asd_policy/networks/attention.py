"""PyTorch's transformers, called so that the host waits for nothing.

``nn.TransformerEncoder`` and ``nn.TransformerDecoder`` compare a mask with the causal one at each
call, to choose a faster attention, and the host reads the answer. A GPU stalls there, and a CUDA
graph cannot hold it. The hint that they look for is an argument, and False is right of every mask.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class _Encoder(nn.TransformerEncoder):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **_told("is_causal", kwargs))


class _Decoder(nn.TransformerDecoder):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **_told("tgt_is_causal", kwargs))


_TOLD: dict[type[nn.Module], type[nn.Module]] = {
    nn.TransformerEncoder: _Encoder, nn.TransformerDecoder: _Decoder,
}  # fmt: skip


def _told(hint: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs if kwargs.get(hint) is not None else {**kwargs, hint: False}


def stacks_in(network: nn.Module) -> list[str]:
    """Names of the transformers in a network that would look at their mask."""
    return [name for name, module in network.named_modules() if type(module) in _TOLD]


def unasking(network: nn.Module, stacks: list[str]) -> nn.Module:
    """The same network, of the same tensors, whose ``stacks`` do not look at their mask.

    A view of the present state, to be called and dropped: of what lies on the way to the stacks it
    has copies, without their weights, and the network stays as it is.
    """
    view = network
    for name in stacks:
        view = _view(view, name.split(".") if name else [])
    return view


def _view(module: nn.Module, path: list[str]) -> nn.Module:
    """``module``, with what lies at ``path`` told."""
    view = copy.copy(module)
    if not path:
        view.__class__ = _TOLD.get(type(module), type(module))
        return view
    view._modules = dict(module._modules)
    child = module._modules.get(path[0])
    if child is not None:
        view._modules[path[0]] = _view(child, path[1:])
    return view
