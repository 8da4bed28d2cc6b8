"""One episode as it is kept: a line of `episodes.jsonl`. Times are in seconds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from asd_policy.policy import ChunkStats

_DIGITS = 7  # a tenth of a microsecond


ChunkRecord: TypeAlias = dict[str, Any]


def chunk_record(chunk: ChunkStats) -> ChunkRecord:
    """A chunk as numbers. `accepted` and `decided` are summed; the episode keeps them by step.
    In a loop with delays, also when the chunk was asked for and how late it came
    (`asd_policy.eval.delay.Delay`)."""
    delay = getattr(chunk, "delay", None)
    return {
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
        **({} if delay is None else delay.record()),
    }


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
    """

    sampler: str
    seed: int
    success: bool
    steps: int
    return_: float
    cold: bool
    num_envs: int
    restarts: int
    wall_s: float
    processor_wait_s: float | None
    policy_s: float
    simulation_s: float
    rendering_s: float
    chunks: Sequence[ChunkRecord]
    accepted_by_step: Sequence[int]
    decided_by_step: Sequence[int]
    control_step_s: Sequence[float]
    scene: str | None = None

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
        record = json.loads(line)
        if not isinstance(record, Mapping):
            raise ValueError(f"an episode's line must hold a JSON object, got {record!r:.40}")
        names = {field.name.rstrip("_"): field.name for field in dataclasses.fields(cls)}
        if differing := (record.keys() ^ names.keys()) - ({"scene"} - record.keys()):
            wrong = ", ".join(sorted(differing))
            raise ValueError(f"an episode's line must hold {', '.join(names)}; wrong: {wrong}")
        return cls(**{names[key]: value for key, value in record.items()})
