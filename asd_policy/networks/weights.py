"""Whether a network's weights are still those that were copied from it."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def hooks_of(module: nn.Module) -> tuple[int, ...]:
    """What is hooked into a module's forward pass, or put in its place."""
    patched = vars(module).get("forward")
    return (*module._forward_pre_hooks, *module._forward_hooks, *([id(patched)] * bool(patched)))


class Watch:
    """Notices that a module's parameters or buffers have changed since this was made, or that a
    hook was put into a layer's forward pass, which a copy would not run.

    A tensor has changed where it is another object, lies elsewhere (``param.data = new``), counts
    more changes in place, or where one number that is sampled of it differs. Counts alone do not
    do: neither ``param.data.copy_(…)`` nor a fused optimizer raises them, and inference tensors
    have none. Part of a tensor that is changed through ``.data`` or as a NumPy array is not seen
    unless that number is in it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = modules = list(module.modules())
        self._hooks = [h for m in modules for h in (m._forward_pre_hooks, m._forward_hooks)]
        slots = [slot for m in modules for slot in (m._parameters, m._buffers)]
        self._slots = [(s, key) for s in slots for key, value in s.items() if value is not None]
        self._parts = [m._modules for m in modules if m._modules]
        tensors = self._tensors()
        self._counts = [not tensor.is_inference() for tensor in tensors]
        sampled = defaultdict(list)
        for tensor in tensors:
            if tensor.numel():
                middle = tensor.detach()[tuple(size // 2 for size in tensor.shape)]
                sampled[tensor.dtype, tensor.device].append(middle)
        self._sampled = list(sampled.values())
        self._places, self._marks, self._values = self._places_now(), self._marks_now(), self._now()

    def changed(self) -> bool:
        """Whether any has; one read of the device where they lie."""
        if self.moved() or self._marks_now() != self._marks:
            return True
        pairs = zip(self._now(), self._values, strict=True)
        return not all(torch.equal(value, known) for value, known in pairs)

    def moved(self) -> bool:
        """Whether any lies elsewhere than it did; nothing is read."""
        return self._places_now() != self._places

    def _tensors(self) -> list[Tensor]:
        present = (slot.get(key) for slot, key in self._slots)
        return [tensor for tensor in present if tensor is not None]

    def _places_now(self) -> list[int]:
        parts = [id(part) for parts in self._parts for part in parts.values()]
        parts += [hook for hooks in self._hooks for hook in hooks]
        parts += [id(m.__dict__["forward"]) for m in self._modules if "forward" in m.__dict__]
        return parts + [number for t in self._tensors() for number in (id(t), t.data_ptr())]

    def _marks_now(self) -> list[int]:
        return [
            t._version for t, counts in zip(self._tensors(), self._counts, strict=True) if counts
        ]

    def _now(self) -> list[Tensor]:
        return [torch.stack(values) for values in self._sampled]
