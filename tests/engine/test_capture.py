"""Captures of several threads, with a stand-in for CUDA's."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from asd_policy.engine.cuda_graph import CudaRecorder
from asd_policy.errors import EngineError


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

    stand_ins = {"graph": Place, "CUDAGraph": MagicMock, "memory_reserved": lambda _: 0}
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


def test_a_capture_that_breaks_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA then refuses its end, too, and PyTorch stays on the stream and in the pool."""
    streams, pools, broken = ["the user's"], [], RuntimeError("operation not permitted")

    class On(contextlib.AbstractContextManager):  # type: ignore[type-arg]
        def __init__(self, stream: object) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            self.before, streams[0] = streams[0], self.stream

        def __exit__(self, *_: object) -> None:
            streams[0] = self.before

    class Graph(On):
        def __init__(self, graph: object, pool: object, stream: object, **_: object) -> None:
            super().__init__(stream)
            assert pool not in pools, "already recording to it"
            self.pool = pool

        def __exit__(self, kind: object, *_: object) -> None:
            if kind is not None:
                pools.append(self.pool)
                raise RuntimeError("failed due to a previous error during capture")
            super().__exit__()

    stand_ins = {"graph": Graph, "stream": On, "CUDAGraph": MagicMock}
    stand_ins |= {"memory_reserved": lambda _: 0, "graph_pool_handle": object}
    stand_ins["Stream"] = lambda _: MagicMock()
    for name, found in {**stand_ins, "current_stream": MagicMock()}.items():
        monkeypatch.setattr(torch.cuda, name, found)
    recorder, calls = CudaRecorder(torch.device("cuda")), [0]

    def work() -> None:
        calls[0] += 1
        if calls[0] == 4:  # after the three that warm up
            raise broken

    with pytest.raises(EngineError, match=r"capturing work .* failed: operation not permitted"):
        recorder.record(work, "work")
    assert streams == ["the user's"]
    recorder.record(work, "work")
    assert streams == ["the user's"]


def test_bytes_are_those_that_a_graph_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not of tensors that are left: a graph's own are gone once it is captured, and its pool
    stays."""
    held, capturing = [0], [False]

    @contextlib.contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        held[0], capturing[0] = 1000, True  # what warmed up is let go
        yield
        capturing[0] = False

    stand_ins = {"graph": graph, "memory_reserved": lambda _: held[0]}
    for name in ("CUDAGraph", "Stream", "stream", "current_stream", "graph_pool_handle"):
        stand_ins[name] = MagicMock()
    for name, found in {**stand_ins, "memory_allocated": lambda _: 7}.items():
        monkeypatch.setattr(torch.cuda, name, found)
    recorder = CudaRecorder(torch.device("cuda"))

    def work() -> None:
        held[0] += 500 if capturing[0] else 2000

    assert recorder.record(work, "work")[1] == 500
    assert recorder.record(lambda: None, "less work")[1] == 0


class Queue:
    """A stream of a device that takes its time: nothing is done before the host waits for it."""

    def __init__(self, device: object = None) -> None:
        self.waiting: list[Callable[[], bool]] = []
        queues.append(self)

    def launch(self, work: Callable[[], object]) -> None:
        self.waiting.append(lambda: work() is not False)

    def wait_event(self, event: Event) -> None:
        self.waiting.append(lambda: event.done)

    def wait_stream(self, other: Queue) -> None:
        self.wait_event(Event().record(other))

    def go_on(self) -> None:
        """As far as this one may."""
        while self.waiting and self.waiting[0]():
            self.waiting.pop(0)


queues: list[Queue] = []
now: list[Queue] = []


class Event:
    done = False

    def record(self, stream: Queue) -> Event:
        stream.launch(lambda: setattr(self, "done", True))
        return self

    def synchronize(self) -> None:
        while not self.done:
            for stream in queues:  # the work's own as far as it goes, and then what reads it
                stream.go_on()


@contextlib.contextmanager
def on(stream: Queue) -> Iterator[None]:
    now.append(stream)
    yield
    now.pop()


def test_what_is_read_later_is_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that comes late, behind those of others, had the counts of the next round."""
    copy, empty = Tensor.copy_, torch.empty
    queues.clear()
    now[:] = [Queue()]
    stand_ins = {"Stream": Queue, "Event": Event, "stream": on, "graph_pool_handle": object}
    for name, found in {**stand_ins, "current_stream": lambda _: now[-1]}.items():
        monkeypatch.setattr(torch.cuda, name, found)
    pinned: list[Tensor] = []
    monkeypatch.setattr(
        torch, "empty", lambda *a, pin_memory, **kw: pinned.append(empty(*a, **kw)) or pinned[-1]
    )
    monkeypatch.setattr(
        Tensor, "copy_", lambda to, t, non_blocking: now[-1].launch(lambda: copy(to, t))
    )
    recorder, counts = CudaRecorder(torch.device("cuda")), torch.zeros(3)
    with recorder.working():
        for done in (1, 2, 3):
            now[-1].launch(lambda: counts.add_(1))
            read = recorder.read_later(counts)
            now[-1].launch(lambda: counts.add_(1))
            (found,) = read()
            assert found.tolist() == [2 * done - 1] * 3
            assert found.data_ptr() != pinned[-1].data_ptr()
