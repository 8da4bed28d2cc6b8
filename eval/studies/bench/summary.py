"""From timed chunks to the figures of a cell, and from cells to speedups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asd_policy.eval.studies.bench.ceilings import BYTES
from asd_policy.eval.studies.bench.cells import Cell
from asd_policy.eval.studies.bench.contestants import Chunk
from asd_policy.eval.studies.bench.flops import NetworkSize
from asd_policy.eval.studies.bench.options import EAGER_LOOP

Json = dict[str, Any]
PARTS = ("draft", "network", "verify", "other")


def summarize(cell: Cell, chunks: Sequence[Chunk], size: NetworkSize, ceilings: Json) -> Json:
    """Latency, counts, acceptance, time split and use of the hardware."""
    latency = 1e3 * np.array([chunk.seconds for chunk in chunks])
    stats = [chunk.stats for chunk in chunks]
    calls = np.array([int(s.calls.max()) for s in stats])
    evaluations = np.array([int(s.evaluations.sum()) for s in stats])
    split = _split(chunks)
    return {
        "chunks": len(chunks),
        "latency_ms": latency_figures(latency),
        "calls": float(calls.mean()),
        "calls_standard_error": standard_error(calls),
        "calls_per_chain": float(np.mean([s.calls.float().mean() for s in stats])),
        "evaluations": float(evaluations.mean()),
        "rows_per_call": float(evaluations.sum() / calls.sum()),
        "rejections_per_chain": float(np.mean([s.rejections.float().mean() for s in stats])),
        "window_used": stats[-1].window,
        "accepted": np.sum([s.accepted.sum(0).numpy() for s in stats], axis=0).tolist(),
        "decided": np.sum([s.decided.sum(0).numpy() for s in stats], axis=0).tolist(),
        "split_ms": split,
        "split_share": {k: v / max(sum(split.values()), 1e-12) for k, v in split.items()},
        "algorithmic_speedup": float(cell.steps / calls.mean()),
        **_hardware(cell, float(calls.mean()), float(evaluations.mean()), split, size, ceilings),
        "latencies_ms": [round(float(value), 4) for value in latency],
    }


def latency_figures(milliseconds: np.ndarray) -> Json:
    """Mean, percentiles, and how far the slowest hundredth is from the middle."""
    p50, p95, p99 = (float(np.percentile(milliseconds, q)) for q in (50, 95, 99))
    return {
        "mean": float(milliseconds.mean()),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "p99_over_p50": p99 / p50,
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 for a single value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def _split(chunks: Sequence[Chunk]) -> Json:
    """Milliseconds of a chunk by phase; "noise" is drawing it, "other" what nobody claimed."""
    parts = {p: 1e3 * float(np.mean([c.stats.seconds[p] for c in chunks])) for p in PARTS[:3]}
    noise = 1e3 * float(np.mean([c.noise_s for c in chunks]))
    total = 1e3 * float(np.mean([c.seconds for c in chunks]))
    other = max(0.0, total - noise - sum(parts.values()))
    return {**parts, "noise": noise, "other": other}


def _hardware(
    cell: Cell, calls: float, evaluations: float, split: Json, size: NetworkSize, ceilings: Json
) -> Json:
    """Weights read and operations done per second of network time, against the ceilings."""
    precision = "fp32" if cell.precision == "-" else cell.precision
    whole = cell.sampler == EAGER_LOOP
    flops = size.flops + whole * size.conditioning_flops
    weights = size.weights + whole * size.conditioning_weights
    seconds = max(split["network"] / 1e3, 1e-12)
    done, read = evaluations * flops / seconds, calls * weights * BYTES[precision] / seconds
    return {
        "flop_per_s": done,
        "share_of_matmul": done / ceilings["matmul_flop_per_s"][precision],
        "weight_bytes_per_s": read,
        "share_of_copy": read / ceilings["copy_bytes_per_s"],
    }


def add_speedups(cells: Sequence[Json]) -> None:
    """Set each finished cell's "speedup": medians against those of sequential DDPM on the same
    engine and of the eager loop, both of this run; None where the other was not measured."""
    done = [c for c in cells if "latency_ms" in c]
    alike = ("network", "batch", "steps", "machine")
    same_engine = (*alike, "precision", "engine", "kernels", "compile")
    for cell in done:
        ddpm = _p50(done, "ddpm", {key: cell.get(key, 0) for key in same_engine})
        loop = _p50(done, EAGER_LOOP, {key: cell.get(key, 0) for key in alike})
        own = cell["latency_ms"]["p50"]
        clock = None if ddpm is None else ddpm / own
        cell["speedup"] = {
            "over_ddpm": clock,
            "over_eager_loop": None if loop is None else loop / own,
            "clock_per_algorithmic": None if clock is None else clock / cell["algorithmic_speedup"],
        }


def _p50(cells: Sequence[Json], sampler: str, wanted: Json) -> float | None:
    for cell in cells:
        if cell["sampler"] == sampler and all(
            cell.get(key, 0) == value for key, value in wanted.items()
        ):
            return float(cell["latency_ms"]["p50"])
    return None
