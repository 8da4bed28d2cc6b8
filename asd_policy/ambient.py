"""What others have set in PyTorch around a call: precision, gradients, default device and dtype.

The samplers' own arithmetic and prepared networks are computed in the precision that was asked of
them, whatever surrounds the call. A plain network that a user hands in was written by its owner for
the owner's settings: they are given back to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch


def _casts(kind: str) -> bool:
    """Whether this PyTorch has autocast for a type of device."""
    try:
        torch.is_autocast_enabled(kind)
    except RuntimeError:  # "mps" before 2.5
        return False
    return True


_DEVICE_TYPES = tuple(kind for kind in ("cpu", "cuda", "mps", "xpu") if _casts(kind))
EXACT = "highest"  # of torch.set_float32_matmul_precision: as PyTorch comes

Autocast = tuple[tuple[str, torch.dtype], ...]


@dataclass(frozen=True)
class Precision:
    """What float32 operations are cut down to: by autocast, and in matrix products."""

    autocast: Autocast = ()
    products: str = EXACT


class _Thread(threading.local):
    left = Precision()


_thread = _Thread()


def _surrounding() -> Precision:
    found = tuple(
        (kind, torch.get_autocast_dtype(kind))
        for kind in _DEVICE_TYPES
        if torch.is_autocast_enabled(kind)
    )
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for one backend by name, with which this cannot be mixed
        products = EXACT
    return Precision(found, products)


@contextmanager
def own_precision(networks_too: bool = False) -> Iterator[None]:
    """Neither autocast nor shortened float32 products in here.

    Args:
        networks_too: nor in :func:`as_asked`, within: also a plain network is one of ours.
    """
    found, before = _surrounding(), _thread.left
    if found == Precision() and not (networks_too and before != Precision()):
        yield  # nearly always: there is nothing to leave
        return
    _thread.left = Precision() if networks_too else found
    try:
        with ExitStack() as stack:
            for kind, dtype in found.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled=False))
            stack.enter_context(_products(EXACT, found.products))
            yield
    finally:
        _thread.left = before


@contextmanager
def as_asked() -> Iterator[None]:
    """What :func:`own_precision` has left, for a network whose owner asked for it."""
    asked = _thread.left
    if asked == Precision():
        yield
        return
    _thread.left = Precision()
    try:
        with ExitStack() as stack:
            for kind, dtype in asked.autocast:
                keeps = torch.is_autocast_cache_enabled()
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=keeps))
            stack.enter_context(_products(asked.products, EXACT))
            yield
    finally:
        _thread.left = asked


@contextmanager
def _products(precision: str, before: str) -> Iterator[None]:
    if precision == before:
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def asked_for() -> Precision:
    """What :func:`as_asked` would give back."""
    return _thread.left


@contextmanager
def untouched(gradients: bool = True) -> Iterator[None]:
    """PyTorch as it is where nobody has set anything, for what is made to stay: networks, tables.

    Full precision, no inference mode (its tensors can never be trained), float32 and the CPU where
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
