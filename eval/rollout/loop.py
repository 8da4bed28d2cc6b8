"""Policies and environments in a loop, one record an episode. Nothing here knows what either is."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from asd_policy.data.scenes import scene_digest
from asd_policy.envs.tasks import CONTROL_FREQUENCY_HZ
from asd_policy.errors import AsdPolicyError, NonFiniteError
from asd_policy.eval.rollout.smoothness import Motion
from asd_policy.eval.rollout.video import Recorder, check_rendering
from asd_policy.eval.runs.episode import Episode, chunk_record
from asd_policy.eval.runs.machine import describe_machine, processor_wait_s
from asd_policy.eval.slots import Moment, Observation, Slot, WorkerDied

if TYPE_CHECKING:
    from asd_policy.policy import ChunkSource, ChunkStats, Draw

MAX_RESTARTS = 3  # of one episode: what kills its worker so often is no accident


class Controller(Protocol):
    """What drives the robots: a policy, or one whose chunks come late."""

    @property
    def last_chunks(self) -> list[ChunkStats | None]:
        """Of each row of the last call: its cost, None where the action was queued."""

    @property
    def observation_keys(self) -> dict[str, int]:
        """Key → dimension of what it must see."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Make len(seeds) environments, each with its own history, queue and random stream."""

    def reset_env(self, index: int, seed: int) -> None:
        """Start an episode in one of them."""

    def queued(self, index: int) -> int:
        """Actions that one of them can take before the next chunk must be sampled."""

    def coming(self, index: int) -> Sequence[np.ndarray]:
        """The queued actions of one of them, in the order in which `act_batch` will give them."""

    def act_batch(self, observations: Observation, indices: Sequence[int]) -> np.ndarray:
        """Actions (B, dim) of the environments `indices`, one row of observations for each."""


class Policy(Controller, Protocol):
    """What is asked of a policy (`asd_policy.policy.RecedingHorizon` is one, with its keys)."""

    on_draw: Callable[[Draw], None] | None
    """Told of every batch of chunks that is drawn."""

    source: ChunkSource
    """Of its chunks."""

    @property
    def horizons(self) -> tuple[int, int, int]:
        """(To, Ta, Tp)."""

    @property
    def pictures(self) -> Mapping[str, tuple[int, int]]:
        """Observations that are pictures, key → (height, width)."""

    def observe(self, observations: Observation, indices: Sequence[int]) -> None:
        """Take in one observation of each of the environments."""

    def predict(
        self, indices: Sequence[int], committed: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """(B, H, dim) actions from now on, given the first few of each that are committed; their
        cost is in `last_chunks`."""


@dataclasses.dataclass(frozen=True)
class Listener:
    """What a rollout tells beside its episodes; both outside everything that is timed.

    `started`: sampler and seed of an episode that begins (again, after a worker's death).
    `ticked`: between control steps.
    """

    started: Callable[[str, int], None] = lambda sampler, seed: None
    ticked: Callable[[], None] = lambda: None


Film = Callable[[Path, str, int], Recorder | None]
"""(folder, sampler, seed) → the film of an episode, None where it is not filmed."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of: one policy for each sampler, and the environments they share.

    `checkpoint_sha256` is part of what must not change when a run is resumed; `resolved` is what
    "auto" and the defaults came to (device, threads, precision, steps of each sampler).
    `held_components`: of an action, what is repeated while a robot holds still (a gripper's
    command). `places`: how many policies run at once, each with environments of its own.
    """

    policies: Mapping[str, Policy]
    slots: Sequence[Slot]
    render_fps: float
    checkpoint_sha256: str
    resolved: dict[str, Any]
    held_components: Sequence[int] = ()
    places: int = 1

    def roll_out(
        self, jobs: Iterator[tuple[str, int]], film: Film, folder: Path, listener: Listener
    ) -> Generator[Episode, None, None]:
        """The episodes of these (sampler, seed), each as it ends; films go to `folder`."""
        recorder = functools.partial(film, folder)
        return roll_out(
            self.policies,
            self.slots,
            jobs,
            recorder=recorder,
            listener=listener,
            motion=lambda: Motion(self.render_fps, self.held_components),
        )

    def check_rendering(self) -> None:
        """Raise AsdPolicyError unless a frame can be drawn."""
        check_rendering(self.slots[0])

    def describe_machine(self) -> dict[str, Any]:
        """The machine that the policy runs on, and versions."""
        return describe_machine(self.resolved)

    def close(self) -> None:
        """Close the environments."""
        for slot in self.slots:
            slot.close()


class _Run:
    """One episode while it runs."""

    def __init__(
        self, sampler: str, seed: int, recorder: Recorder | None, motion: Motion, restarts: int
    ):
        self.sampler, self.seed, self.recorder = sampler, seed, recorder
        self.motion, self.restarts = motion, restarts
        self.success = self.over = self.cold = self.begun = False
        self.total_reward = 0.0
        self.scene: str | None = None
        self.policy_s = self.simulation_s = self.rendering_s = 0.0
        self.latencies: list[float] = []
        self.chunks: list[ChunkStats] = []
        self.joins: list[int] = []
        self.stages: Mapping[str, int | None] = {}
        self.start, self.waited = time.perf_counter(), processor_wait_s()
        self.observation: Observation = {}

    def take(self, moment: Moment) -> None:
        """Go on to a moment that the environment told."""
        if not self.begun:
            self.scene = scene_digest(moment.observation)
        self.begun, self.observation, self.stages = True, moment.observation, moment.stages
        self.simulation_s += moment.simulation_s
        self.rendering_s += moment.rendering_s
        if not math.isfinite(moment.reward):
            raise NonFiniteError(
                f"the reward must be finite, got {moment.reward} at step {len(self.latencies)} of "
                f"the episode with seed {self.seed}"
            )
        self.total_reward += moment.reward
        self.success |= moment.success
        self.over = moment.over
        if self.recorder is not None and moment.frame is not None:
            start = time.perf_counter()
            self.recorder.add(moment.frame, self.chunks[-1] if self.chunks else None)
            self.rendering_s += time.perf_counter() - start

    def chunk(self, chunk: ChunkStats) -> None:
        """A chunk was sampled for the action that comes now, or asked for now and comes late."""
        self.chunks.append(chunk)
        delay = getattr(chunk, "delay", None)
        if delay is None or not delay.useless:
            self.joins.append(len(self.latencies) - 1 + (0 if delay is None else delay.steps))

    def _still(self) -> set[int]:
        """The steps in which the robot waited."""
        delays = (getattr(chunk, "delay", None) for chunk in self.chunks)
        return {step for delay in delays if delay is not None for step in delay.held()}

    def record(self, num_envs: int) -> Episode:
        waited = processor_wait_s()
        return Episode(
            sampler=self.sampler,
            seed=self.seed,
            success=self.success,
            steps=len(self.latencies),
            return_=self.total_reward,
            cold=self.cold,
            num_envs=num_envs,
            restarts=self.restarts,
            wall_s=time.perf_counter() - self.start,
            processor_wait_s=(
                None if waited is None or self.waited is None else max(0.0, waited - self.waited)
            ),
            policy_s=self.policy_s,
            simulation_s=self.simulation_s,
            rendering_s=self.rendering_s,
            chunks=[chunk_record(chunk) for chunk in self.chunks],
            accepted_by_step=_summed([chunk.accepted for chunk in self.chunks]),
            decided_by_step=_summed([chunk.decided for chunk in self.chunks]),
            control_step_s=self.latencies,
            scene=self.scene,
            stages=dict(self.stages),
            smoothness=self.motion.summary(self.joins[1:], self._still()),  # the first follows none
        )


class _Rollout:
    """The episodes that run now, by slot."""

    def __init__(
        self,
        policies: Mapping[str, Controller],
        slots: Sequence[Slot],
        recorder: Callable[[str, int], Recorder | None],
        listener: Listener,
        motion: Callable[[], Motion],
    ):
        self.policies, self.slots = policies, slots
        self.recorder, self.listener, self.motion = recorder, listener, motion
        self.runs: dict[int, _Run] = {}
        self.warm: set[str] = set()
        for policy in policies.values():
            policy.reset([0] * len(slots))

    def fill(self, jobs: Iterator[tuple[str, int]]) -> bool:
        """Begin the next episodes wherever a slot is free. False: nothing is left to run."""
        for index in range(len(self.slots)):
            if index not in self.runs and (job := next(jobs, None)) is not None:
                self._begin(index, *job)
        return bool(self.runs)

    def _begin(self, index: int, sampler: str, seed: int, restarts: int = 0) -> None:
        self.listener.started(sampler, seed)
        run = _Run(sampler, seed, self.recorder(sampler, seed), self.motion(), restarts)
        self.runs[index] = run
        self.policies[sampler].reset_env(index, seed)
        self.slots[index].start(seed, run.recorder is not None)

    def control_step(self) -> None:
        """One action in each slot that is due. All simulate at once."""
        due = [(name, self._due(name)) for name in self.policies]
        acted = [index for name, indices in due for index in self._act(name, indices)]
        for index in acted:
            self._receive(index)

    def _due(self, sampler: str) -> list[int]:
        """The slots whose turn it is. One that needs a chunk waits for the others to need theirs:
        however differently they began, chunks are sampled in one batch."""
        policy = self.policies[sampler]
        ours = [i for i in sorted(self.runs) if self.runs[i].sampler == sampler]
        return [i for i in ours if policy.queued(i)] or ours

    def _act(self, sampler: str, due: Sequence[int]) -> Sequence[int]:
        """Act for those that are due; return them. A batched call is timed whole: so long each
        robot waits."""
        if not due:
            return due
        policy = self.policies[sampler]
        for index in due:
            if not self.runs[index].begun:
                self._receive(index)
        runs = [self.runs[index] for index in due]
        observation = {
            key: np.stack([np.asarray(run.observation[key]) for run in runs])
            for key in policy.observation_keys
        }
        start = time.perf_counter()
        actions = policy.act_batch(observation, indices=due)
        elapsed = time.perf_counter() - start
        for row, run in enumerate(runs):
            run.cold |= sampler not in self.warm
            run.latencies.append(elapsed)
            run.policy_s += elapsed / len(runs)
            if (chunk := policy.last_chunks[row]) is not None:
                run.chunk(chunk)
            run.motion.add(run.observation, actions[row])
            self.slots[due[row]].send(actions[row], policy.coming(due[row]))
        self.warm.add(sampler)
        return due

    def _receive(self, index: int) -> None:
        """Take the moment that a slot was asked for; where its worker has died, the first one of
        the same episode in another worker."""
        while True:
            try:
                moment = self.slots[index].receive()
            except WorkerDied as death:
                self._again(index, death)
            else:
                self.runs[index].take(moment)
                break

    def _again(self, index: int, death: WorkerDied) -> None:
        run = self.runs[index]
        if run.restarts == MAX_RESTARTS:
            raise AsdPolicyError(
                f"the episode with seed {run.seed} of {run.sampler} was given up: {death}, "
                f"for the {MAX_RESTARTS + 1}th time"
            ) from death
        self._discard(run)
        self.slots[index].restart()
        self._begin(index, run.sampler, run.seed, run.restarts + 1)

    def finished(self) -> Generator[Episode, None, None]:
        """Take the episodes that are over off their slots."""
        for index, run in [(i, run) for i, run in self.runs.items() if run.over]:
            del self.runs[index]
            if run.recorder is not None:
                run.recorder.finish(run.success)
            yield run.record(len(self.slots))

    def close(self) -> None:
        for run in self.runs.values():
            self._discard(run)

    @staticmethod
    def _discard(run: _Run) -> None:
        if run.recorder is not None:
            run.recorder.discard()
            run.recorder = None


def roll_out(
    policies: Mapping[str, Controller],
    slots: Sequence[Slot],
    jobs: Iterable[tuple[str, int]],
    *,
    recorder: Callable[[str, int], Recorder | None] = lambda sampler, seed: None,
    listener: Listener = Listener(),
    motion: Callable[[], Motion] = lambda: Motion(CONTROL_FREQUENCY_HZ, ()),
) -> Generator[Episode, None, None]:
    """One episode for each (sampler, seed), as many at once as there are slots; yields each as it
    ends. A slot that is free takes the next one at once.

    The scene and the policy's random stream of an episode depend on its seed alone. An episode
    whose worker dies is run again from its beginning.

    Args:
        policies: by sampler.
        recorder: the film of an episode, None where it is not filmed. Films of episodes that do
            not end are discarded.
        motion: what takes an episode's motion in.

    Raises:
        NonFiniteError: NaN or infinity in an observation, network output, action or reward.
        AsdPolicyError: workers of one episode died again and again.
    """
    waiting = iter(jobs)
    rollout = _Rollout(policies, slots, recorder, listener, motion)
    try:
        while rollout.fill(waiting):
            rollout.control_step()
            yield from rollout.finished()
            listener.ticked()
    finally:
        rollout.close()


def _summed(counts: Sequence[Any]) -> list[int]:
    """Counts per step index (K,), summed over an episode's chunks."""
    if not counts:
        return []
    return [int(n) for n in np.sum([np.asarray(count) for count in counts], axis=0)]
