"""One episode as it is kept: a line of `episodes.jsonl`. Times are in seconds."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import NotRequired

from asd_policy.errors import InputError
from asd_policy.eval.runs.forms import Amount, Closed, Count, Positive, Sha256
from asd_policy.eval.runs.schemas import read

if TYPE_CHECKING:
    from asd_policy.policy import ChunkStats

_DIGITS = 7  # a tenth of a microsecond


class Remote(Closed):
    """Of a chunk that a server drew: seconds in the network, in its queue, and of drawing."""

    network_s: Amount
    queue_s: Amount
    draw_s: Amount


class ChunkRecord(Closed):
    """What a chunk cost."""

    latency_s: Amount
    batch: Positive
    calls: Count
    evaluations: Count
    rejections: Count
    accepted: Count
    decided: Count
    draft_s: Amount
    network_s: Amount
    verify_s: Amount
    other_s: float
    """The rest of latency_s; rounding may leave it below zero."""
    window: Positive
    remote: NotRequired[Remote]
    """Absent where the policy was in the evaluation's process."""


class Lateness(Closed):
    """In a loop with delays: when a chunk was asked for, and how late it came."""

    asked_at_step: Count
    delay_s: Amount
    delay_steps: Count
    held_steps: Count
    useless: bool


class LateChunk(ChunkRecord, Lateness):
    """What a chunk cost, and how late it came."""


class Smoothness(Closed):
    """How an episode moved. Where there are too few steps or chunks to tell, null."""

    jerk: Amount | None
    """m/s³, root mean square over control steps of the third derivative of a hand's position."""
    jump_at_joins: Amount | None
    """Mean change of an action, grippers apart (Euclidean norm), where a chunk follows another."""
    jump_within: Amount | None
    """The same within chunks; where the robot waits for one, nothing counts."""


def chunk_record(chunk: ChunkStats) -> ChunkRecord | LateChunk:
    """A chunk as numbers. `accepted` and `decided` are summed; the episode keeps them by step.
    In a loop with delays, also when the chunk was asked for and how late it came
    (`asd_policy.eval.rollout.delay.Delay`)."""
    cost: ChunkRecord = {
        "latency_s": round(float(chunk.latency_s), _DIGITS),
        "batch": int(chunk.batch),
        "calls": int(chunk.calls),
        "evaluations": int(chunk.evaluations),
        "rejections": int(chunk.rejections),
        "accepted": int(np.sum(chunk.accepted)),
        "decided": int(np.sum(chunk.decided)),
        "draft_s": round(float(chunk.draft_s), _DIGITS),
        "network_s": round(float(chunk.network_s), _DIGITS),
        "verify_s": round(float(chunk.verify_s), _DIGITS),
        "other_s": round(float(chunk.other_s), _DIGITS),
        "window": int(chunk.window),
    }
    remote = getattr(chunk, "remote", None)
    if remote is not None:
        network, queue, draw = (round(remote[k], _DIGITS) for k in ("network", "queue", "draw"))
        cost["remote"] = {"network_s": network, "queue_s": queue, "draw_s": draw}
    delay = getattr(chunk, "delay", None)
    if delay is None:
        return cost
    late: Lateness = delay.record()
    return {**cost, **late}


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of one sampler.

    `cold`: it holds the sampler's first call in its process, which pays for warm-up.
    `wall_s`: from reset to end. `processor_wait_s`: thread-seconds in that time in which this
    process was ready to run and other work had the processor (None where the system does not say).
    `control_step_s`: one latency per environment step, from observation in to action out.
    `policy_s`, `simulation_s`, `rendering_s`: where the episode's time went; of a batched call,
    the policy's time is shared equally among the environments it served; of several environments,
    simulations run at the same time, each measured in its own process.
    `restarts`: how often its worker process died, and the episode began again.
    `scene`: SHA-256 of the first observation, which says whether two episodes began alike
    (`asd_policy.data.scenes`); None in records that older versions kept.
    `stages`: of the task, each with the control step after which it was first reached, None where
    it was not; empty, as `smoothness` is None, in records that older versions kept.
    """

    __pydantic_config__: ClassVar = {
        "extra": "forbid",
        "alias_generator": lambda name: name.rstrip("_"),
    }
    sampler: str
    seed: Count
    success: bool
    steps: Count
    return_: float
    cold: bool
    num_envs: Positive
    restarts: Count
    wall_s: Amount
    processor_wait_s: Amount | None
    policy_s: Amount
    simulation_s: Amount
    rendering_s: Amount
    chunks: list[ChunkRecord | LateChunk]
    accepted_by_step: list[Count]
    decided_by_step: list[Count]
    control_step_s: list[Amount]
    scene: Sha256 | None = None
    stages: dict[str, Count | None] = dataclasses.field(default_factory=dict)
    smoothness: Smoothness | None = None

    def to_line(self) -> str:
        """One line of JSON. A non-finite number raises ValueError: it would not be JSON."""
        fields = dataclasses.asdict(self)
        for key, value in fields.items():
            if key.endswith("_s") and isinstance(value, float):
                fields[key] = round(value, _DIGITS)
        fields["control_step_s"] = [round(t, _DIGITS) for t in self.control_step_s]
        named = {key.rstrip("_"): value for key, value in fields.items()}
        return json.dumps(named, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str | bytes) -> Episode:
        """Read `to_line` back. Raises ValueError for anything but a whole record."""
        try:
            return read("episode", line)
        except ValueError as error:
            raise InputError(f"an episode's line must hold a whole Episode: {error}") from error
