"""Figures of a benchmark, from bench.json alone (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from asd_policy.errors import counted
from asd_policy.eval.runs.formats import amount, duration
from asd_policy.eval.show.figures import (
    PARTS,
    STYLE,
    colour,
    label_ticks,
    log_ticks,
    percent,
    save,
    time_or_zero,
    write_ticks,
)
from asd_policy.eval.studies.bench.options import ASD_FORMS
from asd_policy.eval.studies.bench.scaling import exponent

Json = dict[str, Any]


def save_figures(content: Json, folder: Path) -> list[Path]:
    """Write the figures there are numbers for; return the PNG files (an SVG lies beside each).

    Args:
        content: of bench.json. folder: where to put them.
    """
    cells = [cell for cell in content["cells"] if "error" not in cell]
    saved = []
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("latency", latency_figure(cells, content)),
            ("calls_against_steps", calls_figure(cells, content)),
            ("acceptance", acceptance_figure(cells, content)),
            ("time_split", split_figure(cells, content)),
        ):
            if figure is not None:
                save(figure, folder / f"{name}.png")
                saved.append(folder / f"{name}.png")
    return saved


def machine_line(content: Json) -> str:
    """What the figures were measured on."""
    machine = content["machine"][-1]
    place = machine["gpu"] or f"{machine['cpu']}, {counted(machine['threads'], 'thread')}"
    return place + " · a quick run, not to quote" * bool(content["settings"].get("quick"))


def _one_form(cells: Sequence[Json]) -> list[Json]:
    """One cell for each network, batch, K and sampler, all in the precision that most have: of
    several windows the fastest, "auto" first; of several engines the fastest."""
    best: dict[tuple[Any, ...], Json] = {}
    for cell in _of(cells, precision=precision_of(cells)) + _of(cells, precision="-"):
        key = cell["network"], cell["batch"], cell["steps"], cell["sampler"]
        rank = cell["window"] not in ("auto", "-"), cell["latency_ms"]["p50"]
        if key not in best or rank < _rank(best[key]):
            best[key] = cell
    return list(best.values())


def _rank(cell: Json) -> tuple[bool, float]:
    return cell["window"] not in ("auto", "-"), cell["latency_ms"]["p50"]


def precision_of(cells: Sequence[Json]) -> str:
    """The commonest precision, of cells that have one."""
    names = [cell["precision"] for cell in cells if cell["precision"] != "-"]
    return max(dict.fromkeys(names), key=names.count, default="-")


def _main_network(cells: Sequence[Json]) -> str:
    """The network with the most cells; trained ones first."""
    names = [cell["network"] for cell in cells]
    trained = {cell["network"]: cell["trained"] for cell in cells}
    return max(dict.fromkeys(names), key=lambda name: (trained[name], names.count(name)))


def _main_steps(cells: Sequence[Json], content: Json) -> int:
    """K: that of training, or the commonest."""
    trained = content["networks"][cells[0]["network"]]["trained_steps"]
    values = [cell["steps"] for cell in cells]
    return trained if trained in values else max(dict.fromkeys(values), key=values.count)


def _of(cells: Iterable[Json], **wanted: Any) -> list[Json]:
    return [cell for cell in cells if all(cell[key] == value for key, value in wanted.items())]


# ---- latency ------------------------------------------------------------------------------------


def latency_figure(cells: Sequence[Json], content: Json) -> Figure | None:
    """Median latency against batch size, or by sampler where there is one batch size."""
    if not cells:
        return None
    chosen = _of(cells, network=_main_network(cells))
    chosen = _one_form(_of(chosen, steps=_main_steps(chosen, content)))
    form = f"K={chosen[0]['steps']}, {precision_of(chosen)}"
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.subplots()
    if len({cell["batch"] for cell in chosen}) > 1:
        _latency_lines(axes, chosen)
    else:
        _latency_bars(axes, chosen)
    network = Path(chosen[0]["network"]).name
    axes.set_title(f"Latency of a chunk · {network}, {form}", loc="left")
    figure.text(0.01, -0.06, machine_line(content), fontsize=8, color="#555555")
    return figure


def _latency_lines(axes: Axes, cells: Sequence[Json]) -> None:
    ordered = sorted(cells, key=lambda c: (c["sampler"], c["batch"]))
    for sampler, group in groupby(ordered, key=lambda c: c["sampler"]):
        rows = list(group)
        batches = [row["batch"] for row in rows]
        p50, p95 = ([row["latency_ms"][q] for row in rows] for q in ("p50", "p95"))
        axes.plot(batches, p50, "o-", color=colour(sampler), label=sampler, markersize=4)
        axes.fill_between(batches, p50, p95, color=colour(sampler), alpha=0.15, linewidth=0)
    axes.set(
        xscale="log", yscale="log", xlabel="chains sampled at once", ylabel="time, median (to p95)"
    )
    label_ticks(axes.xaxis, sorted({cell["batch"] for cell in cells}))
    values = [cell["latency_ms"][q] for cell in cells for q in ("p50", "p95")]
    label_ticks(axes.yaxis, log_ticks(min(values), max(values)), duration)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _latency_bars(axes: Axes, cells: Sequence[Json]) -> None:
    ordered = sorted(cells, key=lambda c: -c["latency_ms"]["p50"])
    values = [cell["latency_ms"]["p50"] for cell in ordered]
    names = [cell["sampler"] for cell in ordered]
    axes.barh(names, values, color=[colour(name) for name in names], height=0.62)
    for row, cell in enumerate(ordered):
        latency = cell["latency_ms"]
        axes.plot([latency["p50"], latency["p95"]], [row, row], color="#555555", linewidth=1)
        text = f"{duration(latency['p50'])}, {amount(cell['calls'])} calls"
        axes.annotate(
            text, (latency["p95"], row), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    write_ticks(axes.xaxis, time_or_zero)
    axes.set_xlabel("time: median, and a line to p95")


# ---- calls against K ----------------------------------------------------------------------------


def calls_figure(cells: Sequence[Json], content: Json) -> Figure | None:
    """Calls against K on log axes with least-squares exponents: mixture, and measured networks."""
    results = list(content["calls_against_steps"])
    measured = _measured_lines(cells)
    panels = [("Mixture of 32 Gaussians, θ = K", results)] * bool(results)
    panels += [(f"{Path(network).name}, as measured", lines) for network, lines in measured]
    if not panels:
        return None
    figure = Figure(figsize=(5.2 * len(panels), 4.0))
    for axes, (title, lines) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True
    ):
        _calls_panel(axes, title, lines)
    figure.subplots_adjust(wspace=0.25)
    return figure


def _calls_panel(axes: Axes, title: str, lines: Sequence[Json]) -> None:
    for line in lines:
        steps, calls = np.array(line["steps"]), np.array(line["calls"])
        power, shade = line["exponent"], colour(line["form"])
        fit = np.exp(np.mean(np.log(calls)) + power * (np.log(steps) - np.mean(np.log(steps))))
        axes.errorbar(steps, calls, yerr=line.get("standard_error"), fmt="o", color=shade, ms=4)
        axes.plot(
            steps, fit, "-", color=shade, linewidth=1, label=f"{line['form']}: $K^{{{power:.2f}}}$"
        )
    everywhere = sorted({k for line in lines for k in line["steps"]})
    ends = [everywhere[0], everywhere[-1]]
    axes.plot(ends, ends, ":", color=colour("ddpm"), linewidth=1.2, label="ddpm: $K$")
    least = min(value for line in lines for value in line["calls"])
    axes.set(xscale="log", yscale="log", xlabel="K, denoising steps")
    axes.set_ylabel("network calls a chunk")
    label_ticks(axes.xaxis, everywhere)
    label_ticks(axes.yaxis, log_ticks(least, ends[1]))
    axes.set_ylim(0.8 * least, 1.2 * ends[1])
    axes.set_title(title, loc="left")
    axes.legend(loc="upper left", fontsize=9)


def _measured_lines(cells: Sequence[Json]) -> list[tuple[str, list[Json]]]:
    """Networks whose ASD forms were measured at three K or more, at the smallest batch."""
    found = []
    # Where no window paid for itself, the calls are those of the sequential sampler.
    cells = [cell for cell in cells if cell["trained"] and cell["window_used"] > 1]
    for network in dict.fromkeys(cell["network"] for cell in cells):
        chosen = _of(cells, network=network)
        chosen = _one_form(_of(chosen, batch=min(cell["batch"] for cell in chosen)))
        lines = []
        for form in ASD_FORMS:
            rows = sorted(_of(chosen, sampler=form), key=lambda c: c["steps"])
            steps, calls = [r["steps"] for r in rows], [r["calls"] for r in rows]
            if len(steps) > 2:
                power = exponent(steps, np.array(calls))
                lines.append({"form": form, "steps": steps, "calls": calls, "exponent": power})
        if lines:
            found.append((network, lines))
    return found


# ---- acceptance and time ------------------------------------------------------------------------


def acceptance_figure(cells: Sequence[Json], content: Json) -> Figure | None:
    """Share of drafts accepted, by step, of each ASD form at the smallest batch."""
    cells = [cell for cell in cells if sum(cell["decided"])]
    if not cells:
        return None
    chosen = _of(cells, network=_main_network(cells))
    chosen = _of(chosen, steps=_main_steps(chosen, content))
    chosen = _one_form(_of(chosen, batch=min(cell["batch"] for cell in chosen)))
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    for cell in chosen:
        accepted, decided = np.array(cell["accepted"], float), np.array(cell["decided"], float)
        width = max(1, len(decided) // 50)  # neighbouring steps together: few decisions a step
        steps = np.arange(len(decided))[: len(decided) // width * width].reshape(-1, width)
        share = accepted[steps].sum(1) / np.maximum(decided[steps].sum(1), 1)
        share = np.where(decided[steps].sum(1) > 0, share, np.nan)
        label = f"{cell['sampler']} (θ={cell['window_used']}, {amount(cell['calls'])} calls)"
        axes.plot(steps.mean(1), share, color=colour(cell["sampler"]), label=label)
    axes.set(xlabel="step, from noise to action", ylabel="drafts accepted", ylim=(0, 1.02))
    write_ticks(axes.yaxis, percent)
    network = Path(chosen[0]["network"]).name
    axes.set_title(f"Acceptance by step · {network}, K={chosen[0]['steps']}", loc="left")
    axes.legend(loc="lower left")
    return figure


def split_figure(cells: Sequence[Json], content: Json) -> Figure | None:
    """Where a chunk's time goes, by sampler, at the smallest batch."""
    if not cells:
        return None
    chosen = _of(cells, network=_main_network(cells))
    chosen = _of(chosen, steps=_main_steps(chosen, content))
    chosen = _one_form(_of(chosen, batch=min(cell["batch"] for cell in chosen)))
    chosen.sort(key=lambda c: -c["latency_ms"]["p50"])
    figure = Figure(figsize=(6.4, 0.9 + 0.45 * len(chosen)))
    axes = figure.subplots()
    left = np.zeros(len(chosen))
    names = [f"{c['sampler']} ({duration(c['latency_ms']['mean'])})" for c in chosen]
    for part, shade in PARTS.items():
        shares = 100 * np.array([cell["split_share"][part] for cell in chosen])
        axes.barh(names, shares, left=left, color=shade, label=part, height=0.62)
        left += shares
    axes.set(xlim=(0, 100), xlabel="% of a chunk's time")
    axes.grid(axis="y", visible=False)
    network = Path(chosen[0]["network"]).name
    form = f"K={chosen[0]['steps']}, {precision_of(chosen)}"
    axes.set_title(f"Where the time goes · {network}, {form}", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    below = -0.4 / figure.get_figheight()  # inches: with few bars a share of the height is less
    figure.text(0.01, below, machine_line(content), fontsize=8, color="#555555")
    return figure
