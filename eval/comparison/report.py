"""A comparison as a person reads it. Every number shown is in its JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asd_policy.eval.report import MISSING, print_verdict

Json = dict[str, Any]


def print_comparison(console: Console, found: Json) -> None:
    """One comparison: success, cost, verdict."""
    console.print()
    console.print(_success(found))
    console.print()
    console.print(_ratios(found))
    console.print()
    for line in _lines(found):
        console.print(Text(line), soft_wrap=True, highlight=False)
    print_verdict(console, found["verdict"])


def _success(found: Json) -> Table:
    table = _table("success", "rate", "95% interval")
    for side in ("a", "b"):
        rate = found["success"][side]
        low, high = (100 * bound for bound in rate["ci95"])
        table.add_row(
            Text(_label(found, side)),
            f"{rate['count']}/{rate['n']}",
            f"{100 * rate['rate']:.1f}%",
            f"{low:.1f} to {high:.1f}%",
        )
    low, high = (100 * bound for bound in found["success"]["difference_ci95"])
    difference = 100 * found["success"]["difference"]
    table.add_row("difference, in points", "", f"{difference:+.1f}", f"{low:+.1f} to {high:+.1f}")
    return table


def _ratios(found: Json) -> Table:
    table = _table(*(found[side]["sampler"] for side in ("a", "b")), "ratio", "95% interval")
    for name, ratio in found["ratios"].items():
        interval = ratio["ci95"]
        table.add_row(
            Text(name),
            _number(ratio["a"]),
            _number(ratio["b"]),
            _number(ratio["ratio"]),
            MISSING if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}",
        )
    return table


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for header in headers:
        table.add_column(Text(header), justify="right", no_wrap=True)
    return table


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
    if found["different_places"]:
        lines.append(
            "Latencies are not of one setting, and their ratios not of the samplers alone: "
            + "; ".join(found["different_places"])
        )
    if found["a"]["checkpoint_sha256"] != found["b"]["checkpoint_sha256"]:
        lines.append("The checkpoints differ.")
    return lines


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"
