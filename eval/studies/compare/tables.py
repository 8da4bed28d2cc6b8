"""A comparison as a person reads it. Every number shown is in its JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from asd_policy.eval.runs.formats import MISSING, significant
from asd_policy.eval.show.tables import print_lines, print_tables, print_verdict, table
from asd_policy.eval.studies.compare.outcome import CALLS, LATENCY

Json = dict[str, Any]


def print_comparison(console: Console, found: Json) -> None:
    """One comparison: success, cost, verdict."""
    print_tables(console, [_success(found), _ratios(found)])
    print_lines(console, _lines(found))
    print_verdict(console, found["verdict"])


def _success(found: Json) -> Table:
    rows = []
    for side in ("a", "b"):
        rate = found["success"][side]
        low, high = (100 * bound for bound in rate["ci95"])
        counted = f"{rate['count']}/{rate['n']}", f"{100 * rate['rate']:.1f}%"
        rows.append([_label(found, side), *counted, f"{low:.1f} to {high:.1f}%"])
    low, high = (100 * bound for bound in found["success"]["difference_ci95"])
    difference = f"{100 * found['success']['difference']:+.1f}"
    rows.append(["difference, in points", "", difference, f"{low:+.1f} to {high:+.1f}"])
    return table(("", "success", "rate", "95% interval"), rows)


def _ratios(found: Json) -> Table:
    rows = []
    for name, ratio in found["ratios"].items():
        ends = ratio["ci95"]
        interval = MISSING if ends is None else " to ".join(significant(end, 3) for end in ends)
        rows.append([name, *(significant(ratio[k], 3) for k in ("a", "b", "ratio")), interval])
    samplers = (found[side]["sampler"] for side in ("a", "b"))
    return table(("", *samplers, "ratio", "95% interval"), rows)


def print_letters(console: Console, display: list[Json]) -> None:
    """Samplers that share a letter cannot be told apart."""
    rows = []
    for row in display:
        low, high = (100 * bound for bound in row["success"]["ci95"])
        counted = f"{row['success']['count']}/{row['success']['n']}", f"{low:.1f} to {high:.1f}%"
        rows.append([row["sampler"], *counted, row["letters"]])
    print_tables(console, [table(("", "success", "95% interval", "letters"), rows, left=(0, 3))])
    print_lines(
        console,
        [
            "Samplers that share a letter cannot be told apart (McNemar's exact test of each pair, "
            "Holm's correction, 5%, looked at once)."
        ],
    )


def _label(found: Json, side: str) -> str:
    name = found[side]["sampler"]
    return name if found["a"]["folder"] == found["b"]["folder"] else f"{name} in {side.upper()}"


def _lines(found: Json) -> list[str]:
    seeds, success = found["seeds"], found["success"]
    lines = []
    if found["a"]["folder"] != found["b"]["folder"]:
        lines += [f"{side.upper()}: {found[side]['folder']}" for side in ("a", "b")]
    p = success["mcnemar_p"]
    lines.append(
        f"Same seeds: {seeds['common']} ({seeds['first']} to {seeds['last']}); both succeeded "
        f"{success['both']}, only {_label(found, 'a')} {success['only_a']}, only "
        f"{_label(found, 'b')} {success['only_b']}, neither {success['neither']}; McNemar's exact "
        + ("p: none, no seed tells them apart" if p is None else f"p {p:.2g}")
    )
    low, high = (100 * bound for bound in found["sequential"]["difference_ci95"])
    lines.append(
        f"Whenever one stops: 95% interval {low:+.1f} to {high:+.1f} points; the probability that "
        f"{_label(found, 'a')} succeeds more often is {found['sequential']['a_better']:.2g}"
    )
    if unknown := seeds["common"] - seeds["same_scene"]:
        lines.append(
            f"Whether {unknown} of these seeds began with the same scene in both is not known: a "
            "run does not hold their first observations (an older version made it)"
        )
    left = seeds["left_out_of_a"], seeds["left_out_of_b"]
    if any(left):
        lines.append(
            f"Left out, because the other has not done their seeds: {left[0]} of "
            f"{_label(found, 'a')}, {left[1]} of {_label(found, 'b')}"
        )
    latency, calls = (found["ratios"][name] for name in (LATENCY, CALLS))
    if latency["ratio"] is not None and latency["ci95"] is None and calls["ci95"] is not None:
        lines.append(
            "Robots that waited for one call are no independent observations of its time: ratios "
            "of latency have no interval. Measure them with --num-envs 1"
        )
    if found["different_settings"]:
        lines.append("The settings differ: " + "; ".join(found["different_settings"]))
    if found["different_places"]:
        lines.append(
            "Latencies are not of one setting, and their ratios not of the samplers alone: "
            + "; ".join(found["different_places"])
        )
    if found["a"]["checkpoint_sha256"] != found["b"]["checkpoint_sha256"]:
        lines.append("The checkpoints differ.")
    return lines
