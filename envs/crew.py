"""Runs the attempts that are missing, in parallel processes, and stops them when it is asked to."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import TracebackType

from asd_policy.envs.attempts import Board, LearnerSource, run_attempt, start_worker
from asd_policy.envs.recipe import Recipe
from asd_policy.envs.workers import interrupts_held, worker_died, worker_pool
from asd_policy.errors import DatasetError, counted
from asd_policy.progress import Stage

_LOOK_S = 0.2  # how often the parent looks after its processes


def run_attempts(
    recipe: Recipe,
    episodes: int,
    folder: Path,
    done: dict[int, bool],
    workers: int,
    learner: LearnerSource | None = None,
    progress: bool = True,
) -> None:
    """Run the attempts that are missing; `done` (number to success) is completed in place.

    Attempts 0, 1, 2, ... are made until `episodes` of them have succeeded. One starts only if those
    before it cannot be enough, so that which ones are made does not depend on timing, on the number
    of workers, or on having been stopped.

    On Ctrl-C no attempt begins any more, and those that are running are waited for; a second Ctrl-C
    ends them.

    Raises:
        DatasetError: the expert fails too often.
        AsdPolicyError: a process died.
        KeyboardInterrupt: it was stopped.
    """
    if not missing_attempts(episodes, done, 1):
        return
    kept = sum(done.values())
    with (
        Stage("demonstrations", episodes, kept, "starting worker processes", progress) as stage,
        Crew(recipe, folder, workers, learner) as crew,
    ):
        try:
            while missing := missing_attempts(episodes, done, workers):
                crew.begin(missing)
                stage.update(sum(done.values()), _note(done, crew))
                done.update(crew.ended())
            stage.update(sum(done.values()), f"dropped {_failures(done)}")
        except KeyboardInterrupt:
            crew.finish(stage)
            raise


def missing_attempts(episodes: int, done: dict[int, bool], at_most: int) -> list[int]:
    """The first `at_most` of the attempts yet to be made, if all of them were to succeed.

    Raises:
        DatasetError: there cannot be enough successes within the attempts that are allowed.
    """
    limit = 20 + 3 * episodes  # after so many the expert is considered broken
    if limit - _failures_that_count(episodes, done) < episodes:
        raise DatasetError(
            f"expected {episodes} successes within {limit} attempts, got {sum(done.values())} in "
            f"{len(done)}: the expert fails too often"
        )
    missing: list[int] = []
    hoped_for = 0
    for number in count():
        if hoped_for >= episodes or len(missing) == at_most:
            break
        if number not in done:
            missing.append(number)
        hoped_for += done.get(number, True)
    return missing


def _failures_that_count(episodes: int, done: dict[int, bool]) -> int:
    """Failures among the attempts that are needed: a run for more may have gone on behind them."""
    failures = 0
    for number in sorted(done):
        if number - failures >= episodes:  # those before it, if all that are missing succeed
            break
        failures += not done[number]
    return failures


def _failures(done: dict[int, bool]) -> int:
    return len(done) - sum(done.values())


def _note(done: dict[int, bool], crew: Crew) -> str:
    ready, started = crew.ready, crew.started
    if ready < started:
        return f"starting worker processes, {ready} of {started}"
    return f"dropped {_failures(done)}"


class Crew:
    """Processes that run attempts: started as they are needed, killed when the block is left.

    Args:
        recipe: of the attempts.
        folder: where they are saved.
        workers: processes, at most.
        learner: where to get what drives in interruptions.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, workers: int, learner: LearnerSource | None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._board = Board(context.RawValue("b", 0), context.RawArray("d", workers))
        self._ending = ExitStack()
        self._pool = self._ending.enter_context(
            worker_pool(workers, start_worker, recipe, folder, learner, self._board)
        )
        self._under_way: dict[Future[tuple[bool, float] | None], tuple[int, int]] = {}
        self._free = list(range(workers))[::-1]
        self._ready: set[int] = set()  # places whose process has run something
        self._started: set[int] = set()
        self._longest_s = 0.0

    @property
    def started(self) -> int:
        """Processes that were asked for."""
        return len(self._started)

    @property
    def ready(self) -> int:
        """Those of them that have begun an attempt."""
        self._ready |= {place for place in self._started if self._board.began[place]}
        return len(self._ready)

    def begin(self, numbers: Collection[int]) -> None:
        """Run these attempts, where they are not running yet and there are processes free."""
        running = {number for number, _ in self._under_way.values()}
        for number in [n for n in numbers if n not in running][: len(self._free)]:
            with interrupts_held():
                place = self._free.pop()
                self._started.add(place)
                self._board.began[place] = 0.0
                self._under_way[self._submit(number, place)] = (number, place)

    def _submit(self, number: int, place: int) -> Future[tuple[bool, float] | None]:
        try:
            return self._pool.submit(run_attempt, number, place)
        except BrokenProcessPool as error:
            raise worker_died() from error

    def ended(self) -> dict[int, bool]:
        """Number to success of the attempts that end soon, if any do."""
        ended = {}
        for future in wait(self._under_way, _LOOK_S, FIRST_COMPLETED).done:
            number, place = self._under_way.pop(future)
            self._free.append(place)
            self._ready.add(place)
            try:
                outcome = future.result()
            except BrokenProcessPool as error:
                raise worker_died() from error
            assert outcome is not None  # nobody is stopping
            ended[number], seconds = outcome
            self._longest_s = max(self._longest_s, seconds)
        return ended

    def finish(self, stage: Stage) -> None:
        """Let the running attempts end, and no other begin. A KeyboardInterrupt passes."""
        self._board.stopping.value = 1
        running = self._running_s()
        if not running:
            return
        episodes = counted(len(running), "running episode")
        about = ""
        if self._longest_s:
            about = f" (about {max(self._longest_s - min(running), 1):.0f} s at most)"
        stage.say(
            f"Stopping: waiting for {episodes} to end{about}. Ctrl-C again ends them at once."
        )
        while running := self._running_s():
            stage.update(note=f"stopping, {len(running)} running")
            time.sleep(_LOOK_S)

    def _running_s(self) -> list[float]:
        """Seconds that each running attempt has taken so far."""
        under_way = [place for future, (_, place) in self._under_way.items() if not future.done()]
        return [time.time() - b for b in (self._board.began[place] for place in under_way) if b]

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.close()
