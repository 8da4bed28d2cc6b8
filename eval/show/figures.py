"""The kit of every figure: style, colours, axes and files (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from asd_policy.eval.runs.formats import duration, tick
from asd_policy.files import writing

# One colour a sampler in every figure (Okabe and Ito's, safe for colour-blind readers).
COLOURS = {
    "asd": "#0072B2",
    "asd-paper": "#D55E00",
    "ddpm": "#000000",
    "eager-loop": "#999999",
    "ddim-10": "#009E73",
    "ddim-16": "#66C2A5",
    "asd-memory": "#56B4E9",
    "asd-slope": "#CC79A7",
    "asd-frozen": "#E69F00",
    "paradigms": "#F0E442",
}
# And one for each part of a chunk's time.
PARTS = {
    "network": "#B9C4CE",
    "draft": "#0072B2",
    "verify": "#D55E00",
    "noise": "#009E73",
    "other": "#CC79A7",
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "asd-policy",
}


def colour(sampler: str) -> str:
    """Of a sampler, in every figure."""
    return COLOURS.get(sampler, "#666666")


def save(figure: Figure, path: Path, suffixes: Sequence[str] = ("svg", "png")) -> None:
    """Write `path` with each of these suffixes; the same figure gives the same SVG.

    Raises:
        OutputError: one cannot be written.
    """
    for suffix in suffixes:
        metadata = {"Date": None} if suffix == "svg" else {}
        file = path.with_suffix(f".{suffix}")
        with writing(file):  # "tight": no label is cut off, whatever it says
            figure.savefig(file, dpi=160, metadata=metadata, bbox_inches="tight")


def label_ticks(axis: Axis, ticks: Sequence[float], written: Callable[[float], str] = tick) -> None:
    """Ticks at these values and no other."""
    axis.set_ticks(list(ticks))
    axis.set_minor_locator(NullLocator())
    write_ticks(axis, written)


def write_ticks(axis: Axis, written: Callable[[float], str]) -> None:
    """Write the value of every tick as this function does."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))


def percent(share: float) -> str:
    """A share on an axis: "5%"."""
    return f"{tick(round(100 * share, 6))}%"


def time_or_zero(milliseconds: float) -> str:
    """A time on an axis that begins at 0."""
    return duration(milliseconds) if milliseconds else "0"


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last one at or below `low` to the first one at or
    above `high`."""
    ticks = [mark * 10.0**e for e in range(-3, 7) for mark in (1, 2, 5)]
    below = max([t for t in ticks if t <= low], default=ticks[0])
    above = min([t for t in ticks if t >= high], default=ticks[-1])
    return [t for t in ticks if below <= t <= above]
