"""Ctrl-C and SIGTERM, where they may not come in the middle."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def handled_after() -> Iterator[None]:
    """What came inside is handled when the block is left, by the handlers from before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # not ours to change
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[int] = []
    for number in ours:
        signal.signal(number, lambda which, frame: came.append(which))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for which in sorted(set(came)):
            signal.raise_signal(which)  # one that is masked comes when the mask is lifted


@contextmanager
def unwrapped() -> Iterator[None]:
    """What came in the middle of compiled code, which wraps it (numba, in a SystemError: "returned
    a result with an exception set"), leaves as it came."""
    try:
        yield
    except SystemError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None
