"""Chunks for everybody: what is asked at the same time is drawn in one batch."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from asd_policy.errors import AsdPolicyError, ServerError
from asd_policy.policy.draws import ChunkStats
from asd_policy.policy.environment import Frame
from asd_policy.policy.horizon import RecedingHorizon
from asd_policy.serving.requests import Frames

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


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


@dataclass(eq=False)
class Job:
    """Observations of some environments of the policy's, and what is wanted for them: "infer",
    "act" or "observe"; ``committed``: actions of each that its chunk is given, if any.

    ``before``: what the environments remembered when it came. What comes of it is ``drawn`` or
    ``error``. ``woken``: one of them is there, or it is the turn of the thread that waits for it to
    draw."""

    call: str
    indices: Sequence[int]
    frames: Frames
    committed: Sequence[np.ndarray] | None = None
    arrived: float = field(default_factory=time.perf_counter)
    drawn: Drawn | None = None
    error: AsdPolicyError | None = None
    before: Sequence[deque[Frame]] = ()
    woken: threading.Event = field(default_factory=threading.Event)

    @property
    def done(self) -> bool:
        """Whether its end has come."""
        return self.drawn is not None or self.error is not None


class Batcher:
    """Draws with one policy, for any number of threads.

    The thread that asks draws, for all who ask in the meantime: handing each chunk to a thread that
    draws, and back, takes half a millisecond. Who asks while another draws waits, and then has its
    answer or the next turn. Where each thread that draws would keep something for itself, one does
    so for all: a team of OpenMP's threads, of a network that takes several; cuBLAS's workspace.

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
        self._using = threading.Lock()  # the policy, to draw
        self._moving = threading.Lock()  # which robots it has
        self._apart = None if _anywhere(policy) else ThreadPoolExecutor(1, "asd-policy engine")
        self._asked = threading.Condition()  # guards the two below
        self._waiting: list[Job] = []
        self._drawing = False  # somebody has the turn
        self.batches = self.chunks = 0

    def draw(self, job: Job) -> Drawn:
        """What a job gives, when its turn has come.

        Raises:
            ValueError, NonFiniteError: as the policy.
            ServerError: a fault, which the log has.
        """
        if self._rows(job):
            self._in_turn(job)
        else:
            self._at_once(job)
        if job.error is not None:
            raise job.error
        assert job.drawn is not None
        return job.drawn

    def call(self, work: Callable[[], None]) -> None:
        """Have a function take robots in or out, one at a time. It waits for no draw, which is of
        others: else those who begin together would each be drawn alone, one after another."""
        with self._moving:
            work()

    def fewer(self) -> None:
        """Be told that there are fewer clients now, who need not be waited for."""
        with self._asked:
            self._asked.notify_all()

    def ahead(self, indices: Sequence[int]) -> None:
        """Draw the next noise of these environments now, unless the policy is in use."""
        if not self._using.acquire(blocking=False):
            return
        try:
            streams = [self._policy.environments[i].stream for i in indices]
            self._run(lambda: self._policy.source.ahead(streams))
        finally:
            self._using.release()

    def _at_once(self, job: Job) -> None:
        """What needs no chunk, and so no turn: nothing is touched but the job's own environments,
        and nobody waits for another's draw."""
        began = time.perf_counter()
        try:
            if self._observe(job):
                queues = [self._policy.environments[index].queue for index in job.indices]
                actions = None
                if job.call == "act":
                    actions = np.stack([queue.popleft() for queue in queues])
                job.drawn = Drawn(actions, [None] * len(queues), began - job.arrived, 0.0, 0)
        except Exception as error:
            _tell(job, error)

    # ---- whose turn it is ------------------------------------------------------------------------

    def _in_turn(self, job: Job) -> None:
        with self._asked:
            self._waiting.append(job)
            mine, self._drawing = not self._drawing, True
            self._asked.notify_all()
        if not mine:
            job.woken.wait()
        if job.done:
            return
        try:
            self._try(self._gather(job))
        finally:
            with self._asked:
                self._waiting = [other for other in self._waiting if not other.done]
                self._drawing = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].woken.set()

    def _gather(self, first: Job) -> list[Job]:
        """The jobs that can be drawn with the first one: with and without commitments are two
        chains."""
        with self._asked:
            left = first.arrived + self._wait_s - time.perf_counter()
            if left > 0:
                self._asked.wait_for(lambda: len(self._waiting) >= self._clients(), left)
            chain = first.committed is None
            return [job for job in self._waiting if (job.committed is None) == chain]

    def _try(self, jobs: Sequence[Job]) -> None:
        try:
            with self._using:
                self._run(lambda: self._serve(jobs))
        except BaseException as error:
            for job in jobs:
                if not job.done:
                    _tell(job, error)
            if not isinstance(error, Exception):
                raise

    def _run(self, work: Callable[[], Result]) -> Result:
        return work() if self._apart is None else self._apart.submit(work).result()

    # ---- with the policy -------------------------------------------------------------------------

    def _serve(self, jobs: Sequence[Job]) -> None:
        began = time.perf_counter()
        ready = [job for job in jobs if self._observe(job)]
        if ready:
            self._draw(ready, began)

    def _observe(self, job: Job) -> bool:
        """Whether the job's observations could be taken in: all of them, or none."""
        policy = self._policy
        try:
            seen = [policy.frames(rows, len(job.indices)) for rows in job.frames]
        except Exception as error:
            _tell(job, error)
            return False
        job.before = policy.remembered(job.indices)
        for frames in seen:
            policy.remember(frames, job.indices)
        return True

    def _rows(self, job: Job) -> list[int]:
        """Environments for which a chunk must be drawn."""
        if job.call == "infer":
            return list(job.indices)
        return [i for i in job.indices if job.call == "act" and not self._policy.queued(i)]

    def _draw(self, jobs: Sequence[Job], began: float) -> None:
        policy = self._policy
        rows = [index for job in jobs for index in self._rows(job)]
        given = None
        if jobs[0].committed is not None:
            given = [actions for job in jobs for actions in job.committed or ()]
        try:
            self._settle()
            start = time.perf_counter()
            chunks = policy.predict(rows, given)
            seconds = time.perf_counter() - start
            costs = policy.last_chunks
        except Exception as error:
            if len(jobs) == 1:  # asked again, it is not seen twice
                policy.restore(jobs[0].before, jobs[0].indices)
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
            torch.cuda.current_stream(device).synchronize()  # others may be capturing there

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
        job.drawn = Drawn(actions, costs, began - job.arrived, seconds, batch)
        job.woken.set()


def _anywhere(policy: RecedingHorizon) -> bool:
    """Whether any thread may draw."""
    sampler, device = getattr(policy.source, "sampler", None), getattr(policy, "device", None)
    threads = getattr(sampler, "threads", None) or torch.get_num_threads()
    return threads == 1 and (device is None or device.type == "cpu")


def _tell(job: Job, error: BaseException) -> None:
    """An error that is this client's alone; a fault is in the log with its traceback."""
    if not isinstance(error, AsdPolicyError):
        logger.error("a fault while serving", exc_info=error)
        error = ServerError(f"{type(error).__name__}: {error}")
    job.error = error
    job.woken.set()
