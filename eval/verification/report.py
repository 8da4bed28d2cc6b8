"""verify.json as a person reads it. Every number shown is in the file."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asd_policy.eval.report import MISSING, print_verdict

Json = dict[str, Any]


def print_report(console: Console, result: Json, folder: Path) -> None:
    """Tables, then the verdict in one sentence."""
    tables = [_tests(result), _power(result)]
    tables += [_controls(result)] * bool(result["controls"])
    for table in tables:
        console.print()
        console.print(table)
    console.print()
    for line in _setting(result):
        console.print(Text(line), soft_wrap=True, highlight=False)
    console.print(Text(f"Kept: {folder}/ (verify.json, verify.png, verify.svg, draws/)"))
    print_verdict(console, result["verdict"])


def _tests(result: Json) -> Table:
    samplers = result["samplers"]
    table = _table(
        f"{samplers['sample']['name']} against {samplers['reference']['name']}",
        ("compared", "tests", "reject", "largest\nstatistic", "smallest\np", "p after\nHolm"),
    )
    for family, group in groupby(result["tests"], key=lambda test: test["family"]):
        tests = list(group)
        table.add_row(
            family,
            str(len(tests)),
            str(sum(test["differs"] for test in tests)),
            f"{max(test['statistic'] for test in tests):.3g}",
            f"{min(test['p_value'] for test in tests):.2g}",
            f"{min(test['p_holm'] for test in tests):.2g}",
        )
    return table


def _power(result: Json) -> Table:
    power = result["power"]
    table = _table(
        f"Smallest shift caught with probability {power['probability']:.0%}",
        ("action number", "standard\ndeviation", "shift,\ndeviations", "shift,\naction units"),
    )
    for row in power["by_action"]:
        hardest = " (hardest)" if row["action"] == power["hardest"]["action"] else ""
        table.add_row(
            f"action[{row['action']}]{hardest}",
            f"{row['deviation']:.3g}",
            _number(row["shift_deviations"]),
            _number(row["shift"]),
        )
    return table


def _controls(result: Json) -> Table:
    table = _table(
        "Controls: samples whose law is known",
        ("control", "must be", "found", "reject", "p after\nHolm", "most telling test"),
    )
    for row in result["controls"]:
        table.add_row(
            row["name"],
            row["expected"],
            row["found"] if row["as_expected"] else f"{row['found']} (!)",
            f"{row['rejecting']}/{row['tests']}",
            f"{row['smallest_p_holm']:.2g}",
            row["most_telling"],
        )
    return table


def _table(title: str, headers: tuple[str, ...]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for i, header in enumerate(headers):
        text = i == 0 or header == "most telling test"  # wrapped where a terminal is narrow
        table.add_column(
            header, justify="left" if text else "right", overflow="fold", no_wrap=not text
        )
    return table


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2g}"


def _setting(result: Json) -> list[str]:
    subject, resolved = result["subject"], result["resolved"]
    lines = [
        f"Setting: {subject['name']}, K={resolved['steps']}, {resolved['device']}, "
        f"{resolved['precision']}, {resolved['engine']} engine with {resolved['kernels']} kernels; "
        f"alpha {result['settings']['alpha']:g} over all tests",
        f"Observations: {subject['observations']}, {subject['observations_from']}",
    ]
    for drawn in result["samplers"].values():
        lines.append(
            f"{drawn['name']}: {drawn['chunks']} chunks, {drawn['chunks_per_observation']} at each "
            f"observation, {drawn['calls_per_chunk']:.1f} calls and "
            f"{drawn['evaluations_per_chunk']:.0f} evaluations a chunk, {drawn['seconds']:.0f} s"
        )
    return lines
