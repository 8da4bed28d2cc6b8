"""A comparison as JSON: a pure function of the two sides' episodes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from asd_policy.errors import counted
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.stats.basics import holm, paired_success, success_rate
from asd_policy.eval.stats.sequential import (
    ALPHA,
    chance_better,
    decision,
    letters,
    log_e_above,
    log_e_difference,
    valid_interval,
)
from asd_policy.eval.studies.compare.paired import difference_interval, episodes_needed, ratio_of
from asd_policy.eval.studies.compare.pairing import (
    Side,
    common_seeds,
    differing_places,
    differing_settings,
    scenes_alike,
)

Json = dict[str, Any]
NOT_WORSE, WORSE, COULD_NOT_TELL = 0, 1, 2  # exit statuses
LATENCY, CALLS = "chunk latency, median (ms)", "network calls a chunk"
# name -> (key of a chunk's record, factor, quantile or None for the mean)
RATIOS: dict[str, tuple[str, float, float | None]] = {
    LATENCY: ("latency_s", 1e3, 0.5),
    "chunk latency, p95 (ms)": ("latency_s", 1e3, 0.95),
    "chunk latency, mean (ms)": ("latency_s", 1e3, None),
    CALLS: ("calls", 1.0, None),
    "network evaluations a chunk": ("evaluations", 1.0, None),
}
_SHARED = {"latency_s"}  # by all robots that waited for one call


def compare_sides(
    a: Side,
    b: Side,
    margin: float,
    seed: int,
    by_sequential: bool = False,
    among: Collection[int] | None = None,
) -> Json:
    """One comparison: a is judged against b.

    Args:
        margin: a loss of success that would not matter. seed: of the bootstrap.
        by_sequential: the verdict goes by what is valid however often one looked. among: seeds
            that count; None is all that both have done.

    Raises:
        ValueError: no seed was done by both, or seeds began with different scenes.
    """
    seeds = common_seeds(a, b, among)
    ours, theirs = ([side.episodes[s] for s in seeds] for side in (a, b))
    success = success_of(_outcomes(ours), _outcomes(theirs), margin)
    sequential = _sequential(success, margin)
    names = _names(a, b)
    shared = any(chunk["batch"] > 1 for episode in (*ours, *theirs) for chunk in episode.chunks)
    ratios = {
        name: ratio_of(*_both(ours, theirs, key, unit), quantile, seed, shared and key in _SHARED)
        for name, (key, unit, quantile) in RATIOS.items()
    }
    return {
        "a": a.describe,
        "b": b.describe,
        "seeds": {
            "common": len(seeds),
            "same_scene": scenes_alike(a, b, seeds),
            "first": seeds[0],
            "last": seeds[-1],
            "left_out_of_a": len(a.episodes) - len(seeds),
            "left_out_of_b": len(b.episodes) - len(seeds),
        },
        "success": success,
        "sequential": sequential,
        "ratios": ratios,
        "different_places": differing_places(a, b),
        "different_settings": differing_settings(a, b),
        "verdict": _decided(names, success, sequential, margin)
        if by_sequential
        else verdict_of(names, success, margin),
    }


def _outcomes(episodes: list[Episode]) -> dict[int, bool]:
    return {episode.seed: episode.success for episode in episodes}


def success_of(ours: dict[int, bool], theirs: dict[int, bool], margin: float) -> Json:
    """Successes by seed, on those that both have: rates, their difference, and what it shows."""
    pair = paired_success(ours, theirs)
    discordant = pair["only_a"], pair["only_b"], pair["n"]
    low, high = difference_interval(*discordant, 0.90)
    return {
        "a": success_rate(pair["both"] + pair["only_a"], pair["n"]),
        "b": success_rate(pair["both"] + pair["only_b"], pair["n"]),
        **{key: pair[key] for key in ("both", "only_a", "only_b", "neither")},
        "mcnemar_p": pair["p_value"],
        "difference": (pair["only_a"] - pair["only_b"]) / pair["n"],
        "difference_ci95": list(difference_interval(*discordant, 0.95)),
        "difference_ci90": [low, high],
        "margin": margin,
        "equivalent": bool(-margin < low and high < margin),
        "not_worse": bool(low > -margin),
        "worse": bool(high < -margin),
        "episodes_needed": episodes_needed(*discordant, margin),
    }


def _sequential(success: Json, margin: float) -> Json:
    counts = success["only_a"], success["only_b"], success["a"]["n"]
    e = {
        "not_worse": float(log_e_above(*counts, -margin)),
        "difference": float(log_e_difference(*counts[:2])),
    }
    return {
        "log10_e": {name: value / math.log(10) for name, value in e.items()},
        "difference_ci95": list(valid_interval(*counts)),
        "difference_ci90": list(valid_interval(*counts, 2 * ALPHA)),
        "a_better": chance_better(*counts[:2]),
        "decision": str(decision(*counts, margin)) or None,
    }


def _both(
    ours: list[Episode], theirs: list[Episode], key: str, unit: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return _values(ours, key, unit), _values(theirs, key, unit)


def _values(episodes: list[Episode], key: str, unit: float) -> list[np.ndarray]:
    """Of every chunk but the first of a process, episode by episode."""
    chunks: list[list[Any]] = [[*e.chunks[1:]] if e.cold else [*e.chunks] for e in episodes]
    return [np.array([unit * chunk[key] for chunk in kept], dtype=float) for kept in chunks]


def _names(a: Side, b: Side) -> tuple[str, str]:
    if a.sampler != b.sampler:
        return a.sampler, b.sampler
    return f"{a.sampler} in {a.folder.name}", f"{b.sampler} in {b.folder.name}"


def _decided(names: tuple[str, str], success: Json, sequential: Json, margin: float) -> Json:
    """By e-values of 20, at whatever number of seeds it ended."""
    a, b = names
    # Of a decision on one side at 5%, as "not worse" is, the interval is that of 90%. A difference
    # is decided by another e-value than the interval's, which may still hold 0: both are told.
    level = 90 if sequential["decision"] == "not worse" else 95
    low, high = (f"{100 * bound:+.1f}" for bound in sequential[f"difference_ci{level}"])
    e_value = 10 ** min(sequential["log10_e"]["difference"], 6)
    by = f"e-value {e_value:.3g} of 20, " if sequential["decision"] in ("worse", "better") else ""
    seen = (
        f"after {counted(success['a']['n'], 'seed')}, difference "
        f"{100 * success['difference']:+.1f} points, {by}{level}% interval that holds whenever one "
        f"stops {low} to {high}"
    )
    allowed = f"{100 * margin:g} points"
    status, word, sentence = {
        "worse": (WORSE, "WORSE", f"{a} succeeds less often than {b}"),
        "better": (NOT_WORSE, "BETTER", f"{a} succeeds more often than {b}"),
        "not worse": (NOT_WORSE, "NOT WORSE", f"{a} is not worse than {b} by {allowed}"),
        None: (
            COULD_NOT_TELL,
            "NOT DECIDED",
            f"neither a difference between {a} and {b} was found, nor that {a} is not worse by "
            f"{allowed}",
        ),
    }[sequential["decision"]]
    return {"status": status, "word": word, "sentence": f"{sentence}: {seen}."}


def verdict_of(names: tuple[str, str], success: Json, margin: float) -> Json:
    """Exit status, word and sentence, by the 90% interval of the difference: two one-sided tests at
    5%."""
    a, b = names
    low, high = (f"{100 * bound:+.1f}" for bound in success["difference_ci90"])
    interval = (
        f"the difference is {100 * success['difference']:+.1f} points, 90% interval {low} to {high}"
    )
    allowed = f"{100 * margin:g} points"
    if success["equivalent"]:
        status, word = NOT_WORSE, "EQUIVALENT"
        sentence = f"{a} succeeds as often as {b}, within {allowed}: {interval}."
    elif success["not_worse"]:
        status, word = NOT_WORSE, "NOT WORSE"
        sentence = f"{a} is not worse than {b} by more than {allowed}: {interval}."
    elif success["worse"]:
        status, word = WORSE, "WORSE"
        sentence = f"{a} is worse than {b} by more than {allowed}: {interval}."
    else:
        status, word = COULD_NOT_TELL, "COULD NOT TELL, TOO FEW EPISODES"
        needed = success["episodes_needed"]
        more = (
            f"; at these rates {needed} common seeds, looked at once, would tell with a chance of "
            f"80% (there are {success['a']['n']})"
            if needed
            else ""
        )
        sentence = (
            f"whether {a} is worse than {b} by more than {allowed} is open: {interval}{more}."
        )
    return {"status": status, "word": word, "sentence": sentence}


def display_of(samplers: Sequence[str], comparisons: Sequence[Json]) -> list[Json]:
    """Samplers of one folder with their success, best first, and letters: two share one where
    McNemar's exact test, corrected for all pairs (Holm), finds no difference at 5%."""
    rates = {found[s]["sampler"]: found["success"][s] for found in comparisons for s in ("a", "b")}
    order = sorted(samplers, key=lambda name: -rates[name]["rate"])
    p_values = holm([_one_if_none(found["success"]["mcnemar_p"]) for found in comparisons])
    different = np.zeros((len(order), len(order)), dtype=bool)
    for found, p in zip(comparisons, p_values, strict=True):
        i, j = (order.index(found[s]["sampler"]) for s in ("a", "b"))
        different[i, j] = different[j, i] = p <= ALPHA
    named = zip(order, letters(different), strict=True)
    return [{"sampler": name, "success": rates[name], "letters": text} for name, text in named]


def _one_if_none(p: float | None) -> float:
    return 1.0 if p is None else p
