"""Figures of the study, from its JSON and its pictures (needs matplotlib and Pillow)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from asd_policy.eval.runs.pictures import BINS
from asd_policy.eval.show.figures import (
    STYLE,
    colour,
    label_ticks,
    log_ticks,
    percent,
    save,
    write_ticks,
)
from asd_policy.files import writing

NOTES = {"asd": "default", "asd-frozen": "one call", "asd-paper": "published"}
GAP = 2  # pixels between pictures


def named(sampler: str) -> str:
    """A sampler's name, as one types it, and what it is."""
    return f"{sampler} ({NOTES[sampler]})" if sampler in NOTES else sampler


def plot_calls(found: Any, path: Path) -> None:
    """Calls and evaluations against K and against the window; rejections and acceptance by step."""
    cells, grown = found["cells"], found["growth"]
    most = max(c["steps"] for c in cells)
    wide = next(iter(grown.values()))["window"] if grown else max(c["window"] for c in cells)
    one_window = [c for c in cells if c["window"] == min(wide, c["steps"])]
    all_steps = [c for c in cells if c["steps"] == most]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 6.6), layout="constrained")
        panels = figure.subplots(2, 3)
        for axes, value in zip(panels[0], ("calls", "evaluations"), strict=False):
            _lines(axes, one_window, "steps", value)
            axes.set(xlabel=f"K, steps of the chain (window {wide})", ylabel=f"{value} a picture")
        for axes, value in zip(panels[1], ("calls", "evaluations"), strict=False):
            _lines(axes, all_steps, "window", value)
            axes.set(xlabel=f"window (K = {most})", ylabel=f"{value} a picture")
        _by_step(panels[:, 2], [c for c in one_window if c["steps"] == most], most)
        for axes in panels.flat:
            _say_if_empty(axes)
        handles = _handles(panels.flat)
        labels = [
            f"{named(name)}, calls about as K^{grown[name]['exponent']:.2f}"
            if name in grown
            else named(name)
            for name in handles
        ]
        figure.legend(list(handles.values()), labels, loc="outside upper center", ncols=4)
        save(figure, path, (path.suffix[1:],))


def _handles(panels: Iterable[Any]) -> dict[str, Any]:
    """Sampler → a line of it, whichever panels it is in."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return found


def _say_if_empty(axes: Any) -> None:
    if any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        return
    what = axes.get_ylabel().replace("\n", " ")
    axes.set_axis_off()
    axes.text(0.5, 0.5, f"{what}:\nnothing to show", transform=axes.transAxes, ha="center")


def _lines(axes: Any, cells: Sequence[Any], against: str, value: str) -> None:
    for sampler in dict.fromkeys(c["sampler"] for c in cells):
        mine = sorted((c for c in cells if c["sampler"] == sampler), key=lambda c: c[against])
        x, y = ([c[key] for c in mine] for key in (against, value))
        axes.plot(x, y, "o-", color=colour(sampler), label=sampler)
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = [c[value] for c in cells]
    label_ticks(axes.xaxis, sorted({c[against] for c in cells}))
    label_ticks(axes.yaxis, log_ticks(min(values), max(values)))


def _by_step(panels: Any, cells: Sequence[Any], steps: int) -> None:
    """Rejections and acceptance along the chain."""
    middle = (np.arange(BINS) + 0.5) * steps / BINS
    for cell in cells:
        rejected, decided = np.array(cell["rejected"]), np.array(cell["decided"])
        with np.errstate(invalid="ignore"):
            accepted = 1 - rejected / decided
        for axes, values in zip(panels, (rejected, accepted), strict=True):
            axes.step(
                middle, values, where="mid", color=colour(cell["sampler"]), label=cell["sampler"]
            )
    panels[0].set(ylabel=f"rejections a picture\nin {max(1, steps // BINS)} steps")
    panels[1].set(
        xlabel=f"step of {steps}; the last is the clean picture", ylabel="accepted drafts"
    )
    write_ticks(panels[1].yaxis, percent)


def plot_sheet(rows: Mapping[str, np.ndarray], path: Path, times: int) -> None:
    """A sheet of pictures, a row for each name, each pixel `times` as large.

    Args:
        rows: name → (n, H, W, C) uint8; the name is written at the left.
    """
    figure = Figure(figsize=(10, 0.82 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for place, (name, pixels) in zip(axes, rows.items(), strict=True):
        framed = [np.pad(p, ((0, 0), (GAP, GAP), (0, 0)), constant_values=255) for p in pixels]
        strip = np.concatenate(framed, 1)
        shown = Image.fromarray(strip.squeeze(-1) if strip.shape[2] == 1 else strip)
        shown = shown.resize((shown.width * times, shown.height * times), Image.Resampling.NEAREST)
        place.imshow(np.asarray(shown), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        place.set_ylabel(name, rotation=0, ha="right", va="center")
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    with writing(path):
        figure.savefig(path, dpi=100, bbox_inches="tight", pil_kwargs={"quality": 80})
