"""The window that "auto" chose, against the best of the fixed ones that were measured with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from asd_policy.eval.studies.bench.summary import standard_error

Json = dict[str, Any]
WITHIN = 0.03  # of the best fixed window's time, what the chosen one may take more
_ALIKE = ("network", "steps", "batch", "precision", "engine_used", "kernels_used", "sampler")


def window_choices(cells: Sequence[Json]) -> list[Json]:
    """One for every sampler that was measured with "auto" and with two fixed windows or more.

    Where the chosen window was also measured as a fixed one, that is its time: of two measurements
    of the same, the better would be chance.
    """
    done = sorted((c for c in cells if "latency_ms" in c and c["window"] != "-"), key=_place)
    groups = [list(group) for _, group in groupby(done, key=_place)]
    return [choice for group in groups for choice in _choices(group)]


def _place(cell: Json) -> tuple[Any, ...]:
    return (*(cell[name] for name in _ALIKE), cell["compile"], cell.get("machine", 0))


def _choices(group: Sequence[Json]) -> list[Json]:
    fixed = {cell["window_used"]: cell for cell in group if cell["window"] != "auto"}
    auto = next((cell for cell in group if cell["window"] == "auto"), None)
    if auto is None or len(fixed) < 2:
        return []
    chosen = fixed.get(auto["window_used"], auto)
    best = min([chosen, *fixed.values()], key=lambda cell: cell["latency_ms"]["p50"])
    times = {"chosen": chosen["latency_ms"]["p50"], "best": best["latency_ms"]["p50"]}
    return [
        {name: chosen[name] for name in _ALIKE}
        | {
            "chosen": chosen["window_used"],
            "best": best["window_used"],
            "chosen_ms": times["chosen"],
            "best_ms": times["best"],
            "loss": times["chosen"] / times["best"] - 1,
            "loss_standard_error": _error(chosen["latencies_ms"], best["latencies_ms"]),
        }
    ]


def _error(chosen: Sequence[float], best: Sequence[float]) -> float:
    """Of the ratio, by pairs: chunks of one number have the same noise and observations."""
    pairs = min(len(chosen), len(best))
    return standard_error(np.log(chosen[:pairs]) - np.log(best[:pairs]))
