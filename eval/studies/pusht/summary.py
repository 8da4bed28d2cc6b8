"""What came of a comparison, for its JSON and for people: pure functions of its episodes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from asd_policy.errors import counted
from asd_policy.eval.runs.formats import MISSING
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.runs.studies import PushT, PushTEpisode
from asd_policy.eval.show.tables import print_lines, print_tables, table
from asd_policy.eval.stats.basics import paired_success, ratio, success_rate

Json = dict[str, Any]
# LeRobot's own loops (a DDPM of 100 steps; a DDIM of 10), this package's, and who taught.
SAMPLERS = ("own", "ddpm", "asd", "ddim-10", "expert")


def summarize(settings: Json, episodes: list[PushTEpisode]) -> PushT:
    """The content of pusht.json."""
    names = [name for name in SAMPLERS if any(e["sampler"] == name for e in episodes)]
    by = {n: {e["seed"]: e for e in episodes if e["sampler"] == n} for n in names}
    pairs = itertools.combinations([name for name in names if name != "expert"], 2)
    content: Any = {
        "schema_version": VERSION["pusht"],
        "settings": settings,
        "samplers": {name: _sampler(list(found.values())) for name, found in by.items()},
        "paired": [{"a": b, "b": a, **_pair(by[b], by[a])} for a, b in pairs],
        "episodes": episodes,
    }
    made: PushT = content
    return made


def _sampler(episodes: Sequence[Any]) -> Json:
    def of_chunk(key: str, scale: float = 1.0) -> float | None:
        return ratio(scale * sum(e[key] for e in episodes), sum(e["chunks"] for e in episodes))

    return {
        "success": success_rate(sum(e["success"] for e in episodes), len(episodes)),
        "overlap_mean": statistics.fmean(e["overlap"] for e in episodes),
        "steps_median": float(statistics.median(e["steps"] for e in episodes)),
        "calls_per_chunk": of_chunk("calls"),
        "evaluations_per_chunk": of_chunk("evaluations"),
        "processor_ms_per_chunk": of_chunk("processor_s", 1e3),
        "wall_ms_per_chunk": of_chunk("wall_s", 1e3),
    }


def _pair(a: dict[int, PushTEpisode], b: dict[int, PushTEpisode]) -> Json:
    outcomes = ({seed: e["success"] for seed, e in side.items()} for side in (a, b))
    seeds = sorted(a.keys() & b.keys())
    return {
        "success": paired_success(*outcomes),
        "overlap": paired_mean([a[s]["overlap"] for s in seeds], [b[s]["overlap"] for s in seeds]),
    }


def paired_mean(a: Sequence[float], b: Sequence[float]) -> Json | None:
    """Mean of a − b with Student's 95% interval; None of fewer than two pairs."""
    gaps = np.subtract(a, b)
    if len(gaps) < 2:
        return None
    middle = float(gaps.mean())
    half = float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    return {"estimate": middle, "ci95": [max(-1.0, middle - half), min(1.0, middle + half)]}


def tally(episodes: Sequence[PushTEpisode]) -> str:
    """Successes of each sampler so far."""
    outcomes: dict[str, list[bool]] = {}
    for episode in episodes:
        outcomes.setdefault(episode["sampler"], []).append(episode["success"])
    return "  ".join(f"{name} {sum(found)}/{len(found)}" for name, found in outcomes.items())


def print_comparison(console: Console, found: Any) -> None:
    """One table, and what it is of."""
    samplers, settings = found["samplers"], found["settings"]
    first = next(iter(samplers))
    pairs = {pair["a"]: pair for pair in found["paired"] if pair["b"] == first}
    headers = (
        "", "success", "95%", "overlap", "calls", "evals", "CPU\nms", f"success\n− {first}",
        f"overlap\n− {first}",
    )  # fmt: skip
    rows = [_row(name, each, pairs.get(name)) for name, each in samplers.items()]
    print_tables(console, [table(headers, rows, dense=True)])
    print_lines(
        console,
        [
            f"{settings['parameters'] / 1e6:.1f} M parameters, {settings['training_steps']} steps "
            f"of lerobot-train. {settings['cpu']}, {counted(settings['threads'], 'thread')}.",
            "Overlap: LeRobot's largest reward of an episode, the mean, in %.",
            "Differences are in points, on the same seeds, with 95% intervals.",
            "Calls, evaluations and milliseconds of the processor are a chunk's.",
        ],
    )


def _row(name: str, sampler: Any, pair: Any) -> list[str]:
    success = sampler["success"]
    low, high = (100 * end for end in success["ci95"])
    costs = [
        (sampler["calls_per_chunk"], ".1f"),
        (sampler["evaluations_per_chunk"], ".0f"),
        (sampler["processor_ms_per_chunk"], ".0f"),
    ]
    gaps = (pair["success"]["difference"], pair["overlap"]) if pair else (None, None)
    return [
        name,
        f"{success['count']}/{success['n']}",
        f"{low:.0f}–{high:.0f}",
        f"{100 * sampler['overlap_mean']:.1f}",
        *(MISSING if value is None else format(value, form) for value, form in costs),
        *(_points(gap, form) for gap, form in zip(gaps, ("+.0f", "+.1f"), strict=True)),
    ]


def _points(gap: Any, form: str) -> str:
    if gap is None:
        return MISSING
    middle, low, high = (format(100 * x, form) for x in (gap["estimate"], *gap["ci95"]))
    return f"{middle} [{low} {high}]"
