"""What others have set in PyTorch around a call: autocast, gradients, the default device and dtype.

The samplers' own arithmetic and prepared networks are computed in the precision that was asked of
them, whatever surrounds the call. A plain network that a user hands in was written by its owner for
the owner's settings: autocast is given back to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")

Autocast = tuple[tuple[str, torch.dtype], ...]


class _Thread(threading.local):
    left: Autocast = ()


_thread = _Thread()


def _enabled() -> Autocast:
    return tuple(
        (kind, torch.get_autocast_dtype(kind))
        for kind in _DEVICE_TYPES
        if torch.is_autocast_enabled(kind)
    )


@contextmanager
def own_precision(networks_too: bool = False) -> Iterator[None]:
    """No autocast in here.

    Args:
        networks_too: nor in :func:`as_asked`, within: also a plain network is one of ours.
    """
    found = _enabled()
    if not found and not (networks_too and _thread.left):  # nearly always: nothing to leave
        yield
        return
    before = _thread.left
    _thread.left = () if networks_too else found
    try:
        with ExitStack() as stack:
            for kind, dtype in found:
                stack.enter_context(torch.autocast(kind, dtype, enabled=False))
            yield
    finally:
        _thread.left = before


@contextmanager
def as_asked() -> Iterator[None]:
    """The autocast that :func:`own_precision` has left, for a network whose owner asked for it."""
    asked = _thread.left
    if not asked:
        yield
        return
    _thread.left = ()
    try:
        with ExitStack() as stack:
            for kind, dtype in asked:
                keeps = torch.is_autocast_cache_enabled()
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=keeps))
            yield
    finally:
        _thread.left = asked


def asked_for() -> Autocast:
    """Device types and dtypes of the autocast that :func:`as_asked` would give back."""
    return _thread.left


@contextmanager
def untouched(gradients: bool = True) -> Iterator[None]:
    """PyTorch as it is where nobody has set anything, for what is made to stay: networks, tables.

    No autocast, no inference mode (its tensors can never be trained), float32 and the CPU where
    nothing else is said. ``gradients``: whether they are recorded.
    """
    dtype = torch.get_default_dtype()
    others = dtype != torch.float32
    with (
        own_precision(networks_too=True),
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        torch.device("cpu"),
    ):
        if others:  # which is for all threads, so that it is left alone where it is right
            torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            if others:
                torch.set_default_dtype(dtype)
