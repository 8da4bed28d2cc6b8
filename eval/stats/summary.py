"""results.json: a pure function of a run's config and its episodes, so that any run can be
recomputed from what it kept."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from asd_policy.eval.runs.episode import ChunkRecord, Episode
from asd_policy.eval.runs.evaluation import Results
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.samplers import is_autospeculative
from asd_policy.eval.stats.basics import latency_ms, mean, paired_success, ratio, success_rate
from asd_policy.eval.stats.distributions import (
    calls_by_chunk,
    chunks_over,
    deadlines,
    histogram,
    latency_bins_ms,
    periods_ms,
)

_PARTS = ("draft", "network", "verify", "other")


def summarize(config: dict[str, Any], episodes: Sequence[Episode]) -> Results:
    """The content of results.json.

    Args:
        config: the run's config.json.
        episodes: what its episodes.jsonl holds, in any order and number.

    Latencies and costs are as one robot feels them: of a batched call, each environment in it
    waits for the whole call. `first` is the sampler's first call, everything else in a latency
    summary leaves out the first call of every process that took part. `period_ms` is what the robot
    allows: a control step, and the steps that a chunk is executed for; `chunks_over` counts the
    chunks that took longer. `chunk_latency_histogram` counts chunks between the edges
    `latency_bins_ms`.
    """
    settings = config["settings"]
    names = list(settings["samplers"])
    seeds = range(settings["seed"], settings["seed"] + settings["episodes"])
    # By seed, then stable: the order in which the lines were written does not matter.
    counted = sorted((e for e in episodes if e.seed in seeds), key=lambda e: e.seed)
    by_sampler = {name: [e for e in counted if e.sampler == name] for name in names}
    samplers = {name: _sampler(name, settings, by_sampler[name]) for name in names}
    periods = periods_ms(config)
    warm = {name: _warm_chunks(kept) for name, kept in by_sampler.items()}
    bins = latency_bins_ms([c["latency_s"] for chunks in warm.values() for c in chunks])
    for name, chunks in warm.items():
        samplers[name]["chunk_latency_histogram"] = histogram(
            [c["latency_s"] for c in chunks], bins
        )
        samplers[name]["chunks_over"] = chunks_over(chunks, periods)
        if remote := [c["remote"] for c in chunks if "remote" in c]:
            samplers[name]["remote_ms_per_chunk"] = {
                part: _mean_ms(remote, f"{part}_s") for part in ("network", "queue", "draw")
            }
    for summary in samplers.values():
        summary["speedup"] = _speedup(summary, samplers.get("ddpm"))
    content = {
        "schema_version": VERSION["results"],
        "complete": all(len(kept) == len(seeds) for kept in by_sampler.values()),
        "task": settings["task"],
        "seeds": {"first": seeds.start, "last": seeds.stop - 1, "count": len(seeds)},
        "num_envs": settings["num_envs"],
        "restarts": sum(e.restarts for e in counted),
        "processor_wait_share": _processor_wait_share(counted),
        "resolved": config["resolved"],
        "period_ms": periods,
        "latency_bins_ms": bins,
        "samplers": samplers,
        "paired": [
            {"a": a, "b": b, **paired_success(_outcomes(by_sampler[a]), _outcomes(by_sampler[b]))}
            for a, b in itertools.combinations(names, 2)
        ],
    }
    kept: Results = json.loads(json.dumps(content))
    return kept  # as it is read back: lists, and keys of text


def _sampler(name: str, settings: dict[str, Any], episodes: Sequence[Episode]) -> dict[str, Any]:
    chunks = _warm_chunks(episodes)
    steps = [t for e in episodes for t in (e.control_step_s[1:] if e.cold else e.control_step_s)]
    cold = next((e for e in episodes if e.cold), None)
    return {
        "success": success_rate(sum(e.success for e in episodes), len(episodes)),
        "episode_steps_mean": mean([e.steps for e in episodes]),
        "return_mean": mean([e.return_ for e in episodes]),
        "chunks": len(chunks),
        "chunk_latency_ms": latency_ms(
            cold.chunks[0]["latency_s"] if cold else None, [c["latency_s"] for c in chunks]
        ),
        "control_step_latency_ms": latency_ms(cold.control_step_s[0] if cold else None, steps),
        "network_calls_per_chunk": mean([c["calls"] for c in chunks]),
        "network_evaluations_per_chunk": mean([c["evaluations"] for c in chunks]),
        "acceptance_rate": ratio(
            sum(c["accepted"] for c in chunks), sum(c["decided"] for c in chunks)
        ),
        "rejections_per_chunk": mean([c["rejections"] for c in chunks]),
        "calls_by_chunk": calls_by_chunk(episodes),
        "acceptance_by_step": _acceptance_by_step(episodes),
        "overhead_ms_per_chunk": {part: _mean_ms(chunks, f"{part}_s") for part in _PARTS},
        "window": _window(name, settings["window"], chunks),
        "time": _time(episodes),
        "deadlines": deadlines(name, settings, episodes),
        "stages": _stages(episodes),
        "smoothness": _smoothness(episodes),
    }


def _stages(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Of the episodes that tell them (those that older versions kept do not)."""
    told = [e.stages for e in episodes if e.stages]
    summary = {}
    for name in told[0] if told else ():
        steps = [step for stages in told if (step := stages[name]) is not None]
        summary[name] = {"episodes": success_rate(len(steps), len(told)), "step_mean": mean(steps)}
    return summary


def _smoothness(episodes: Sequence[Episode]) -> dict[str, float | None]:
    told = [e.smoothness for e in episodes if e.smoothness is not None]
    names = ("jerk", "jump_at_joins", "jump_within")
    values: dict[str, list[Any]] = {name: [each[name] for each in told] for name in names}  # type: ignore[literal-required]
    return {name: mean([v for v in kept if v is not None]) for name, kept in values.items()}


def _warm_chunks(episodes: Sequence[Episode]) -> list[ChunkRecord]:
    """The coldest chunk of each process (its first) is left out of every timing, and every mean
    cost is taken over the same chunks, so that calls, latency and split describe one set."""
    return [c for e in episodes for c in (e.chunks[1:] if e.cold else e.chunks)]


def _processor_wait_share(episodes: Sequence[Episode]) -> float | None:
    """Thread-seconds of waiting for a processor that other work had, for each second of the run."""
    waits = [e.processor_wait_s for e in episodes if e.processor_wait_s is not None]
    if len(waits) < len(episodes):
        return None
    return ratio(sum(waits), sum(e.wall_s for e in episodes))


def _speedup(summary: dict[str, Any], ddpm: dict[str, Any] | None) -> dict[str, float | None]:
    """Over ddpm in the same run: mean calls (algorithmic), median chunk latency (wall clock; the
    median, because one stall of the machine would move a mean)."""
    if ddpm is None:
        return {"algorithmic": None, "wall_clock": None}
    return {
        "algorithmic": ratio(ddpm["network_calls_per_chunk"], summary["network_calls_per_chunk"]),
        "wall_clock": ratio(ddpm["chunk_latency_ms"]["p50"], summary["chunk_latency_ms"]["p50"]),
    }


def _window(name: str, requested: Any, chunks: Sequence[ChunkRecord]) -> dict[str, Any] | None:
    """Requested, and the one most chunks were drawn with; None for samplers without a window."""
    if not (is_autospeculative(name) or name == "paradigms"):
        return None
    used = Counter(c["window"] for c in chunks)
    return {
        "requested": requested,
        "chosen": used.most_common(1)[0][0] if used else None,
        "chunks_by_window": {str(window): used[window] for window in sorted(used)},
    }


def _acceptance_by_step(episodes: Sequence[Episode]) -> list[float | None] | None:
    """Share of proposals accepted at each step index (None where none was decided)."""
    accepted = [sum(n) for n in zip(*(e.accepted_by_step for e in episodes), strict=True)]
    decided = [sum(n) for n in zip(*(e.decided_by_step for e in episodes), strict=True)]
    if not any(decided):
        return None
    return [ratio(a, d) for a, d in zip(accepted, decided, strict=True)]


def _time(episodes: Sequence[Episode]) -> dict[str, Any]:
    seconds = {
        "policy": sum(e.policy_s for e in episodes),
        "simulation": sum(e.simulation_s for e in episodes),
        "rendering": sum(e.rendering_s for e in episodes),
    }
    total = sum(seconds.values())
    return {
        "total_s": total,
        "share": {part: ratio(spent, total) for part, spent in seconds.items()},
    }


def _mean_ms(chunks: Sequence[Any], key: str) -> float | None:
    seconds = mean([c[key] for c in chunks])
    return None if seconds is None else 1e3 * seconds


def _outcomes(episodes: Sequence[Episode]) -> dict[int, bool]:
    return {e.seed: e.success for e in episodes}
