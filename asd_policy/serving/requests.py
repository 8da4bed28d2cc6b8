"""What clients ask: messages, checked against what the policy sees.

A message without an entry ``asd_policy`` is openpi's: an observation, for which a chunk is wanted.
The entry, a mapping, says more:

    call    "infer" (a chunk), "infer_batch" (chunks for several robots), "act" (the next action of
            the robot's queue), "observe", "reset", "health"
    robots  numbers of this connection's robots, one for each row (default 0, 1, …)
    begin   robots that begin an episode first: [number, seed, chunks that were drawn from it]
    detail  true: the answer tells accepted drafts step by step
    committed  actions (n, action_dim) of each row from now on, that its chunk is given: see
            ``asd_policy.policy.inpaint``; for "infer" and "infer_batch"

Observations are (\\*shape) of each key; (To, \\*shape) are the last To, oldest first. In
a batch there is one axis of robots before that. A text is a string, or an array of one for each of
To and of the robots; openpi's ``prompt`` is taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asd_policy.errors import InputError, MessageError, did_you_mean
from asd_policy.policy.observations import check_shapes, numbers, shapes_seen, text
from asd_policy.serving.protocol import KEY

CALLS = ("infer", "infer_batch", "act", "observe", "reset", "health")
PROMPT = "prompt"  # openpi's name of what the robot is to do
MOST_DRAWN = 10_000  # chunks that a stream is moved on by; drawing their noise takes half a second
_ENTRIES = {"call", "robots", "begin", "detail", "committed"}
Frames = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Seen:
    """What a policy sees: key → shape of one observation, To, how many it remembers, and which of
    them are text."""

    shapes: Mapping[str, tuple[int, ...]]
    length: int
    texts: Sequence[str] = ()

    @classmethod
    def by(cls, policy: Any) -> Seen:
        """What this policy does."""
        return cls(shapes_seen(policy), policy.horizons[0], policy.texts)

    @property
    def numbers(self) -> Mapping[str, tuple[int, ...]]:
        """Key → shape of what is no text."""
        return {key: shape for key, shape in self.shapes.items() if key not in self.texts}

    def lead(self, arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """The axes before one observation's own, as most of the arrays have them that end in their
        key's shape: one that is wrong must not make the others look so."""
        own = {key: value.ndim - len(self.shapes[key]) for key, value in arrays.items()}
        axes = {key: value.shape[: max(0, own[key])] for key, value in arrays.items()}
        right = [k for k, v in arrays.items() if v.shape == (*axes[k], *self.shapes[k])]
        votes = [axes[key] for key in right or arrays]
        return max(votes, key=votes.count, default=())

    def frames(self, observation: Mapping[str, Any], lead: tuple[int, ...]) -> Frames:
        """Observations (\\*lead, \\*shape) or (\\*lead, n, \\*shape), as n of (B, \\*shape).

        Raises:
            ValueError: values that are no numbers, or of other shapes.
            NonFiniteError: a NaN or infinity among them.
        """
        arrays = {k: numbers(k, observation[k]) for k in self.numbers if k in observation}
        found = self.lead(arrays)
        stacked = len(found) == len(lead) + 1
        count = found[-1] if stacked else 1
        if count not in (1, self.length):  # of others it is not known which are new
            wanted = "" if self.length == 1 else f", or the last {self.length}"
            raise InputError(f"expected one observation{wanted}; got {count}")
        whole = (*lead, count) if stacked else lead
        arrays |= {k: _text(k, observation[k], whole) for k in self.texts if k in observation}
        expected = {key: (*whole, *shape) for key, shape in self.shapes.items()}
        check_shapes(observation, expected, {key: value.shape for key, value in arrays.items()})
        rows = {
            key: value.reshape((*(lead or (1,)), count, *self.shapes[key]))
            for key, value in arrays.items()
        }
        return [{key: value[:, t] for key, value in rows.items()} for t in range(count)]


def _text(key: str, value: Any, whole: tuple[int, ...]) -> np.ndarray:
    """Of this shape, where one string may stand for all, or one for each robot."""
    array = text(key, value)
    if array.shape == whole[: array.ndim]:
        array = np.broadcast_to(
            array.reshape(array.shape + (1,) * (len(whole) - array.ndim)), whole
        )
    return array


@dataclass(frozen=True)
class Begin:
    """A robot that begins an episode: its seed, and chunks that were drawn from that."""

    robot: int
    seed: int | None
    drawn: int = 0


@dataclass(frozen=True)
class Request:
    """A message, understood. ``robots``: of the rows; ``unused``: entries that are not seen."""

    call: str
    robots: Sequence[int] = ()
    begin: Sequence[Begin] = ()
    frames: Frames = field(default_factory=list)
    detail: bool = False
    unused: Sequence[str] = ()
    committed: Sequence[np.ndarray] | None = None


def read_request(message: dict[str, Any], seen: Seen, most_robots: int) -> Request:
    """What a client's message asks.

    Raises:
        MessageError: an entry that there is not, or that cannot be understood.
        ValueError, NonFiniteError: observations that the policy cannot see.
    """
    asked = message.pop(KEY, {})
    if not isinstance(asked, dict) or not all(isinstance(name, str) for name in asked):
        raise MessageError(f"the entry {KEY!r} must be a mapping of names, got {asked!r:.80}")
    unknown = sorted(set(asked) - _ENTRIES)
    if unknown:
        near = did_you_mean(unknown[0], _ENTRIES)
        raise MessageError(f"{KEY!r} has {', '.join(sorted(_ENTRIES))}; got {unknown[0]!r}{near}")
    call = asked.get("call", "infer")
    if not isinstance(call, str) or call not in CALLS:
        raise MessageError(f"call must be one of {', '.join(CALLS)}; got {call!r:.80}")
    begin = [_begin(entry, most_robots) for entry in _list(asked.get("begin", []), "begin")]
    if call in ("reset", "health"):
        return Request(call, begin=begin)
    rows = _rows(message, seen) if call == "infer_batch" else 1
    for key in seen.texts:
        if key not in message and PROMPT in message:
            message[key] = message.pop(PROMPT)
    robots = _list(asked.get("robots", list(range(rows))), "robots")
    for number in robots:
        _check_robot(number, most_robots)
    if len(robots) != rows or len(set(robots)) != rows:
        raise MessageError(f"robots must be {rows} different numbers, got {robots!r:.80}")
    frames = seen.frames(message, (rows,) if call == "infer_batch" else ())
    unused = sorted(set(message) - set(seen.shapes))
    given = _committed(asked["committed"], call, rows) if "committed" in asked else None
    return Request(call, robots, begin, frames, asked.get("detail") is True, unused, given)


def _rows(message: Mapping[str, Any], seen: Seen) -> int:
    lead = seen.lead({k: numbers(k, message[k]) for k in seen.numbers if k in message})
    if not lead or lead[0] < 1:
        raise InputError("expected observations of one robot or more, got none")
    return lead[0]


def _committed(value: Any, call: str, rows: int) -> list[np.ndarray]:
    if call not in ("infer", "infer_batch"):
        raise MessageError(f"committed is for infer and infer_batch, got it with {call}")
    each = [numbers("committed", actions) for actions in _list(value, "committed")]
    if len(each) != rows:
        raise MessageError(f"committed must list the actions of {rows} rows, got {len(each)}")
    return each


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise MessageError(f"{name} must be a list, got {value!r:.80}")
    return value


def _check_robot(number: Any, most_robots: int) -> None:
    if type(number) is not int or not 0 <= number < most_robots:
        raise MessageError(
            f"robots must be numbers from 0 to {most_robots - 1}, got {number!r:.80}"
        )


def _begin(entry: Any, most_robots: int) -> Begin:
    values = [*entry, 0] if isinstance(entry, list) and len(entry) == 2 else entry
    if not isinstance(values, list) or len(values) != 3:
        raise MessageError(f"begin must list [robot, seed, drawn], got {entry!r:.80}")
    robot, seed, drawn = values
    _check_robot(robot, most_robots)
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
        raise MessageError(
            f"a seed must be a whole number from 0 to 2^64 − 1, or None; got {seed!r:.80}"
        )
    if type(drawn) is not int or not 0 <= drawn <= MOST_DRAWN:
        raise MessageError(f"drawn must be a number up to {MOST_DRAWN}, got {drawn!r:.80}")
    if drawn and seed is None:
        raise MessageError("a stream without a seed cannot be gone on with")
    return Begin(robot, seed, drawn)
