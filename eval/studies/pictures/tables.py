"""What came of the study, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from asd_policy.errors import counted
from asd_policy.eval.runs.formats import MISSING
from asd_policy.eval.show.tables import print_lines, print_tables, table
from asd_policy.eval.studies.pictures.figures import named


def _error(of_mean: float | None) -> str:
    return "" if of_mean is None else f" ± {of_mean:.1f}"


def print_calls(console: Console, found: Any) -> None:
    """Calls, evaluations and rejections of each cell; how calls grow."""
    cells = sorted(found["cells"], key=lambda c: (c["steps"], c["window"], c["sampler"]))
    rows = [
        [
            named(c["sampler"]), str(c["steps"]), str(c["window"]),
            f"{c['calls']:.1f}{_error(c['calls_error'])}", f"{c['evaluations']:.0f}",
            f"{sum(c['rejected']):.1f}", f"{c['steps'] / c['calls']:.1f}x",
        ]
        for c in cells
    ]  # fmt: skip
    headers = ("", "K", "window", "calls", "evaluations", "rejections", "fewer\ncalls")
    print_tables(console, [table(headers, rows, dense=True)])
    lines = [
        f"{named(name)}: calls grow about as K^{g['exponent']:.2f} "
        f"(K from {g['steps'][0]} to {g['steps'][-1]}, window {g['window']})."
        for name, g in found["growth"].items()
    ]
    print_lines(console, [*lines, _subject(found)])


def print_quality(console: Console, found: Any) -> None:
    """Distances to DDPM's pictures and to the training pictures."""
    headers = (
        "", "n", "calls", "evals", "Fréchet\nto DDPM", "beyond\nchance", "kernel\nto DDPM",
        "beyond\nchance", "Fréchet\nto data",
    )  # fmt: skip
    rows = [_quality_row(name, each) for name, each in found["samplers"].items()]
    print_tables(console, [table(headers, rows, dense=True)])
    told = found["features_accuracy"]
    print_lines(
        console,
        [
            f"{found['width']} features of {found['features']}"
            + (f" ({told:.1%} of held-out ones rightly)." if told is not None else "."),
            "Beyond chance: more than DDPM's with another seed, with a 95% bootstrap interval.",
            f"Kernel distances are times 1000. Window {found['window']}. {_subject(found)}",
        ],
    )


def _quality_row(name: str, each: Any) -> list[str]:
    start = [name, str(each["pictures"]), f"{each['calls']:.1f}", f"{each['evaluations']:.0f}"]
    to_data = f"{each['to_data']['frechet']['estimate']:.3f}"
    if each["to_ddpm"] is None:
        return [*start, *[MISSING] * 4, to_data]
    middle = []
    for kind, scale, form in (("frechet", 1, ".3f"), ("kernel", 1000, ".2f")):
        far = each["to_ddpm"][kind]
        middle += [format(scale * far["estimate"], form), _range(far["beyond"], scale, form)]
    return [*start, *middle, to_data]


def _range(beyond: Any, scale: float, form: str) -> str:
    if beyond is None:
        return MISSING
    low, high = (format(scale * end, "+" + form) for end in beyond["ci95"])
    return f"{low} {high}"


def print_clock(console: Console, found: Any) -> None:
    """Time of a picture by window and batch, least of the turns, beside sequential DDPM's."""
    rows, gpu = [], found["settings"].get("gpu")
    taken = "wall_s" if gpu else "processor_s"  # beside other work, the processor's is the steadier
    for c in sorted(found["cells"], key=lambda c: (c["batch"], c["window"])):
        alone = [s for s in found["cells"] if s["batch"] == c["batch"] and s["window"] == 1]
        each, base = (min(x[taken]) / x["batch"] for x in (c, (alone or [c])[0]))
        rows.append([
            str(c["batch"]), "sequential" if c["window"] == 1 else f"window {c['window']}",
            "auto" if c["auto"] else "", f"{c['calls']:.0f}", f"{c['evaluations']:.0f}",
            f"{each:.2f}", f"{base / each:.2f}x" if alone else MISSING,
        ])  # fmt: skip
    headers = (
        "together",
        "",
        "",
        "calls",
        "evaluations",
        "s\na picture" if gpu else "CPU s\na picture",
        "as fast",
    )
    print_tables(console, [table(headers, rows, left=(1, 2), dense=True)])
    print_lines(console, [f"K = {found['steps']}, least of the turns. {_subject(found)}"])


def _subject(found: Any) -> str:
    settings = found["settings"]
    return (
        f"{settings['model']}, {settings['parameters']:,} parameters; "
        f"{settings.get('gpu') or settings['cpu']}, {counted(settings['threads'], 'thread')}."
    )
