"""Policies on one machine, robots on another: a server, its client, and a controller.

The protocol is openpi's: a WebSocket, msgpack with NumPy arrays, metadata on connect. Needs the
extra ``serve``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asd_policy.serving.client import Client
    from asd_policy.serving.remote import RemotePolicy
    from asd_policy.serving.server import Limits, Server

__all__ = ["Client", "Limits", "RemotePolicy", "Server"]

_MODULE_OF = {"Client": "client", "RemotePolicy": "remote", "Limits": "server", "Server": "server"}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"asd_policy.serving.{_MODULE_OF[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value
