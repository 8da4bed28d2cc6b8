"""Latency in the loop: the world goes on while the policy thinks.

The rules, for a chunk of which Ta actions are executed and H = Tp − To + 1 are meant for the time
from its observation on:

1. The simulated world takes one control step after another; one of them passes in 1/rate seconds of
   the wall clock (`--control-rate`; the simulation itself always steps by what the policy was
   trained for). A delay of d seconds is thus n = ⌈d·rate⌉ control steps, and 0 of no delay.
2. The policy is asked at the first step of an episode, and again Ta steps after it was last asked,
   or when that chunk arrives, if it takes longer: there is one chunk in the making at a time. It
   sees the observation of the moment at which it is asked.
3. The chunk arrives n steps later. Of its actions, each of which is meant for one step, those whose
   time has passed are skipped: execution begins with the action meant for now, and goes on until
   the next chunk arrives. (So the policy is asked as often as in the ordinary loop, once in Ta
   steps. Were Ta actions executed from the arrival on, each plan would be older by its delay a
   second time.) A chunk is never cut short: its denoising runs to the end, however late.
4. Until a chunk arrives, the last one's remaining actions (Ta … H−1) are executed. When they too
   are used up, and before an episode's first chunk, the robot holds still: no motion, grippers as
   last commanded. Each such step is a missed deadline, counted with the chunk that is waited for.
5. A chunk that arrives after all H steps have passed is useless: nothing of it is executed, the
   robot goes on holding still, and the policy is asked anew.

A measured delay is the latency of this very chunk on this machine. The first chunk of a process
pays for warming up, which is done before a robot moves: it is sampled twice from the same noise,
and the second time counts as its delay.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np

from asd_policy.eval.rollout.loop import Policy
from asd_policy.eval.runs.episode import Lateness
from asd_policy.eval.slots import Observation

if TYPE_CHECKING:
    from asd_policy.policy import ChunkStats


@dataclasses.dataclass
class Delay:
    """When a chunk was asked for, and how late it came.

    `step`: of the episode, at which it was asked for. `seconds`, `steps`: from there to its
    arrival. `held_steps`: in which the robot had nothing to do but wait for it. `useless`: every
    action was meant for a time that had passed.
    """

    step: int
    seconds: float
    steps: int
    useless: bool
    held_steps: int = 0

    def record(self) -> Lateness:
        """For the chunk's record in `episodes.jsonl`."""
        return {
            "asked_at_step": self.step,
            "delay_s": round(self.seconds, 7),
            "delay_steps": self.steps,
            "held_steps": self.held_steps,
            "useless": self.useless,
        }


@dataclasses.dataclass
class _Plan:
    """Actions (H, dim), the first of them meant for the step at which it was asked for."""

    actions: np.ndarray
    delay: Delay

    def at(self, step: int) -> np.ndarray | None:
        """The action meant for a step; None when there is none any more."""
        ahead = step - self.delay.step
        return self.actions[ahead] if ahead < len(self.actions) else None


class _Robot:
    """One environment's time, the plan it follows and the one it waits for."""

    def __init__(self, seed: int, held: Sequence[int]):
        self.seed, self._held = seed, list(held)
        self.step = self.ask_at = 0
        self._plan: _Plan | None = None
        self._coming: _Plan | None = None
        self._last: np.ndarray | None = None

    def expect(self, plan: _Plan, action_horizon: int) -> None:
        """A chunk that was asked for now."""
        self._arrive()
        self._coming = plan
        self.ask_at = self.step + max(action_horizon, plan.delay.steps)

    def act(self) -> np.ndarray:
        """The action of this step; the next call is about the next step."""
        self._arrive()
        action = None if self._plan is None else self._plan.at(self.step)
        if action is None:
            assert self._coming is not None, "with no plan left, one must be on its way"
            self._coming.delay.held_steps += 1
            action = self._hold(self._coming.actions[0])
        self.step += 1
        self._last = action
        return action

    def _arrive(self) -> None:
        if self._coming and self.step >= self._coming.delay.step + self._coming.delay.steps:
            self._plan, self._coming = self._coming, None

    def _hold(self, like: np.ndarray) -> np.ndarray:
        action = np.zeros_like(like)
        if self._last is not None:
            action[self._held] = self._last[self._held]
        return action


class DelayedPolicy:
    """A policy whose chunks come late, in an otherwise ordinary loop (the rules are above).

    Args:
        policy: samples the chunks.
        delay_s: of each chunk, in seconds of the wall clock; None is as long as it took.
        rate_hz: control steps in a second of the wall clock.
        held: components of an action that are repeated while the robot holds still (the command
            of a gripper); the others are then 0.
    """

    def __init__(
        self, policy: Policy, delay_s: float | None, rate_hz: float, held: Sequence[int] = ()
    ):
        self._policy, self._delay_s, self._rate, self._held = policy, delay_s, rate_hz, held
        self._cold = delay_s is None
        self._first: dict[str, float] = {}  # seconds of the cold chunk, until it is reported
        self._robots: list[_Robot] = []
        self.last_chunks: list[ChunkStats | None] = []

    @property
    def observation_keys(self) -> dict[str, int]:
        """The policy's."""
        return self._policy.observation_keys

    def reset(self, seeds: Sequence[int]) -> None:
        """As the policy's."""
        self._policy.reset(seeds)
        self._robots = [_Robot(seed, self._held) for seed in seeds]

    def reset_env(self, index: int, seed: int) -> None:
        """As the policy's."""
        self._policy.reset_env(index, seed)
        self._robots[index] = _Robot(seed, self._held)

    def queued(self, index: int) -> int:
        """Steps that one environment can take before the policy is asked again."""
        return self._robots[index].ask_at - self._robots[index].step

    def coming(self, index: int) -> list[np.ndarray]:
        """None that is certain: a chunk that arrives replaces what was planned."""
        return []

    def act_batch(self, observations: Observation, indices: Sequence[int]) -> np.ndarray:
        """The actions that the robots execute now."""
        self._policy.observe(observations, indices)
        costs: list[ChunkStats | None] = [None] * len(indices)
        rows = [row for row, index in enumerate(indices) if not self.queued(index)]
        if rows:
            asked = [indices[row] for row in rows]
            if self._cold:
                self._warm(observations, asked)
            for row, cost in zip(rows, self._ask(asked), strict=True):
                costs[row] = cost
        self.last_chunks = costs
        return np.stack([self._robots[index].act() for index in indices])

    def _ask(self, indices: Sequence[int]) -> list[ChunkStats]:
        """Have chunks sampled; tells their costs, each with its `delay`."""
        to, action_horizon, tp = self._policy.horizons
        chunks = self._policy.predict(indices)
        told = []
        for index, actions, cost in zip(indices, chunks, self._policy.last_chunks, strict=True):
            assert cost is not None
            seconds = cost.latency_s if self._delay_s is None else self._delay_s
            robot, steps = self._robots[index], steps_of(seconds, self._rate)
            delay = Delay(robot.step, seconds, steps, useless=steps > tp - to)
            robot.expect(_Plan(actions, delay), action_horizon)
            fields = {**vars(cost), **self._first, "delay": delay}
            told.append(cast("ChunkStats", SimpleNamespace(**fields)))
        self._first = {}
        return told

    def _warm(self, observations: Observation, indices: Sequence[int]) -> None:
        """Sample the first chunk of this process once more, beforehand. Its record tells what it
        took now, cold, as it does in the ordinary loop."""
        self._cold = False
        self._policy.predict(indices)
        cost = vars(self._policy.last_chunks[0])
        self._first = {key: value for key, value in cost.items() if key.endswith("_s")}
        for index in indices:
            self._policy.reset_env(index, self._robots[index].seed)
        self._policy.observe(observations, indices)


def steps_of(seconds: float, rate_hz: float) -> int:
    """Control steps that pass in a delay, each that has begun counted whole."""
    return math.ceil(seconds * rate_hz - 1e-9)  # 0.15 s at 20 Hz is 3 steps, whatever floats say


def delayed(
    policies: Mapping[str, Policy], delay: str | float, rate_hz: float, held: Sequence[int]
) -> dict[str, DelayedPolicy]:
    """The policies with `delay`: "measured", or milliseconds."""
    seconds = None if delay == "measured" else 1e-3 * float(delay)
    return {
        name: DelayedPolicy(policy, seconds, rate_hz, held) for name, policy in policies.items()
    }
