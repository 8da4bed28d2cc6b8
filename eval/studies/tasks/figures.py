"""The figure of the table of tasks (needs matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asd_policy.eval.runs.formats import amount
from asd_policy.eval.samplers import is_autospeculative
from asd_policy.eval.show.figures import STYLE, colour, label_ticks, percent, save, write_ticks

Json = dict[str, Any]
NAMES = {
    "ddpm": "DDPM",
    "asd": "ASD",
    "asd-paper": "ASD, paper's",
    "asd-frozen": "ASD, frozen, 1 call",
    "paradigms": "ParaDiGMS",
    "ddim-10": "DDIM-10",
    "ddim-16": "DDIM-16",
}


def save_figure(content: Json, path: Path) -> None:
    """Write the figure of tasks.json as SVG and PNG."""
    with matplotlib.rc_context(STYLE):
        save(tasks_figure(content), path)


def tasks_figure(content: Json) -> Figure:
    """A row a task: success with its interval, calls a chunk and, where a sampler drafts,
    acceptance by step."""
    tasks = content["tasks"]
    drafting = any(_drafting(row) for row in tasks.values())
    columns = [
        (_success_panel, "Success, 95% interval", "success rate", 1.0),
        (_calls_panel, "Network calls a chunk", "calls (log scale)", 1.0),
        (_acceptance_panel, "Proposals accepted, by step", "denoising step, noise → action", 1.2),
    ][: 3 if drafting else 2]
    size = 3.5 * len(columns) + 0.5, 0.7 + 2.2 * len(tasks)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(
        len(tasks), len(columns), squeeze=False, width_ratios=[share for *_, share in columns]
    )
    for (task, row), along in zip(tasks.items(), panels, strict=True):
        for axes, (draw, *_) in zip(along, columns, strict=True):
            draw(axes, row)
        along[0].set_ylabel(task.replace("_", " "), fontweight="bold")
    for top, bottom, (_, title, label, _) in zip(panels[0], panels[-1], columns, strict=True):
        top.set_title(title, fontsize=10)
        bottom.set_xlabel(label)
    return figure


def _drafting(row: Json) -> Json:
    """The samplers of a row that draft."""
    return {
        name: summary
        for name, summary in row["samplers"].items()
        if is_autospeculative(name) and summary["acceptance_by_step"] is not None
    }


def _rows(axes: Axes, row: Json) -> dict[str, int]:
    """Sampler → height in the panel, the first at the top."""
    names = list(row["samplers"])
    heights = {name: len(names) - 1 - i for i, name in enumerate(names)}
    axes.set_yticks(list(heights.values()), [NAMES.get(name, name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    return heights


def _success_panel(axes: Axes, row: Json) -> None:
    for name, height in _rows(axes, row).items():
        success = row["samplers"][name]["success"]
        if success["n"]:
            axes.hlines(height, *success["ci95"], color=colour(name), linewidth=2)
            axes.plot(success["rate"], height, "o", color=colour(name), markersize=6, clip_on=False)
    axes.set_xlim(right=1.0)
    write_ticks(axes.xaxis, percent)


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
    label_ticks(axes.xaxis, ticks)
    axes.tick_params(labelleft=False)


def _acceptance_panel(axes: Axes, row: Json) -> None:
    for name, summary in _drafting(row).items():
        shares = [np.nan if s is None else s for s in summary["acceptance_by_step"]]
        steps = range(1, len(shares) + 1)
        axes.plot(steps, shares, color=colour(name), label=NAMES.get(name, name))
    axes.set_ylim(top=1.01)
    if axes.lines:
        axes.legend(fontsize=8, loc="lower center")
