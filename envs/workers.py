"""What every worker process does first, and how one is started so that Ctrl-C never reaches it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


def follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however that comes about. To be called
    once, in a process that `multiprocessing` started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent cannot close its workers, and they would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block is left.

    A process that is started inside never gets one, from its first moment on: `follow_parent` comes
    only after seconds of imports, and a Ctrl-C within those would print a traceback.

    Two things hold it back. The mask of this thread is what new processes inherit. Another thread
    (one that draws a progress bar, say) still takes the signal, and Python then runs the handler in
    the main thread, in the middle of the block: so the handler only remembers it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it lets signals through again when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _handler_that_remembers():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handler_that_remembers() -> Iterator[None]:
    """What came inside is handled when the block is left, by the handler from before."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # ignored, the system's own, or not ours to change
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)  # still masked: it comes when the mask is lifted
