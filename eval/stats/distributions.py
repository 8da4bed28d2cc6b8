"""What a mean or a percentile hides: how latencies are spread, and how cost moves in an episode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asd_policy.eval.runs.episode import ChunkRecord, Episode
from asd_policy.eval.stats.basics import latency_ms, mean

_BINS_A_DECADE = 20  # 12% wide: finer than the eye needs, coarse enough for 100 chunks


def periods_ms(config: dict[str, Any]) -> dict[str, float]:
    """How long the robot may wait: milliseconds of one control step, and of the steps that one
    chunk is executed for. In a loop with delays the run's own control rate counts."""
    settings, resolved = config["settings"], config["resolved"]
    delayed = settings.get("delay") is not None
    step = 1e3 / (settings["control_rate"] if delayed else resolved["control_hz"])
    return {"step": step, "chunk": step * resolved["horizons"][1]}


def latency_bins_ms(latencies_s: Sequence[float]) -> list[float]:
    """Edges, equal on a logarithmic axis, that hold all these latencies; none of none."""
    positive = [1e3 * latency for latency in latencies_s if latency > 0]
    if not positive:
        return []
    low, high = (math.log10(end(positive)) * _BINS_A_DECADE for end in (min, max))
    exponents = range(math.floor(low), math.floor(high) + 2)
    return [float(f"{10 ** (exponent / _BINS_A_DECADE):.6g}") for exponent in exponents]


def histogram(latencies_s: Sequence[float], edges_ms: Sequence[float]) -> list[int]:
    """Latencies in each bin. Every one is counted: rounding at the two ends moves none out."""
    if not len(edges_ms):
        return []
    inside = np.clip(1e3 * np.asarray(latencies_s, float), edges_ms[0], edges_ms[-1])
    return [int(n) for n in np.histogram(inside, edges_ms)[0]]


def chunks_over(chunks: Sequence[ChunkRecord], periods: dict[str, float]) -> dict[str, int]:
    """Chunks that took longer than each period."""
    return {
        name: sum(1e3 * chunk["latency_s"] > period for chunk in chunks)
        for name, period in periods.items()
    }


def calls_by_chunk(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Network calls of an episode's first chunk, second, …: over the episodes that have it. As
    everywhere, the coldest chunk of a process is left out."""
    longest = max((len(episode.chunks) for episode in episodes), default=0)
    rows = []
    for i in range(longest):
        calls = [
            e.chunks[i]["calls"] for e in episodes if i < len(e.chunks) and not (e.cold and i == 0)
        ]
        row: dict[str, Any] = {"episodes": len(calls), "mean": None, "min": None, "max": None}
        if calls:
            row |= {"mean": float(np.mean(calls)), "min": min(calls), "max": max(calls)}
        rows.append(row)
    return rows


def deadlines(
    name: str, settings: Mapping[str, Any], episodes: Sequence[Any]
) -> dict[str, Any] | None:
    """What a sampler's delays came to, for results.json; None of a loop without delays.

    Args:
        name: of the sampler. settings: of the run. episodes: its `Episode`s.
    """
    delay = settings.get("delay")
    if delay is None:
        return None
    if isinstance(delay, list):
        delay = delay[settings["samplers"].index(name) if len(delay) > 1 else 0]
    chunks = [chunk for episode in episodes for chunk in episode.chunks]
    starts = [episode.chunks[0] for episode in episodes if episode.chunks]
    delays = latency_ms(None, [chunk["delay_s"] for chunk in chunks])
    del delays["first"]  # none is apart: the first was drawn twice
    return {
        "delay": delay,
        "control_rate_hz": settings["control_rate"],
        "chunks": len(chunks),
        "delay_ms": delays,
        "delay_steps_mean": mean([chunk["delay_steps"] for chunk in chunks]),
        "late_chunks": sum(chunk["delay_steps"] > 1 for chunk in chunks),
        "useless_chunks": sum(chunk["useless"] for chunk in chunks),
        "steps": sum(episode.steps for episode in episodes),
        "held_steps": sum(chunk["held_steps"] for chunk in chunks),
        "held_steps_at_start": sum(chunk["held_steps"] for chunk in starts),
    }
