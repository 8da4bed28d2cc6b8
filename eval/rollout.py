"""Policy and environments in a loop, one record an episode. Nothing here knows what either is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from asd_policy.errors import NonFiniteError
from asd_policy.eval.machine import processor_wait_s
from asd_policy.eval.records import Episode, chunk_record
from asd_policy.eval.video import Recorder

if TYPE_CHECKING:
    from asd_policy.policy import ChunkStats

Observation = Mapping[str, np.ndarray]


class Policy(Protocol):
    """What is asked of a policy (`asd_policy.policy.DiffusionPolicy` is one)."""

    last_chunks: list[ChunkStats | None]
    """Of each row of the last call: its cost, None where the action was queued."""

    @property
    def observation_keys(self) -> dict[str, int]:
        """Key → dimension of what it must see."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Start len(seeds) episodes, each with its own random stream."""

    def act_batch(self, observations: Observation, indices: Sequence[int]) -> np.ndarray:
        """Actions (B, dim) of the environments `indices`, one row of observations for each."""


class Env(Protocol):
    """What is asked of an environment (gymnasium's interface)."""

    metadata: dict[str, Any]

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Start the episode of this seed."""

    def step(self, action: np.ndarray) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """One control step."""

    def render(self) -> Any:
        """The scene as a (height, width, 3) uint8 frame."""

    def close(self) -> None:
        """Let go of the simulator."""


class _Run:
    """One episode while it runs."""

    def __init__(self, env: Env, seed: int, recorder: Recorder | None):
        self.env, self.seed, self.recorder = env, seed, recorder
        self.success = self.over = False
        self.total_reward = 0.0
        self.policy_s = self.simulation_s = self.rendering_s = 0.0
        self.latencies: list[float] = []
        self.chunks: list[ChunkStats] = []
        self.start, self.waited = time.perf_counter(), processor_wait_s()
        self.observation, _ = env.reset(seed=seed)
        self.simulation_s += time.perf_counter() - self.start
        self._film()

    def advance(self, action: np.ndarray) -> None:
        start = time.perf_counter()
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        self.simulation_s += time.perf_counter() - start
        if not math.isfinite(float(reward)):
            raise NonFiniteError(
                f"the reward must be finite, got {reward} at step {len(self.latencies)} of the "
                f"episode with seed {self.seed}"
            )
        self.total_reward += float(reward)
        self.success |= bool(info["is_success"])
        self.over = bool(terminated or truncated)
        self._film()

    def _film(self) -> None:
        if self.recorder is not None:
            start = time.perf_counter()
            self.recorder.add(
                np.asarray(self.env.render()), self.chunks[-1] if self.chunks else None
            )
            self.rendering_s += time.perf_counter() - start

    def record(self, sampler: str, cold: bool, num_envs: int) -> Episode:
        waited = processor_wait_s()
        return Episode(
            sampler=sampler,
            seed=self.seed,
            success=self.success,
            steps=len(self.latencies),
            return_=self.total_reward,
            cold=cold,
            num_envs=num_envs,
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
        )


def roll_out(
    policy: Policy,
    envs: Sequence[Env],
    seeds: Sequence[int],
    *,
    sampler: str,
    cold: bool,
    recorders: Mapping[int, Recorder],
    on_step: Callable[[], None],
) -> Generator[Episode, None, None]:
    """One episode for each seed, all at once, seeds[i] in envs[i]; yields each as it ends.

    The scene and the policy's random stream of an episode depend on its seed alone.

    Args:
        cold: whether this is the sampler's first call in this process.
        recorders: seed -> the film of that episode. Films of episodes that do not end are
            discarded.
        on_step: called between control steps, outside everything that is timed.

    Raises:
        NonFiniteError: NaN or infinity in an observation, network output, action or reward.
    """
    assert len(seeds) <= len(envs), (len(seeds), len(envs))
    unfinished = dict(recorders)
    try:
        policy.reset(list(seeds))
        runs = [
            _Run(env, seed, recorders.get(seed)) for env, seed in zip(envs, seeds, strict=False)
        ]
        alive = list(range(len(runs)))
        while alive:
            _control_step(policy, runs, alive)
            for i in [i for i in alive if runs[i].over]:
                if (recorder := unfinished.pop(runs[i].seed, None)) is not None:
                    recorder.finish(runs[i].success)
                yield runs[i].record(sampler, cold, len(seeds))
            alive = [i for i in alive if not runs[i].over]
            on_step()
    finally:
        for recorder in unfinished.values():
            recorder.discard()


def _control_step(policy: Policy, runs: Sequence[_Run], alive: Sequence[int]) -> None:
    """One action for each living run. A batched call is timed whole: so long each robot waits."""
    observation = {
        key: np.stack([np.asarray(runs[i].observation[key]) for i in alive])
        for key in policy.observation_keys
    }
    start = time.perf_counter()
    actions = policy.act_batch(observation, indices=alive)
    elapsed = time.perf_counter() - start
    for row, i in enumerate(alive):
        run, chunk = runs[i], policy.last_chunks[row]
        run.latencies.append(elapsed)
        run.policy_s += elapsed / len(alive)
        if chunk is not None:
            run.chunks.append(chunk)
        run.advance(actions[row])


def _summed(counts: Sequence[Any]) -> list[int]:
    """Counts per step index (K,), summed over an episode's chunks."""
    if not counts:
        return []
    return [int(n) for n in np.sum([np.asarray(count) for count in counts], axis=0)]
