"""The figure of a verification: distribution functions, p-values, power (needs matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asd_policy.eval.runs.formats import tick, two_digits
from asd_policy.eval.show.figures import STYLE, save, write_ticks
from asd_policy.eval.studies.verify.equality import (
    Array,
    critical_distance,
    projections,
    rank_differences,
)

Json = dict[str, Any]
SHADES = {
    "random directions": "#BBBBBB",
    "mean of each action number": "#0072B2",
    "change of each action number": "#009E73",
    "spread": "#D55E00",
}
RED = "#C00000"
_LEAST_P = 1e-6  # smaller ones are plotted here, as the axis says


def save_figure(result: Json, sample: Array, reference: Array, folder: Path) -> None:
    """Write verify.png and verify.svg.

    Args:
        result: content of verify.json. sample, reference: (M, n, Tp, Da) chunks.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 4.4))
        # By hand: the labels of the second and third panel are long.
        places = ((0.055, 0.275), (0.485, 0.205), (0.765, 0.225))
        panels = [figure.add_axes((left, 0.25, width, 0.59)) for left, width in places]
        _differences(panels[0], result, sample, reference)
        _p_values(panels[1], result)
        _power(panels[2], result)
        verdict, samplers = result["verdict"], result["samplers"]
        figure.suptitle(
            f"{samplers['sample']['name']} against {samplers['reference']['name']}, "
            f"{result['subject']['name']}: {verdict['word'].lower()}",
            x=0.01, ha="left", fontweight="bold",
        )  # fmt: skip
        save(figure, folder / "verify.png")


def _differences(axes: Axes, result: Json, sample: Array, reference: Array) -> None:
    """Distribution function of ranks minus the reference's; beyond the lines a test rejects."""
    rng = np.random.default_rng(result["settings"]["seed"])
    names, ours, theirs = projections(sample, reference, rng)
    curves = rank_differences(ours, theirs)
    share = np.linspace(0, 1, curves.shape[1])
    labelled = set()
    for (_, family), curve in zip(names, curves, strict=True):
        label = None if family in labelled else family
        labelled.add(family)
        axes.plot(share, curve, color=SHADES[family], linewidth=0.9, label=label)
    level = result["settings"]["alpha"] / len(result["tests"])
    limit = critical_distance(ours, theirs, level)
    for side in (-limit, limit):
        axes.axhline(side, color=RED, linestyle="--", linewidth=1)
    top = 1.15 * max(limit, float(np.abs(curves).max()))
    axes.set(xlim=(0, 1), ylim=(-top, top), xlabel="share of the values at an observation")
    axes.set_ylabel("difference of distribution functions")
    axes.set_title("Projections (beyond the red lines: rejected)", loc="left", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8)


def _p_values(axes: Axes, result: Json) -> None:
    """Every p-value by family, and the smallest of every control; left of the line Holm's first
    step rejects."""
    rows: dict[str, list[float]] = {}
    for test in result["tests"]:
        rows.setdefault(test["family"], []).append(test["p_value"])
    for control in result["controls"]:
        rows["control: " + control["name"].split(" by ")[0]] = [control["smallest_p"]]
    labels = list(rows)[::-1]
    alpha = result["settings"]["alpha"] / len(result["tests"])
    for height, label in enumerate(labels):
        values = np.maximum(rows[label], _LEAST_P)
        shades = [RED if value <= alpha else "#0072B2" for value in values]
        axes.scatter(values, [height] * len(values), c=shades, s=22, alpha=0.8, zorder=3)
    axes.axvline(alpha, color=RED, linestyle="--", linewidth=1)
    exponent = round(np.log10(_LEAST_P))
    axes.set(xscale="log", xlim=(0.5 * _LEAST_P, 2))
    axes.set_xlabel(f"p (smaller ones at $10^{{{exponent}}}$)")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_title("p-values (left of the red line: rejected)", loc="left", fontsize=10)


def _power(axes: Axes, result: Json) -> None:
    """Smallest shift caught, by action number."""
    power = result["power"]
    rows = power["by_action"]
    values = [row["shift_deviations"] or np.nan for row in rows]
    places = np.arange(len(rows))
    axes.barh(places, values, color="#56B4E9", height=0.62)
    for place, row in zip(places, rows, strict=True):
        text = "none" if row["shift"] is None else f"{two_digits(row['shift'])} units"
        at = 0.0 if row["shift"] is None else row["shift_deviations"]
        axes.annotate(
            text, (at, place), (4, 0), textcoords="offset points", va="center", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.axvline(power["detect_deviations"], color=RED, linestyle="--", linewidth=1, zorder=1)
    axes.set_yticks(places, [f"action[{row['action']}]" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.grid(axis="y", visible=False)
    write_ticks(axes.xaxis, tick)
    axes.set_xlabel("standard deviations (red: --detect)")
    axes.set_title(
        f"Smallest shift caught, probability {power['probability']:.0%}", loc="left", fontsize=10
    )
