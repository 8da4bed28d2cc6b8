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

6. `--execution waiting` is the loop of those that do not draw and move at once: the robot holds
   still until a chunk arrives, executes Ta actions from the chunk's first one on, and asks again.
7. `--execution overlapped` is rule 3 with chunks that are given the actions that will have been
   executed when they arrive (as late as the last one is assumed, and at first none), by inpainting
   in the chain: their distribution is another one (`asd_policy.policy.inpaint`).

A measured delay is the latency of this very chunk on this machine. The first chunk of a process
pays for warming up, which is done before a robot moves: it is sampled twice from the same noise,
and the second time counts as its delay. (Chunks that are given actions are of another chain, of
which one is sampled beforehand, too.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from asd_policy.errors import InputError
from asd_policy.eval.rollout.loop import Policy
from asd_policy.eval.runs.episode import Lateness
from asd_policy.eval.slots import Observation

if TYPE_CHECKING:
    from asd_policy.policy import ChunkStats


@dataclasses.dataclass
class Delay:
    """When a chunk was asked for, and how late it came.

    `step`: of the episode, at which it was asked for. `seconds`, `steps`: from there to its
    arrival. `held_steps`: in which the robot had nothing to do but wait for it, one after another
    from `held_from` on. `useless`: every action was meant for a time that had passed.
    """

    step: int
    seconds: float
    steps: int
    useless: bool
    held_steps: int = 0
    held_from: int = 0

    def hold(self, step: int) -> None:
        """The robot waits in this step."""
        if not self.held_steps:
            self.held_from = step
        self.held_steps += 1

    def held(self) -> range:
        """The steps in which it waited."""
        return range(self.held_from, self.held_from + self.held_steps)

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
    """Actions (H, dim), the first of them meant for the step `begin`."""

    actions: np.ndarray
    delay: Delay
    begin: int

    def at(self, step: int) -> np.ndarray | None:
        """The action meant for a step; None when there is none any more."""
        ahead = step - self.begin
        return self.actions[ahead] if ahead < len(self.actions) else None


class _Robot:
    """One environment's time, the plan it follows and the one it waits for."""

    def __init__(self, seed: int, held: Sequence[int]):
        self.seed, self._held = seed, list(held)
        self.step = self.ask_at = self.expected = 0
        self._plan: _Plan | None = None
        self._coming: _Plan | None = None
        self._last: np.ndarray | None = None

    def expect(self, actions: np.ndarray, delay: Delay, action_horizon: int, wait: bool) -> None:
        """A chunk that was asked for now; `wait`: the robot does nothing else meanwhile."""
        self._arrive()
        if wait:
            arrival = self.step + delay.steps
            self._plan = None
            self._coming = _Plan(actions[:action_horizon], delay, arrival)
            self.ask_at = arrival + action_horizon
        else:
            self._coming = _Plan(actions, delay, self.step)
            self.ask_at = self.step + max(action_horizon, delay.steps)
        self.expected = delay.steps

    def committed(self, steps: int) -> np.ndarray | None:
        """Actions that will be executed in the next steps; None without a plan."""
        self._arrive()
        if self._plan is None:
            return None
        return self._plan.actions[self.step - self._plan.begin :][:steps]

    def act(self) -> np.ndarray:
        """The action of this step; the next call is about the next step."""
        self._arrive()
        action = None if self._plan is None else self._plan.at(self.step)
        if action is None:
            assert self._coming is not None, "with no plan left, one must be on its way"
            self._coming.delay.hold(self.step)
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
        execution: "waiting", "late" or "overlapped".
    """

    def __init__(
        self,
        policy: Policy,
        delay_s: float | None,
        rate_hz: float,
        held: Sequence[int] = (),
        execution: str = "late",
    ):
        self._policy, self._delay_s, self._rate, self._held = policy, delay_s, rate_hz, held
        self._execution = execution
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
        chunks = self._predict(indices)
        told = []
        for index, actions, cost in zip(indices, chunks, self._policy.last_chunks, strict=True):
            assert cost is not None
            seconds = cost.latency_s if self._delay_s is None else self._delay_s
            robot, steps = self._robots[index], steps_of(seconds, self._rate)
            wait = self._execution == "waiting"
            delay = Delay(robot.step, seconds, steps, useless=steps > tp - to and not wait)
            robot.expect(actions, delay, action_horizon, wait)
            fields = {**vars(cost), **self._first, "delay": delay}
            told.append(cast("ChunkStats", SimpleNamespace(**fields)))
        self._first = {}
        return told

    def _predict(self, indices: Sequence[int]) -> np.ndarray:
        if self._execution != "overlapped":
            return self._policy.predict(indices)
        robots = [self._robots[index] for index in indices]
        given = [robot.committed(self._expected(robot)) for robot in robots]
        none = next((actions[:0] for actions in given if actions is not None), None)
        if none is None:
            return self._policy.predict(indices)
        return self._policy.predict(indices, [none if a is None else a for a in given])

    def _expected(self, robot: _Robot) -> int:
        """Steps after which the next chunk is expected."""
        return robot.expected if self._delay_s is None else steps_of(self._delay_s, self._rate)

    def _warm(self, observations: Observation, indices: Sequence[int]) -> None:
        """Sample the first chunk of this process once more, beforehand. Its record tells what it
        took now, cold, as it does in the ordinary loop."""
        self._cold = False
        chunks = self._policy.predict(indices)
        cost = vars(self._policy.last_chunks[0])
        self._first = {key: value for key, value in cost.items() if key.endswith("_s")}
        if self._execution == "overlapped":  # another chain, with a first chunk of its own
            self._policy.predict(indices, [actions[:1] for actions in chunks])
        for index in indices:
            self._policy.reset_env(index, self._robots[index].seed)
        self._policy.observe(observations, indices)


def steps_of(seconds: float, rate_hz: float) -> int:
    """Control steps that pass in a delay, each that has begun counted whole."""
    return math.ceil(seconds * rate_hz - 1e-9)  # 0.15 s at 20 Hz is 3 steps, whatever floats say


def delayed(
    policies: Mapping[str, Policy],
    delay: str | float | Sequence[float],
    rate_hz: float,
    held: Sequence[int],
    execution: str = "late",
) -> dict[str, DelayedPolicy]:
    """The policies with `delay`: "measured", or milliseconds, of all or of each in their order.

    Raises:
        ValueError: overlapped execution of a policy whose chunks cannot be given actions.
    """
    each: list[Any] = list(delay) if isinstance(delay, (list, tuple)) else [delay]
    seconds = [None if one == "measured" else 1e-3 * float(one) for one in each]
    if len(seconds) == 1:
        seconds *= len(policies)
    if execution == "overlapped" and not all(p.source.conditions for p in policies.values()):
        raise InputError(
            "--execution overlapped needs chunks that can be given committed actions, and this "
            "policy's cannot"
        )
    return {
        name: DelayedPolicy(policy, late, rate_hz, held, execution)
        for (name, policy), late in zip(policies.items(), seconds, strict=True)
    }
