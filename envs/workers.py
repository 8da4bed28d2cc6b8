"""What every worker process does first, and how one is started so that Ctrl-C never reaches it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from asd_policy.errors import AsdPolicyError
from asd_policy.interrupts import handled_after


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


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., None], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes, started as they are needed, killed when the block is left."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer, arguments)
    try:
        yield pool
    finally:
        with interrupts_held():
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


def worker_died() -> AsdPolicyError:
    """What to raise in place of BrokenProcessPool."""
    return AsdPolicyError(
        "a worker process died (was memory short? fewer --workers need less); what was finished is "
        "kept, and the same command goes on"
    )


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is left.

    A process that is started inside never gets Ctrl-C, from its first moment on: `follow_parent`
    comes only after seconds of imports, and a Ctrl-C within those would print a traceback. And
    where a process is started by a fork that runs Python's hooks (any with a `preexec_fn`), an
    exception of the signal's handler would be printed and lost: nothing would be stopped.

    Two things hold them back. The mask of this thread is what new processes inherit (SIGTERM is
    how they are ended, so it is not in it). Another thread (one that draws a progress bar, say)
    still takes the signal, and Python then runs the handler in the main thread, in the middle of
    the block: so the handlers only remember.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it lets signals through again when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with handled_after():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
