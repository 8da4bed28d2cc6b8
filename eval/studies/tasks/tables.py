"""The table of tasks as a person reads it. Every number is in tasks.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.formats import MISSING, number, percent, success
from asd_policy.eval.show.tables import print_lines, print_tables, table
from asd_policy.eval.show.terminal import progress_tables
from asd_policy.eval.studies.tasks.figures import NAMES, save_figure

Json = dict[str, Any]
_HEADERS = (
    "success\n95% interval", "minus DDPM\n95% interval", "calls\n/chunk", "evals\n/chunk",
    "accepted", "chunk\np50 ms", "chunk\np95 ms",
)  # fmt: skip


def show_table(content: Json, folder: Path, console: Console) -> None:
    """Print the table, and write tasks.json, tasks.png and tasks.svg into a folder that exists."""
    write_json(folder / "tasks.json", content)
    save_figure(content, folder / "tasks.svg")
    for task, row in content["tasks"].items():
        print_tables(console, [_table(task, row), *progress_tables(row["samplers"])])
        print_lines(console, [_setting(row)])
    print_lines(console, [f"Kept: {folder}/tasks.json, tasks.png, tasks.svg"])


def _table(task: str, row: Json) -> Table:
    rows = [[NAMES.get(name, name), *_cells(s)] for name, s in row["samplers"].items()]
    return table((task, *_HEADERS), rows)


def _cells(summary: Json) -> list[str]:
    latency = (summary["one_robot"] or {}).get("chunk_latency_ms", {})
    return [
        success(summary["success"]),
        _difference(summary["against_ddpm"]),
        number(summary["network_calls_per_chunk"]),
        number(summary["network_evaluations_per_chunk"]),
        percent(summary["acceptance_rate"]),
        number(latency.get("p50")),
        number(latency.get("p95")),
    ]


def _difference(pair: Json | None) -> str:
    if pair is None or pair["difference"] is None:
        return MISSING
    low, high = pair["difference"]["ci95"]
    return f"{100 * pair['difference']['estimate']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _setting(row: Json) -> str:
    seeds, machine = row["seeds"], row["machine"]
    robots = " or ".join(map(str, row["num_envs"])) or "1"
    robots = "one robot" if robots == "1" else f"{robots} robots in one batch"
    parts = [
        f"Seeds {seeds['first']}–{seeds['last']}, K={row['steps']}{_windows(row)}",
        f"success with {robots}",
    ]
    if machine is None:
        parts.append("latency not measured yet")
    else:
        place = machine["gpu"] or f"{machine['cpu']}, threads: {machine['threads']}"
        parts.append(f"latency of one robot on {place}, {machine['precision']}")
    share = row["processor_wait_share"]
    if share is not None and share > 0.05:
        parts.append(f"which waited for a processor {share:.2f} s in each second")
    if row["restarts"]:
        parts.append(f"workers died {row['restarts']} times, their episodes run again")
    if not row["complete"]:
        parts.append("NOT COMPLETE: the figures are of the episodes finished so far")
    return "; ".join(parts)


def _windows(row: Json) -> str:
    windows = {str(s["window"]) for s in row["samplers"].values() if s["window"] is not None}
    return ", window " + " or ".join(sorted(windows)) if windows else ""
