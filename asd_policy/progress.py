"""What is being done, and how far it is: a live line with a clock on a terminal, plain lines
anywhere else, and where rich is not installed.

It is said on stderr: stdout is for results.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_PLAIN_LINE_S = 10.0
_REDRAW_S = 0.25


class Stage:
    """One thing that is being done. Use as a context; `update` as often as you like.

    Args:
        text: what it is.
        total: how many pieces it has, if that is known.
        done: pieces that were there before: they say nothing about speed.
        note: what else there is to say at the beginning.
        show: False shows nothing at all.
        measuring: the line is redrawn by `update` alone. Otherwise a thread redraws it, which
            would take the processor from what is being measured.
    """

    def __init__(
        self,
        text: str,
        total: int | None = None,
        done: int = 0,
        note: str = "",
        show: bool = True,
        measuring: bool = False,
    ) -> None:
        self._text, self._note = text, note
        self._total, self._first, self._done = total, done, done
        self._began = self._said = self._drawn = time.monotonic()
        self._show, self._measuring = show, measuring
        self._bar = self._live_line() if show else None
        self._last_said = done

    def __enter__(self) -> Stage:
        if self._bar is not None:
            self._bar.start()
            self._bar.refresh()
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
            self._bar.refresh()
            self._bar.stop()
        elif kind is None and self._done != self._last_said:
            self._say_line()

    def update(self, done: int | None = None, note: str = "", text: str | None = None) -> None:
        """Tell how many pieces are done, with a note; or that something else is done now."""
        changed = text is not None and text != self._text
        self._done = self._done if done is None else done
        self._text, self._note = self._text if text is None else text, note
        now = time.monotonic()
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._done, description=self._text, note=note)
            if self._measuring and now - self._drawn >= _REDRAW_S:
                self._drawn = now
                self._bar.refresh()
        elif changed or now - self._said >= _PLAIN_LINE_S:
            self._say_line()

    def say(self, message: str) -> None:
        """Print a line, above the live one."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.console.print(message, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)

    @property
    def live(self) -> bool:
        """Whether the line is redrawn, on a terminal, and not written again and again."""
        return self._bar is not None

    def times(self) -> str:
        """For example "0:31 gone, 8:12 left"."""
        gone, left = f"{_clock(time.monotonic() - self._began)} gone", self.left_s()
        return gone if left is None else f"{gone}, {_clock(left)} left"

    def left_s(self) -> float | None:
        """Seconds to go, from the mean of the pieces so far; None before the first."""
        made = self._done - self._first
        if self._total is None or made <= 0:
            return None
        return (time.monotonic() - self._began) / made * (self._total - self._done)

    def _say_line(self) -> None:
        self._said, self._last_said = time.monotonic(), self._done
        count = [] if self._total is None else [f"{self._done}/{self._total}"]
        words = [" ".join([self._text, *count]), *([self._note] if self._note else [])]
        fresh = self._done == self._first
        told = words if fresh and self.left_s() is None else [*words, self.times()]
        self.say(", ".join(told) + " ..." * (fresh or self._total is None))

    def _live_line(self) -> Progress | None:
        """On a terminal that can be redrawn, where there is rich."""
        if importlib.util.find_spec("rich") is None:
            return None
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        from asd_policy.console import plain_console

        console = plain_console(stderr=True)
        if not console.is_terminal or console.is_dumb_terminal:
            return None
        pieces: list[Any] = [SpinnerColumn()]
        if self._total is not None:
            pieces = [BarColumn(bar_width=16), MofNCompleteColumn()]
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            *pieces,
            TextColumn("{task.fields[note]}", markup=False),
            _times_column(self),
            console=console,
            transient=self._total is None,
            auto_refresh=not self._measuring,
        )
        bar.add_task(self._text, total=self._total, completed=self._done, note=self._note)
        return bar


def _times_column(stage: Stage) -> Any:
    """The clock of a stage, as it is when the line is drawn."""
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Times(ProgressColumn):
        def render(self, task: object) -> Text:
            return Text(stage.times(), style="dim")

    return Times()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
