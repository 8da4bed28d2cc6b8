"""What a command is doing before its first figure: loading, timing, building, with a live clock.

Rich is imported where something is shown: the benchmark also runs where nothing can be installed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_REDRAW_S = 0.25
_PLAIN_LINE_S = 10.0


class Stages:
    """Tells nobody."""

    @contextlib.contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Entered while `text` is done, such as "Loading the policy"."""
        yield

    @contextlib.contextmanager
    def turns(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """Entered while something is measured; yields what is to be called after each turn."""
        yield lambda: None


UNSEEN = Stages()


class TerminalStages(Stages):
    """One line for each stage, whose clock runs until it is done. While something is measured it
    is redrawn between the turns alone: a thread that redraws would take its processor."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def stage(self, text: str) -> Iterator[None]:
        from rich.progress import Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description} …", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=self._console, refresh_per_second=4) as progress:
            progress.add_task(text, total=1)
            yield

    @contextlib.contextmanager
    def turns(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, auto_refresh=False) as progress:
            task = progress.add_task(text, total=total)
            progress.refresh()
            shown = time.perf_counter()

            def turn() -> None:
                nonlocal shown
                progress.advance(task)
                if time.perf_counter() - shown > _REDRAW_S:
                    progress.refresh()
                    shown = time.perf_counter()

            yield turn
            progress.refresh()


class PlainStages(Stages):
    """Where the output is no terminal: a line when a stage begins, and what it took where that
    was seconds; of turns, a line now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    @contextlib.contextmanager
    def stage(self, text: str) -> Iterator[None]:
        self._say(f"{text} …")
        start = time.perf_counter()
        yield
        if (took := time.perf_counter() - start) >= 1:
            self._say(f"  {took:.0f} s")

    @contextlib.contextmanager
    def turns(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        done, said = 0, time.perf_counter()

        def turn() -> None:
            nonlocal done, said
            done += 1
            if time.perf_counter() - said > _PLAIN_LINE_S:
                self._say(f"  {text} {done}/{total}")
                said = time.perf_counter()

        yield turn


def stages_on(console: Console) -> Stages:
    """Stages told on a console."""
    if console.is_terminal:
        return TerminalStages(console)
    return PlainStages(
        lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
    )
