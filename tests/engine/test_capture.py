"""Captures of several threads, with a stand-in for CUDA's."""

from __future__ import annotations

import contextlib
import threading
import time
from unittest.mock import MagicMock

import pytest
import torch

from asd_policy.engine.cuda_graph import CudaRecorder


def test_threads_capture_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA allows one capture in a process, and no wait for a device on which there is one."""
    inside, most = [0], [0]

    class Place(contextlib.AbstractContextManager):  # type: ignore[type-arg]
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)

        def __exit__(self, *_: object) -> None:
            inside[0] -= 1

    stand_ins = {"graph": Place, "CUDAGraph": MagicMock, "memory_allocated": lambda _: 0}
    for name in ("Stream", "stream", "current_stream", "graph_pool_handle"):
        stand_ins[name] = MagicMock()
    for name, found in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, found)
    recorders = [CudaRecorder(torch.device("cuda")) for _ in range(3)]
    threads = [threading.Thread(target=r.record, args=(lambda: None, "work")) for r in recorders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
