"""Progress of a run: a live bar on a terminal, a plain line now and then anywhere else.

No thread of its own: a bar that redraws while the policy computes would take its processor and
distort the latencies that the run is there to measure.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from asd_policy.eval.records import Episode

_REDRAW_S = 0.25
_PLAIN_LINE_S = 10.0


class RunProgress:
    """Tells how far a run is. Use as a context; `begin` and `episode` in turn, `tick` often."""

    def __init__(self, console: Console, samplers: Sequence[str], episodes: int, places: int = 1):
        self._console = console
        self._samplers = tuple(samplers)
        self._per_sampler = episodes
        self._places = places  # each with environments of its own
        self._outcomes: dict[str, list[bool]] = {name: [] for name in samplers}
        self._seconds: dict[str, list[float]] = {name: [] for name in samplers}
        self._earlier: dict[str, list[float]] = {name: [] for name in samplers}
        self._start = self._shown = time.perf_counter()
        self._now = ""
        self._bar = _bar(console) if console.is_terminal else None
        self._task: Any = None

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            total = self._per_sampler * len(self._samplers)
            self._task = self._bar.add_task("", total=total, tally="", left="")
            self._redraw()  # before the bar is on the screen: its first sight has what is kept
            self._bar.start()
        elif self._done():
            self._print()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._now = ""
            self._redraw()
            self._bar.stop()

    def kept(self, episode: Episode) -> None:
        """Count an episode of an earlier process, before this one's first. What it took tells the
        time that is left until one of its sampler has ended here."""
        self._outcomes[episode.sampler].append(episode.success)
        self._earlier[episode.sampler].append(self._takes(episode))

    def begin(self, sampler: str, seed: int) -> None:
        """An episode that starts now."""
        self._now = f"{sampler}, seed {seed}"

    def episode(self, episode: Episode) -> None:
        """Count an episode that has just ended."""
        self._outcomes[episode.sampler].append(episode.success)
        self._seconds[episode.sampler].append(self._takes(episode))
        if self._bar is not None:
            self._redraw()
        elif time.perf_counter() - self._shown >= _PLAIN_LINE_S or self._left_s() == 0:
            self._print()

    def tick(self) -> None:
        """Between control steps: redraw the bar, a few times a second at most."""
        if self._bar is not None and time.perf_counter() - self._shown >= _REDRAW_S:
            self._redraw()

    def _redraw(self) -> None:
        assert self._bar is not None
        self._shown = time.perf_counter()
        self._bar.update(
            self._task,
            completed=self._done(),
            description=self._now,
            tally=self._tally(),
            left=self._times(),
        )
        self._bar.refresh()

    def _print(self) -> None:
        self._shown = time.perf_counter()
        self._console.print(Text(self._line()), soft_wrap=True)

    def _takes(self, episode: Episode) -> float:
        """Seconds of the run, where so many episodes run at once."""
        return episode.wall_s / (episode.num_envs * self._places)

    def _line(self) -> str:
        total = self._per_sampler * len(self._samplers)
        return f"{self._done():>4}/{total} episodes  {self._tally()}  {self._times()}"

    def _done(self) -> int:
        return sum(len(outcomes) for outcomes in self._outcomes.values())

    def _tally(self) -> str:
        """Successes of each sampler so far, of the episodes it has done."""
        return "  ".join(
            f"{name} {sum(done)}/{len(done)}" for name, done in self._outcomes.items() if done
        )

    def _times(self) -> str:
        left = self._left_s()
        return f"{_clock(time.perf_counter() - self._start)} gone" + (
            "" if left is None else f", {_clock(left)} left"
        )

    def _left_s(self) -> float | None:
        """Seconds to go, from each sampler's own mean, here or else in earlier processes; None
        until each has run."""
        total = 0.0
        for name, here in self._seconds.items():
            seconds = here or self._earlier[name]
            to_do = self._per_sampler - len(self._outcomes[name])
            if to_do and not seconds:
                return None
            total += to_do * sum(seconds) / max(len(seconds), 1)
        return total


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tally]}", markup=False),
        TextColumn("{task.fields[left]}", style="dim", markup=False),
        TextColumn("{task.description}", style="cyan", markup=False),
        console=console,
        auto_refresh=False,
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
