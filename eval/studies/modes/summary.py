"""What came of the study, for its JSON: pure functions of counts and episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from asd_policy.eval.runs.modes import AtRow, Known, LawOf, ModesEpisode, PlayOf, Swings
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.stats.basics import paired_success, ratio, success_rate
from asd_policy.eval.studies.modes.board import ROWS
from asd_policy.eval.studies.modes.samplers import REFERENCE

_SHUFFLES = 10_000

Json = dict[str, Any]


def summarize(
    settings: Json,
    known: Sequence[Known],
    rows: Sequence[AtRow],
    edges: Sequence[float],
    swings: Sequence[Swings],
    episodes: Sequence[ModesEpisode],
) -> Json:
    """The content of modes.json."""
    players = list(dict.fromkeys(e["sampler"] for e in episodes))
    by = {name: [e for e in episodes if e["sampler"] == name] for name in players}
    outcomes = {name: {e["seed"]: e["success"] for e in each} for name, each in by.items()}
    pairs = [(name, REFERENCE) for name in players if name != REFERENCE and REFERENCE in by]
    pairs += [(name, "asd") for name in players if name.startswith("ddim") and "asd" in by]
    return {
        "schema_version": VERSION["modes"], "settings": settings,
        "known": list(known), "rows": list(rows),
        "edges": list(edges), "swings": list(swings), "law": _law(swings),
        "episodes": list(episodes),
        "play": {name: _play(each, by.get(REFERENCE)) for name, each in by.items()},
        "paired": [
            {"a": a, "b": b, "success": paired_success(outcomes[a], outcomes[b])} for a, b in pairs
        ],
    }  # fmt: skip


def _law(swings: Sequence[Swings]) -> list[LawOf]:
    found = []
    names = list(dict.fromkeys(each["sampler"] for each in swings))
    tables = {(each["sampler"], each["row"]): _triple(each) for each in swings}
    for name in names:
        mine = {row: t for (n, row), t in tables.items() if n == name}
        theirs = {row: t for (n, row), t in tables.items() if n == REFERENCE and row in mine}
        if name in (REFERENCE, "demonstrations"):
            theirs = {}
        for row, triple in mine.items():
            one = {row: theirs[row]} if row in theirs else {}
            found.append(_of(name, row, {row: triple}, one))
        found.append(_of(name, "all", mine, theirs if len(theirs) == len(mine) else {}))
    return found


def _triple(swings: Swings) -> np.ndarray:
    return np.array([swings["left"], swings["between"], swings["right"]])


def _of(name: str, row: Any, mine: dict[int, np.ndarray], theirs: dict[int, np.ndarray]) -> LawOf:
    total = np.sum(list(mine.values()), axis=0)
    # Where rows differ in chunks, as after a kill, sums over rows weigh them differently.
    alike = len(theirs) == 1 or all(mine[r].sum() == theirs[r].sum() for r in theirs)
    other = np.sum(list(theirs.values()), axis=0) if theirs and alike else None
    left, between, right = (int(n) for n in total)
    return {
        "sampler": name, "row": row,
        "right": share(right, left + right), "between": share(between, left + between + right),
        "right_gap": None if other is None else gap(right, left + right, *_right(other)),
        "between_gap": None if other is None else gap(between, total.sum(), *_between(other)),
        "distance": _distance(mine, theirs) if theirs else None,
        "p_value": _homogeneity(mine, theirs) if theirs else None,
    }  # fmt: skip


def _right(triple: np.ndarray) -> tuple[int, int]:
    return int(triple[2]), int(triple[0] + triple[2])


def _between(triple: np.ndarray) -> tuple[int, int]:
    return int(triple[1]), int(triple.sum())


def share(count: int, n: int) -> Any:
    """A share with Wilson's interval; of nothing, None."""
    return success_rate(count, n) if n else None


def gap(a: int, n_a: int, b: int, n_b: int) -> Any:
    """Difference a/n_a − b/n_b of independent counts with Newcombe's 95% interval (Statistics in
    Medicine 17, 1998, method 10): Wilson's intervals joined."""
    if not n_a or not n_b:
        return None
    first, second = success_rate(int(a), int(n_a)), success_rate(int(b), int(n_b))
    p, q = first["rate"], second["rate"]
    (low_p, high_p), (low_q, high_q) = first["ci95"], second["ci95"]
    below, above = np.hypot(p - low_p, high_q - q), np.hypot(high_p - p, q - low_q)
    return {"estimate": p - q, "ci95": [float(p - q - below), float(p - q + above)]}


def _distance(mine: dict[int, np.ndarray], theirs: dict[int, np.ndarray]) -> float:
    each = [np.abs(t / t.sum() - theirs[r] / theirs[r].sum()).sum() / 2 for r, t in mine.items()]
    return float(np.mean(each))


def _homogeneity(mine: dict[int, np.ndarray], theirs: dict[int, np.ndarray]) -> float:
    """Chi squared of each row's two lines, added up, with their degrees of freedom."""
    statistic, freedom = 0.0, 0
    for row, triple in mine.items():
        table = np.stack([triple, theirs[row]])
        table = table[:, table.sum(axis=0) > 0]
        if table.shape[1] > 1:
            found = stats.chi2_contingency(table, correction=False)
            statistic, freedom = statistic + found.statistic, freedom + found.dof
    return float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0


def _play(episodes: list[ModesEpisode], reference: list[ModesEpisode] | None) -> PlayOf:
    passed = [side for e in episodes for side in e["sides"]]
    good = [e for e in episodes if e["success"]]
    lanes: Counter[int] = Counter(sum(e["sides"]) for e in good)
    touched = sum(e["touched"] for e in episodes)
    compared = reference is not None and reference is not episodes
    found: Any = {
        "success": success_rate(len(good), len(episodes)),
        "right": share(passed.count(1), len(passed)),
        "touched": share(touched, len(passed) + touched),
        "lanes": [lanes[lane] for lane in range(-len(ROWS), len(ROWS) + 1, 2)],
        "ways": len({tuple(e["sides"]) for e in good}),
        "ways_distance": None, "ways_p": None,
        "calls_per_chunk": ratio(
            sum(e["calls"] for e in episodes), sum(e["chunks"] for e in episodes)
        ),
    }  # fmt: skip
    if compared and reference:
        found["ways_distance"], found["ways_p"] = ways_apart(episodes, reference)
    made: PlayOf = found
    return made


def ways_apart(a: Sequence[ModesEpisode], b: Sequence[ModesEpisode]) -> tuple[float, float]:
    """Total variation between the ways that two samplers took (a failure is one of its own), and
    the share of shuffled labels with as much or more."""
    ways = [str(tuple(e["sides"])) if e["success"] else "failed" for e in (*a, *b)]
    codes = np.unique(ways, return_inverse=True)[1]
    both, mine = np.bincount(codes), np.bincount(codes[: len(a)], minlength=codes.max() + 1)

    def apart(first: np.ndarray) -> np.ndarray:
        gaps = np.abs(first / len(a) - (both - first) / len(b)).sum(axis=-1) / 2
        return np.asarray(gaps)

    shuffled = np.random.default_rng(0).multivariate_hypergeometric(both, len(a), _SHUFFLES)
    observed = float(apart(mine))
    as_much = int((apart(shuffled) >= observed - 1e-12).sum())
    return observed, (1 + as_much) / (1 + _SHUFFLES)
