"""One connection: its robots, and the answers to what it asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asd_policy.errors import InputError
from asd_policy.policy.draws import ChunkStats
from asd_policy.policy.environment import Environment
from asd_policy.policy.horizon import RecedingHorizon
from asd_policy.policy.sampled import SampledSource
from asd_policy.samplers.result import PHASES
from asd_policy.serving.batcher import Batcher, Drawn, Job
from asd_policy.serving.protocol import unpack
from asd_policy.serving.requests import Begin, Request, Seen, read_request


class Session:
    """What a connection has at the server: robots by its own numbers, each with a history, a queue
    and a random stream.

    Args:
        policy, batcher: that draw. seen: what the policy sees. most_robots: of one connection.
        seed: of robot 0; robot i has seed + i. None draws one for each.
    """

    def __init__(
        self,
        policy: RecedingHorizon,
        batcher: Batcher,
        seen: Seen,
        most_robots: int,
        seed: int | None = None,
    ) -> None:
        self._policy, self._batcher, self._seen = policy, batcher, seen
        self._most, self._seed = most_robots, seed
        self._places: dict[int, int] = {}  # the connection's number → the policy's index
        self._just_drawn: Sequence[int] = ()

    def answer(self, data: bytes | str, arrived: float) -> dict[str, Any] | None:
        """The answer to a message that came at that time (``time.perf_counter``); None where the
        server's health is asked for.

        Raises:
            AsdPolicyError: for this client.
        """
        request = read_request(unpack(data), self._seen, self._most)
        if request.call == "health":
            return None
        if request.call == "reset" and not request.begin:
            self._seed = None  # the same noise again would be no sample
            begin: Sequence[Begin] = [Begin(robot, None) for robot in self._places]
        else:
            begin = [*request.begin, *self._newcomers(request)]
        if begin:
            self._begin(begin)
        if request.call == "reset":
            return {"robots": len(self._places)}
        indices = [self._places[robot] for robot in request.robots]
        call = "infer" if request.call == "infer_batch" else request.call
        job = Job(call, indices, request.frames, request.committed, arrived)
        drawn = self._batcher.draw(job)
        self._just_drawn = [i for i, cost in zip(indices, drawn.costs, strict=True) if cost]
        return answer_of(request, drawn)

    def ahead(self) -> None:
        """What can be done for the next chunk when the last one is on its way."""
        indices, self._just_drawn = self._just_drawn, ()
        if indices:
            self._batcher.ahead(indices)

    def _newcomers(self, request: Request) -> list[Begin]:
        known = {*self._places, *(begin.robot for begin in request.begin)}
        return [
            Begin(robot, None if self._seed is None else self._seed + robot)
            for robot in request.robots
            if robot not in known
        ]

    def _begin(self, begin: Sequence[Begin]) -> None:
        # Noise that was drawn already is drawn again to go on after it: nobody need wait for that.
        made = [self._environment(each) for each in begin]

        def take_in() -> None:
            for each, environment in zip(begin, made, strict=True):
                if each.robot in self._places:
                    self._policy.environments[self._places[each.robot]] = environment
                else:
                    self._places[each.robot] = self._policy.join(environment)

        self._batcher.call(take_in)

    def _environment(self, begin: Begin) -> Environment:
        source = self._policy.source
        if not begin.drawn:
            return Environment(begin.seed, source.stream(begin.seed))
        if not isinstance(source, SampledSource):
            raise InputError(
                "this policy's streams cannot be gone on with; begin with another seed"
            )
        return Environment(begin.seed, source.stream(begin.seed, begin.drawn), begin.drawn)

    def close(self) -> None:
        """Forget the robots."""
        places, self._places = list(self._places.values()), {}

        def leave() -> None:
            for index in places:
                self._policy.leave(index)

        self._batcher.call(leave)


def answer_of(request: Request, drawn: Drawn) -> dict[str, Any]:
    """What is sent: of one robot, numbers; of a batch, a list with one for each.

    Nothing but the actions is an array, for openpi's ``ActionChunkBroker`` takes a row of each."""
    one = request.call != "infer_batch"
    costs = [cost for cost in drawn.costs if cost is not None]
    answer: dict[str, Any] = {}
    if drawn.actions is not None:
        answer["action" if request.call == "act" else "actions"] = (
            drawn.actions[0] if one else drawn.actions
        )
    if costs:
        counts: dict[str, list[Any]] = {
            "calls": [cost.calls for cost in costs],
            "evaluations": [cost.evaluations for cost in costs],
            "acceptance": [_acceptance(cost) for cost in costs],
        }
        answer |= {name: value[0] if one else value for name, value in counts.items()}
    if costs and request.detail:
        answer["detail"] = _detail(costs)
    if request.unused:
        answer["unused"] = list(request.unused)
    answer["server_timing"] = {
        "queue_ms": 1e3 * drawn.queue_s,
        "draw_ms": 1e3 * drawn.draw_s,
        "infer_ms": 1e3 * drawn.draw_s,  # as openpi's server calls it
        "batch": drawn.batch,
    }
    return answer


def _acceptance(cost: ChunkStats) -> float | None:
    """Share of drafts that were accepted; None where none was decided upon."""
    decided = int(cost.decided.sum())
    return None if not decided else float(cost.accepted.sum() / decided)


def _detail(costs: Sequence[ChunkStats]) -> dict[str, Any]:
    """Of chunks that were drawn together: how, accepted drafts by step, and time by phase."""
    first = costs[0]
    return {
        "sampler": first.sampler,
        "window": first.window,
        "accepted": np.stack([cost.accepted for cost in costs]).astype(np.uint16),
        "decided": np.stack([cost.decided for cost in costs]).astype(np.uint16),
        "seconds": {phase: getattr(first, f"{phase}_s") for phase in PHASES},
    }
