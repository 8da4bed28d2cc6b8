"""verify.json as a person reads it. Every number shown is in the file."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from asd_policy.eval.runs.formats import significant
from asd_policy.eval.show.tables import print_lines, print_tables, print_verdict, table

Json = dict[str, Any]


def print_verification(console: Console, result: Json) -> None:
    """Tables, then the verdict in one sentence."""
    tables = [_tests(result), _power(result)]
    print_tables(console, [*tables, *([_controls(result)] if result["controls"] else [])])
    print_lines(console, _setting(result))
    print_verdict(console, result["verdict"])


def _tests(result: Json) -> Table:
    rows = []
    for family, group in groupby(result["tests"], key=lambda test: test["family"]):
        tests = list(group)
        rows.append(
            [
                family,
                str(len(tests)),
                str(sum(test["differs"] for test in tests)),
                significant(max(test["statistic"] for test in tests), 3),
                significant(min(test["p_value"] for test in tests)),
                significant(min(test["p_holm"] for test in tests)),
            ]
        )
    samplers = result["samplers"]
    return table(
        ("compared", "tests", "reject", "largest\nstatistic", "smallest\np", "p after\nHolm"),
        rows,
        title=f"{samplers['sample']['name']} against {samplers['reference']['name']}",
        folded=(0,),
    )


def _power(result: Json) -> Table:
    power = result["power"]
    hardest = power["hardest"]["action"]
    rows = [
        [
            f"action[{row['action']}]" + " (hardest)" * (row["action"] == hardest),
            significant(row["deviation"], 3),
            significant(row["shift_deviations"]),
            significant(row["shift"]),
        ]
        for row in power["by_action"]
    ]
    return table(
        ("action number", "standard\ndeviation", "shift,\ndeviations", "shift,\naction units"),
        rows,
        title=f"Smallest shift caught with probability {power['probability']:.0%}",
        folded=(0,),
    )


def _controls(result: Json) -> Table:
    rows = [
        [
            row["name"],
            row["expected"],
            row["found"] if row["as_expected"] else f"{row['found']} (!)",
            f"{row['rejecting']}/{row['tests']}",
            significant(row["smallest_p_holm"]),
            row["most_telling"],
        ]
        for row in result["controls"]
    ]
    return table(
        ("control", "must be", "found", "reject", "p after\nHolm", "most telling test"),
        rows,
        title="Controls: samples whose distribution is known",
        left=(0, 5),
        folded=(0, 5),
    )


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
