"""Figures of the report, as SVG that takes its colours from the page (needs matplotlib).

Everything plotted is a number of results.json. Text stays text, so that it can be read out and
searched, and follows the page's font; colours that must suit a dark page are CSS variables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from asd_policy.eval.show.figures import (
    COLOURS,
    PARTS,
    STYLE,
    label_ticks,
    percent,
    time_or_zero,
    write_ticks,
)

Json = dict[str, Any]
# Each of these colours stands for a variable of the page's style sheet. (None is black itself: in
# SVG black is the default and would not be written down.)
_INK, _LINE, _GRID, _LATE = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {
    _INK: "--ink", _LINE: "--muted", _GRID: "--line", _LATE: "--bad", "#0072b2": "--blue",
}  # fmt: skip
_STYLE = STYLE | {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,  # a name with a dollar sign is a name
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "figure.facecolor": "none",
}
_WIDTH = 4.5  # inches: legible in a column of 360 pixels
_LARGEST = 1.5  # CSS pixels of a point, where there is room
_POLICY_PARTS = ("network", "draft", "verify", "other")
_TIME_COLOUR = {"policy": "#0072B2", "simulation": "#B9C4CE", "rendering": "#E69F00"}


def colour(sampler: str) -> str:
    """One colour a sampler, as in the benchmark's figures; the reference in the page's ink."""
    if sampler == "ddpm":
        return _INK
    alike = {"ddim": "ddim-10", "asd-ddim": "asd-memory"}
    return COLOURS.get(alike.get(sampler, sampler), "#888888")


def page_figures(results: Json) -> dict[str, str]:
    """Name → SVG element, of each figure that the run has numbers for.

    The same results give the same text, byte for byte.
    """
    with matplotlib.rc_context(_STYLE):
        figures = {name: plot(results) for name, plot in FIGURES.items()}
        return {name: _svg(figure, name) for name, figure in figures.items() if figure is not None}


def _svg(figure: Figure, name: str) -> str:
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.04, metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    # Several figures share one document: their ids must not.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    # The caption describes it; a reader that reads out is not to spell the ticks. Text is of one
    # size in all figures of a wide page, whatever their widths.
    width = float(text.split('viewBox="0 0 ', 1)[1].split(" ", 1)[0])
    attributes = f'aria-hidden="true" focusable="false" style="max-width: {_LARGEST * width:.0f}px"'
    return text.replace("<svg ", f"<svg {attributes} ", 1).strip()


def _names(results: Json) -> list[str]:
    return list(results["samplers"])


def _panels(results: Json, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, 0.75 + height * len(results["samplers"])))
    return figure, figure.subplots()


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """One row a sampler, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def success_figure(results: Json) -> Figure | None:
    """Rate and 95% interval of each sampler."""
    names = [n for n in _names(results) if results["samplers"][n]["success"]["n"]]
    if not names:
        return None
    figure, axes = _panels(results, 0.34)
    for row, name in enumerate(names):
        success = results["samplers"][name]["success"]
        low, high = success["ci95"]
        axes.plot([low, high], [row, row], color=colour(name), linewidth=5, alpha=0.35)
        axes.plot([success["rate"]], [row], "o", color=colour(name), markersize=7)
    _rows(axes, names)
    axes.set(xlim=(-0.02, 1.02), xlabel="share of episodes that succeeded")
    write_ticks(axes.xaxis, percent)
    return figure


def latency_figure(results: Json) -> Figure | None:
    """Histogram of each sampler's chunks on one logarithmic axis, with what the robot allows."""
    edges = results["latency_bins_ms"]
    if not edges:
        return None
    names, periods = _names(results), results["period_ms"]
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.75 * len(names)))
    panels = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
    for axes, name in zip(panels, names, strict=True):
        summary = results["samplers"][name]
        counts = summary["chunk_latency_histogram"]
        axes.stairs(counts, edges, fill=True, color=colour(name), alpha=0.85)
        for at, style in ((periods["step"], ":"), (periods["chunk"], "--")):
            axes.axvline(at, color=_LATE, linestyle=style, linewidth=1.3)
        axes.set_title(name, loc="left", fontsize=10, pad=3)
        axes.set(xscale="log", ylim=(0, 1.08 * max(*counts, 1)))
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    values = [*edges, *periods.values()]
    _time_axis(panels[-1], min(values) / 1.15, max(values) * 1.15)
    figure.supylabel("chunks", fontsize=10)
    figure.subplots_adjust(hspace=0.55)
    return figure


def _time_axis(axes: Axes, low: float, high: float) -> None:
    decades = [10.0**e for e in range(-3, 7)]
    for marks in ((1, 2, 5), (1, 3), (1,)):
        ticks = [mark * d for d in decades for mark in marks if low <= mark * d <= high]
        if len(ticks) <= 7:
            break
    axes.set_xlim(low, high)
    label_ticks(axes.xaxis, ticks, time_or_zero)
    axes.set_xlabel("time from observation to chunk")


def chunk_time_figure(results: Json) -> Figure | None:
    """Mean milliseconds of a chunk by part of the policy."""
    split = {n: results["samplers"][n]["overhead_ms_per_chunk"] for n in _names(results)}
    split = {name: parts for name, parts in split.items() if parts["network"] is not None}
    if not split:
        return None
    figure, axes = _panels(results, 0.36)
    _stack(axes, split, {part: PARTS[part] for part in _POLICY_PARTS})
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    write_ticks(axes.xaxis, time_or_zero)
    axes.set_xlabel("a chunk's time, mean")
    return figure


def run_time_figure(results: Json) -> Figure | None:
    """Shares of an episode's time."""
    times = {n: results["samplers"][n]["time"] for n in _names(results)}
    split = {name: time["share"] for name, time in times.items() if time["total_s"]}
    if not split:
        return None
    figure, axes = _panels(results, 0.36)
    _stack(axes, split, _TIME_COLOUR)
    axes.set(xlim=(0, 1), xlabel="share of the run's time")
    write_ticks(axes.xaxis, percent)
    return figure


def _stack(axes: Axes, split: dict[str, dict[str, float]], shades: dict[str, str]) -> None:
    rows, left = range(len(split)), np.zeros(len(split))
    for part, shade in shades.items():
        widths = np.array([parts[part] for parts in split.values()])
        axes.barh(rows, widths, left=left, color=shade, label=part, height=0.6)
        left += widths
    _rows(axes, list(split))
    # Placed by the axes, not the figure: a legend above has room whatever the number of rows.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(shades), **_SMALL_LEGEND)


_SMALL_LEGEND: dict[str, Any] = {
    "fontsize": 10, "handlelength": 1.0, "columnspacing": 1.0, "borderpad": 0.1,
}  # fmt: skip


def acceptance_figure(results: Json) -> Figure | None:
    """Heat map, sampler × step: the share of drafts that were accepted."""
    shares = {n: results["samplers"][n]["acceptance_by_step"] for n in _names(results)}
    shares = {name: values for name, values in shares.items() if values is not None}
    if not shares:
        return None
    longest = max(map(len, shares.values()))
    grid = np.full((len(shares), longest), np.nan)
    for row, values in enumerate(shares.values()):
        grid[row, : len(values)] = [np.nan if v is None else v for v in values]
    figure = Figure(figsize=(_WIDTH, 1.0 + 0.34 * len(shares)))
    axes = figure.subplots()
    edges = np.arange(longest + 1), np.arange(len(shares) + 1) - 0.5
    mesh = axes.pcolormesh(*edges, grid, vmin=0, vmax=1, cmap="cividis", snap=True)
    mesh.set_edgecolor("face")  # else a hairline of the page shows between cells
    _rows(axes, list(shares))
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step, from noise to action")
    bar = figure.colorbar(
        mesh, ax=axes, pad=0.03, aspect=max(3, 4 * len(shares)), ticks=[0, 0.5, 1]
    )
    write_ticks(bar.ax.yaxis, percent)
    bar.outline.set_visible(False)
    return figure


def calls_figure(results: Json) -> Figure | None:
    """Network calls of the first, second, … chunk: mean, and a band from least to most."""
    rows = {n: results["samplers"][n]["calls_by_chunk"] for n in _names(results)}
    if not any(row["episodes"] for chunks in rows.values() for row in chunks):
        return None
    figure = Figure(figsize=(_WIDTH, 2.9))
    axes = figure.subplots()
    for name, chunks in rows.items():
        known = [(i + 1, row) for i, row in enumerate(chunks) if row["episodes"]]
        at = [i for i, _ in known]
        mean, low, high = ([row[key] for _, row in known] for key in ("mean", "min", "max"))
        axes.fill_between(at, low, high, color=colour(name), alpha=0.18, linewidth=0)
        axes.plot(at, mean, "o-", color=colour(name), markersize=3, linewidth=1.4, label=name)
    axes.set(xlabel="chunk of the episode", ylabel="network calls", yscale="log")
    values = [row[k] for chunks in rows.values() for row in chunks for k in ("min", "max")]
    _calls_axis(axes, [value for value in values if value])
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, **_SMALL_LEGEND)
    return figure


def _calls_axis(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values, default=1) / 1.4, max(values, default=1) * 1.4
    ticks = [m * 10**e for e in range(5) for m in (1, 2, 5) if low <= m * 10**e <= high]
    axes.set_ylim(low, high)
    label_ticks(axes.yaxis, ticks)


FIGURES: dict[str, Callable[[Json], Figure | None]] = {
    "success": success_figure,
    "latency": latency_figure,
    "chunk-time": chunk_time_figure,
    "run-time": run_time_figure,
    "acceptance": acceptance_figure,
    "calls": calls_figure,
}
