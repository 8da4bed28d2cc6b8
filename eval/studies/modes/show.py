"""Tables and the figure of the study of modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asd_policy.console import plain_console, say
from asd_policy.eval.runs.formats import MISSING
from asd_policy.eval.runs.schemas import read_json
from asd_policy.eval.show.tables import print_lines, print_tables, table
from asd_policy.eval.studies.modes.board import ROWS
from asd_policy.eval.studies.modes.demos import OUT
from asd_policy.eval.studies.modes.samplers import REFERENCE

Json = dict[str, Any]


def show(file: Path = OUT / "modes.json", figure: Path | None = None) -> None:
    """Print the tables of what is kept, and draw its figure.

    Args:
        file: What `measure` wrote.
        figure: Picture to write (png, pdf or svg); none if left out.
    """
    content = read_json(file, "modes")
    print_findings(plain_console(), content)
    if figure is not None:
        draw_figure(content, figure)
        say(f"Figure: {figure}")


def print_findings(console: Console, found: Any) -> None:
    """Chunks of a known law, chunks of the policy, episodes, and what they are of."""
    settings = found["settings"]
    made = [
        make(found) for make, of in ((_known, "known"), (_law, "law"), (_play, "play")) if found[of]
    ]
    print_tables(console, made)
    print_lines(
        console,
        [
            f"{settings['parameters'] / 1e6:.2f} M parameters, {settings['training_steps']} steps "
            f"on {settings['demonstrations']} demonstrations.",
            "Exact network: share of the second way, and of what is between.",
            "Right: of the chunks in either mode, and of the rows that were passed. Between:",
            "chunks in the middle half of the way from one mode to the other. Touched: of the",
            "rows that were come to. All in %, differences in points, with 95% intervals.",
            "p: of the hypothesis that chunks, or ways, are distributed as ddpm's.",
        ],
    )


def _known(found: Any) -> Any:
    cases: dict[tuple[float, float, float], dict[str, str]] = {}
    for each in found["known"]:
        _, between, second = (100 * count / sum(each["counts"]) for count in each["counts"])
        of = cases.setdefault((each["first"], each["second"], each["chance"]), {})
        of[each["sampler"]] = f"{second:.1f}" + f" {between:.1f}" * (between >= 0.05)
    names = list(dict.fromkeys(each["sampler"] for each in found["known"]))
    rows = [
        [f"{first:+g} or {second:+g}", f"{100 * chance:g}", *(of.get(n, MISSING) for n in names)]
        for (first, second, chance), of in cases.items()
    ]
    headers = ("exact network", "chance", *(name.replace("-", "\n") for name in names))
    return table(headers, rows, dense=True)


def _law(found: Any) -> Any:
    rows = [
        [
            each["sampler"], _rate(each["right"]), _points(each["right_gap"]),
            _rate(each["between"]), _points(each["between_gap"]), _p(each["p_value"]),
        ]
        for each in found["law"]
        if each["row"] == "all"
    ]  # fmt: skip
    gap = f"− {REFERENCE}"
    return table(("chunks", "right", gap, "between", gap, "p"), rows, dense=True)


def _play(found: Any) -> Any:
    gaps = {pair["a"]: pair["success"] for pair in found["paired"] if pair["b"] == REFERENCE}
    rows = []
    for name, each in found["play"].items():
        success = each["success"]
        gap = gaps[name]["difference"] if name in gaps else None
        rows.append(
            [
                name, f"{success['count']}/{success['n']}", _points(gap), _rate(each["touched"]),
                _rate(each["right"]), " ".join(map(str, each["lanes"])),
                _p(each["ways_p"]), f"{each['calls_per_chunk']:.1f}",
            ]
        )  # fmt: skip
    headers = (
        "episodes", "success", f"− {REFERENCE}", "touched", "right", "lanes", "p", "calls",
    )  # fmt: skip
    return table(headers, rows, dense=True)


def _rate(share: Any) -> str:
    if share is None:
        return MISSING
    low, high = (100 * end for end in share["ci95"])
    return f"{100 * share['rate']:.1f} [{low:.0f} {high:.0f}]"


def _points(gap: Any) -> str:
    if gap is None:
        return MISSING
    middle, low, high = (100 * x for x in (gap["estimate"], *gap["ci95"]))
    return f"{middle:+.1f} [{low:+.0f} {high:+.0f}]"


def _p(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2g}"


def draw_figure(found: Any, path: Path) -> None:
    """Draw the swings of chunks before each row, and the lanes in which episodes end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from asd_policy.eval.show.figures import STYLE, colour, save

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        *swings, lanes = figure.subplots(1, len(ROWS) + 1)
        edges = np.array(found["edges"])
        shown = list(found["play"] or {e["sampler"] for e in found["swings"]})
        for row, axis in enumerate(swings):
            for each in found["swings"]:
                if each["row"] == row and each["sampler"] in shown:
                    heights = np.array(each["histogram"]) / sum(each["histogram"])
                    label = each["sampler"] if row == 0 else None
                    axis.stairs(heights, edges, color=colour(each["sampler"]), label=label)
            left, right = found["rows"][row]["left"], found["rows"][row]["right"]
            axis.axvspan(
                left + (right - left) / 4, right - (right - left) / 4, color="#F0F0F0", zorder=0
            )
            axis.set(title=f"Chunks before row {row + 1}", xlabel="swing", yticks=[])
            axis.set_xlim(1.8 * left - 0.8 * right, 1.8 * right - 0.8 * left)
        width = 0.8 / max(len(shown), 1)
        for i, name in enumerate(found["play"]):
            play = found["play"][name]
            shares = np.array(play["lanes"]) / play["success"]["n"]
            places = np.arange(len(shares)) + (i - (len(shown) - 1) / 2) * width
            lanes.bar(places, shares, width, color=colour(name))
        lanes.set(title="Lanes that episodes end in", xlabel="lane, from the left", xticks=[])
        figure.legend(loc="outside lower center", ncols=len(shown))
        save(figure, path, (path.suffix.removeprefix("."),))
