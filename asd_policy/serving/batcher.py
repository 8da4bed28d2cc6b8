"""One thread that draws chunks for everybody: what is asked at the same time, in one batch."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from asd_policy.errors import AsdPolicyError, ServerError
from asd_policy.policy.draws import ChunkStats
from asd_policy.policy.horizon import RecedingHorizon
from asd_policy.serving.requests import Frames

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """What a job gave.

    Attributes:
        actions: (B, H, action_dim) of chunks, or (B, action_dim) of single actions; None of a job
            that only observes.
        costs: of each row's chunk; None of a row whose action was queued.
        queue_s, draw_s: seconds until drawing began, and those that it took, the device's work
            included. batch: chunks that were drawn together.
    """

    actions: np.ndarray | None
    costs: Sequence[ChunkStats | None]
    queue_s: float
    draw_s: float
    batch: int


@dataclass
class Job:
    """Observations of some environments of the policy's, and what is wanted for them: "infer",
    "act" or "observe"; ``committed``: actions of each that its chunk is given, if any."""

    call: str
    indices: Sequence[int]
    frames: Frames
    committed: Sequence[np.ndarray] | None = None
    arrived: float = field(default_factory=time.perf_counter)
    answer: Future[Drawn] = field(default_factory=Future)


@dataclass
class _Errand:
    """Anything else that is done with the policy, in its turn."""

    work: Callable[[], Any]
    answer: Future[Any] = field(default_factory=Future)


class Batcher:
    """Draws with one policy, in one thread, which alone touches it.

    A chunk's law is not changed by its company: each environment has its own history, queue and
    random stream, and the window is of the number of robots that were expected beforehand. Where a
    batch fails, each of its jobs is drawn alone, from the noise that it would have had.

    Args:
        policy: what draws. wait_s: from a job's arrival until drawing begins without others.
        clients: how many there are now: there is nothing to wait for when all have asked.
    """

    def __init__(
        self, policy: RecedingHorizon, wait_s: float = 0.0, clients: Callable[[], int] = lambda: 0
    ) -> None:
        self._policy, self._wait_s, self._clients = policy, wait_s, clients
        self._waiting: queue.SimpleQueue[Job | _Errand | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="asd-policy engine", daemon=True)
        self.batches = self.chunks = 0

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was asked, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    async def draw(self, job: Job) -> Drawn:
        """What a job gives, when its turn has come.

        Raises:
            ValueError, NonFiniteError: as the policy.
            ServerError: a fault, which the log has.
        """
        self._waiting.put(job)
        return await asyncio.wrap_future(job.answer)

    async def call(self, work: Callable[[], Any]) -> Any:
        """What a function gives that is called in the policy's thread."""
        errand = _Errand(work)
        self._waiting.put(errand)
        return await asyncio.wrap_future(errand.answer)

    # ---- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            if isinstance(first, _Errand):
                self._do(first)
                continue
            jobs, ending = self._gather(first)
            self._serve([job for job in jobs if job.answer.set_running_or_notify_cancel()])
            if ending:
                return

    def _gather(self, first: Job) -> tuple[list[Job], bool]:
        """The jobs that are drawn with the first one; whether the end was asked for."""
        jobs, until = [first], first.arrived + self._wait_s
        while True:
            left = until - time.perf_counter()
            try:
                if left > 0 and len(jobs) < self._clients():
                    more = self._waiting.get(timeout=left)
                else:
                    more = self._waiting.get_nowait()
            except queue.Empty:
                return jobs, False
            if more is None:
                return jobs, True
            if isinstance(more, _Errand):
                self._do(more)
            else:
                jobs.append(more)

    @staticmethod
    def _do(errand: _Errand) -> None:
        if not errand.answer.set_running_or_notify_cancel():
            return
        try:
            errand.answer.set_result(errand.work())
        except BaseException as error:
            errand.answer.set_exception(error)

    def _serve(self, jobs: Sequence[Job]) -> None:
        began = time.perf_counter()
        ready = [job for job in jobs if self._observe(job)]
        due = [job for job in ready if self._rows(job)]
        for job in ready:
            if job not in due:
                self._answer(job, {}, began, 0.0, 0)
        for chain in (False, True):  # without and with commitments are two chains
            self._draw([job for job in due if (job.committed is not None) == chain], began)

    def _observe(self, job: Job) -> bool:
        """Whether the job's observations could be taken in: all of them, or none."""
        policy = self._policy
        try:
            seen = [policy.frames(rows, len(job.indices)) for rows in job.frames]
        except Exception as error:
            _tell(job, error)
            return False
        for frames in seen:
            policy.remember(frames, job.indices)
        return True

    def _rows(self, job: Job) -> list[int]:
        """Environments for which a chunk must be drawn."""
        if job.call == "infer":
            return list(job.indices)
        return [i for i in job.indices if job.call == "act" and not self._policy.queued(i)]

    def _draw(self, jobs: Sequence[Job], began: float) -> None:
        if not jobs:
            return
        policy = self._policy
        rows = [index for job in jobs for index in self._rows(job)]
        given = None
        if jobs[0].committed is not None:
            given = [actions for job in jobs for actions in job.committed or ()]
        streams = [policy.environments[index].stream for index in rows]
        before = [stream.get_state() for stream in streams]
        try:
            self._settle()
            start = time.perf_counter()
            chunks = policy.predict(rows, given)
            seconds = time.perf_counter() - start
            costs = policy.last_chunks
        except Exception as error:
            for stream, state in zip(streams, before, strict=True):
                stream.set_state(state)
            if len(jobs) == 1:
                _tell(jobs[0], error)
            else:
                for job in jobs:
                    self._draw([job], began)
            return
        self.batches, self.chunks = self.batches + 1, self.chunks + len(rows)
        made = {row: (chunks[i], costs[i]) for i, row in enumerate(rows)}
        for job in jobs:
            self._answer(job, made, began, seconds, len(rows))

    def _settle(self) -> None:
        """Let the device finish what came before: it is no part of what is timed."""
        device = getattr(self._policy, "device", None)
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    def _answer(
        self,
        job: Job,
        made: dict[int, tuple[np.ndarray, ChunkStats | None]],
        began: float,
        seconds: float,
        batch: int,
    ) -> None:
        actions = None
        if job.call == "infer":
            actions = np.stack([made[index][0] for index in job.indices])
        elif job.call == "act":
            for index in job.indices:
                if index in made:
                    self._policy.enqueue(index, made[index][0])
            actions = np.stack([self._policy.next(index) for index in job.indices])
        costs = [made[index][1] if index in made else None for index in job.indices]
        job.answer.set_result(Drawn(actions, costs, began - job.arrived, seconds, batch))


def _tell(job: Job, error: Exception) -> None:
    """An error that is this client's alone; a fault is in the log with its traceback."""
    if isinstance(error, AsdPolicyError):
        job.answer.set_exception(error)
        return
    logger.error("a fault while serving", exc_info=error)
    job.answer.set_exception(ServerError(f"{type(error).__name__}: {error}"))
