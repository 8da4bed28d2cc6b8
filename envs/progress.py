"""What is being done, and how far it is: a live line with a clock on a terminal, plain lines
anywhere else.

The line redraws itself from a thread. What is shown here is done by other processes, or is no
measurement: nothing is distorted by that.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
)
from rich.text import Text

_PLAIN_LINE_S = 10.0


class Stage:
    """One thing that is being done. Use as a context; `update` as often as you like.

    Args:
        text: what it is.
        total: how many pieces it has, if that is known.
        done: pieces that were there before: they say nothing about speed.
        note: what else there is to say at the beginning.
        show: False shows nothing at all.
    """

    def __init__(
        self,
        text: str,
        total: int | None = None,
        done: int = 0,
        note: str = "",
        show: bool = True,
    ) -> None:
        self._console = Console()
        self._text, self._note = text, note
        self._total, self._first, self._done = total, done, done
        self._began = self._said = time.monotonic()
        self._last_said = done
        self._show = show
        live = show and self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = self._live_line() if live else None

    def __enter__(self) -> Stage:
        if self._bar is not None:
            self._bar.start()
        else:
            self._say_line()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._done != self._last_said:
            self._say_line()

    def update(self, done: int | None = None, note: str = "", text: str | None = None) -> None:
        """Tell how many pieces are done, with a note; or that something else is done now."""
        changed = text is not None and text != self._text
        self._done = self._done if done is None else done
        self._text, self._note = self._text if text is None else text, note
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._done, description=self._text, note=note)
        elif changed or time.monotonic() - self._said >= _PLAIN_LINE_S:
            self._say_line()

    def say(self, message: str) -> None:
        """Print a line, above the live one."""
        if self._show:
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def times(self) -> str:
        """For example "0:31 gone, 8:12 left"."""
        gone = time.monotonic() - self._began
        made = self._done - self._first
        if self._total is None or made <= 0:
            return f"{_clock(gone)} gone"
        left = gone / made * (self._total - self._done)
        return f"{_clock(gone)} gone, {_clock(left)} left"

    def _say_line(self) -> None:
        self._said, self._last_said = time.monotonic(), self._done
        count = [] if self._total is None else [f"{self._done}/{self._total}"]
        words = [" ".join([self._text, *count]), *([self._note] if self._note else [])]
        fresh = self._total is None or self._done == self._first
        self.say(", ".join(words if fresh else [*words, self.times()]) + (" ..." if fresh else ""))

    def _live_line(self) -> Progress:
        width: list[ProgressColumn] = [SpinnerColumn()]
        if self._total is not None:
            width = [BarColumn(bar_width=16), MofNCompleteColumn()]
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            *width,
            TextColumn("{task.fields[note]}", markup=False),
            _Times(self),
            console=self._console,
            transient=self._total is None,
        )
        bar.add_task(self._text, total=self._total, completed=self._done, note=self._note)
        return bar


class _Times(ProgressColumn):
    """The clock of a stage, as it is when the line is drawn."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def render(self, task: Task) -> Text:
        return Text(self._stage.times(), style="dim")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
