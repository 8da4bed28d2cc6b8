"""The table of tasks as a person reads it: on the screen and as a figure. Every number is in
tasks.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asd_policy.eval.benchmarks.plots import STYLE, colour
from asd_policy.eval.formats import amount, tick
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.samplers import is_autospeculative
from asd_policy.files import writing

Json = dict[str, Any]
_MISSING = "–"
# Columns of the printed table. Where there are fewer the terminal breaks the lines; rich would cut
# the figures off.
WIDTH = 104
_NAMES = {
    "ddpm": "DDPM",
    "asd": "ASD",
    "asd-paper": "ASD, paper's",
    "asd-frozen": "ASD, frozen, 1 call",
    "paradigms": "ParaDiGMS",
    "ddim-10": "DDIM-10",
    "ddim-16": "DDIM-16",
}
_HEADERS = (
    "success\n95% interval", "minus DDPM\n95% interval", "calls\n/chunk", "evals\n/chunk",
    "accepted", "chunk\np50 ms", "chunk\np95 ms",
)  # fmt: skip


def show_table(content: Json, folder: Path, console: Console) -> None:
    """Print the table, and write tasks.json, tasks.png and tasks.svg into a folder that exists."""
    write_json(folder / "tasks.json", content)
    with matplotlib.rc_context(STYLE), writing(folder / "tasks.png"):
        figure = tasks_figure(content)
        for suffix in ("svg", "png"):
            figure.savefig(folder / f"tasks.{suffix}", dpi=160, bbox_inches="tight")
    for task, row in content["tasks"].items():
        console.print()
        console.print(_printed(task, row))
        console.print(Text(_setting(row)), soft_wrap=True)
    console.print(Text(f"\nKept: {folder}/tasks.json, tasks.png, tasks.svg"), soft_wrap=True)


def _printed(task: str, row: Json) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column(Text(f"\n{task}"), no_wrap=True)
    for header in _HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for name, summary in row["samplers"].items():
        table.add_row(Text(_NAMES.get(name, name)), *_cells(summary))
    return table


def _cells(summary: Json) -> list[str]:
    latency = (summary["one_robot"] or {}).get("chunk_latency_ms", {})
    return [
        _success(summary["success"]),
        _difference(summary["against_ddpm"]),
        _number(summary["network_calls_per_chunk"]),
        _number(summary["network_evaluations_per_chunk"]),
        _percent(summary["acceptance_rate"]),
        _number(latency.get("p50")),
        _number(latency.get("p95")),
    ]


def _success(success: Json) -> str:
    if not success["n"]:
        return _MISSING
    low, high = success["ci95"]
    return f"{success['count']}/{success['n']} {100 * low:.0f}–{100 * high:.0f}%"


def _difference(pair: Json | None) -> str:
    if pair is None or pair["difference"] is None:
        return _MISSING
    low, high = pair["difference"]["ci95"]
    return f"{100 * pair['difference']['estimate']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{100 * value:.1f}%"


def _setting(row: Json) -> str:
    seeds, machine = row["seeds"], row["machine"]
    robots = " or ".join(map(str, row["num_envs"])) or "1"
    parts = [
        f"Seeds {seeds['first']}–{seeds['last']}, K={row['steps']}, {_windows(row)}",
        f"success with {robots} robots in one batch",
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
    return "window " + " or ".join(sorted(windows))


# --- the figure ---------------------------------------------------------------------------------


def tasks_figure(content: Json) -> Figure:
    """A row a task: success with its interval, calls a chunk, acceptance by step."""
    tasks = content["tasks"]
    figure = Figure(figsize=(11.0, 0.7 + 2.2 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 3, squeeze=False, width_ratios=(1, 1, 1.2))
    for (task, row), (success, calls, acceptance) in zip(tasks.items(), panels, strict=True):
        _success_panel(success, row)
        _calls_panel(calls, row)
        _acceptance_panel(acceptance, row)
        success.set_ylabel(task.replace("_", " "), fontweight="bold")
    for axes, title in zip(
        panels[0],
        ("Success, 95% interval", "Network calls a chunk", "Proposals accepted, by step"),
        strict=True,
    ):
        axes.set_title(title, fontsize=10)
    panels[-1][0].set_xlabel("success rate")
    panels[-1][1].set_xlabel("calls (log scale)")
    panels[-1][2].set_xlabel("denoising step, noise → action")
    return figure


def _rows(axes: Axes, row: Json) -> dict[str, int]:
    """Sampler → height in the panel, the first at the top."""
    names = list(row["samplers"])
    heights = {name: len(names) - 1 - i for i, name in enumerate(names)}
    axes.set_yticks(list(heights.values()), [_NAMES.get(name, name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    return heights


def _success_panel(axes: Axes, row: Json) -> None:
    for name, height in _rows(axes, row).items():
        success = row["samplers"][name]["success"]
        if success["n"]:
            axes.hlines(height, *success["ci95"], color=colour(name), linewidth=2)
            axes.plot(success["rate"], height, "o", color=colour(name), markersize=6, clip_on=False)
    axes.set_xlim(right=1.0)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{tick(round(100 * value, 6))}%")
    )


def _calls_panel(axes: Axes, row: Json) -> None:
    axes.set_xscale("log")
    for name, height in _rows(axes, row).items():
        calls = row["samplers"][name]["network_calls_per_chunk"]
        if calls is not None:
            axes.plot(calls, height, "o", color=colour(name), markersize=6)
            axes.annotate(
                amount(calls), (calls, height), (7, -3), textcoords="offset points", fontsize=8
            )
    axes.set_xlim(5, 1.8 * row["steps"])
    ticks = [t for t in (5, 10, 20, 50, 100, 200, 500) if t <= 1.8 * row["steps"]]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.tick_params(labelleft=False)


def _acceptance_panel(axes: Axes, row: Json) -> None:
    for name, summary in row["samplers"].items():
        if is_autospeculative(name) and summary["acceptance_by_step"] is not None:
            shares = [np.nan if s is None else s for s in summary["acceptance_by_step"]]
            axes.plot(
                range(1, len(shares) + 1), shares, color=colour(name), label=_NAMES.get(name, name)
            )
    axes.set_ylim(top=1.01)
    axes.legend(fontsize=8, loc="lower center")
