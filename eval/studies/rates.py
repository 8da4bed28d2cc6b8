"""`asd-policy rates`: success against control rate, one evaluation for each rate."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asd_policy.console import plain_console, say
from asd_policy.errors import InputError
from asd_policy.eval.options import (
    EvalOptions,
    RatesOptions,
    check_options,
    command_line,
    with_realtime,
)
from asd_policy.eval.plan import Parts
from asd_policy.eval.resume import OPTIONS_FILE, evaluations_continued_with, keep_options, store_of
from asd_policy.eval.rollout.loop import Setup
from asd_policy.eval.runs.evaluation import Results, Summary
from asd_policy.eval.runs.files import default_folder, reserved, write_json
from asd_policy.eval.runs.formats import MISSING, duration
from asd_policy.eval.runs.forms import Delay
from asd_policy.eval.runs.studies import AtRate, Rate, Rates
from asd_policy.eval.show.tables import print_lines, print_tables, table
from asd_policy.eval.studies.evaluate import evaluate
from asd_policy.eval.subject import with_its_task

Json = dict[str, Any]
_USUAL = "late"


def run_rates(
    options: RatesOptions,
    *,
    prepare: Callable[[Parts], Setup] | None = None,
    console: Console | None = None,
) -> Rates:
    """Evaluate at every rate, in <out>/<rate>hz; after each, rewrite rates.json and the figure.

    With `resume`, rates that were finished are only read, and the others continued or begun.

    Raises:
        ValueError: an option that is out of range. Others: as `evaluate`.
        KeyboardInterrupt: passed on, when the command that continues has been said.
    """
    if not options.rates or len(set(options.rates)) < len(options.rates):
        raise InputError(f"--rates takes different rates, one or more; got {options.rates}")
    if not all(0.0 < rate < math.inf for rate in options.rates):
        raise InputError(f"--rates takes positive numbers of hertz; got {options.rates}")
    if options.delay is None:
        raise InputError("`rates` needs a --delay: measured, or milliseconds; got none")
    if options.resume and options.out is None:
        raise InputError("--resume needs --out, the folder of the rates to continue; got none")
    if not options.executions or len(set(options.executions)) < len(options.executions):
        got = " ".join(options.executions)
        raise InputError(f"--executions takes different ones, one or more; got {got}")
    folders = [_folder(rate, _USUAL) for rate in options.rates]
    if len(set(folders)) < len(folders):
        got = " ".join(map(str, options.rates))
        raise InputError(f"--rates takes different ones, told apart by six digits; got {got}")
    options = with_its_task(options)
    root = options.out or default_folder(options.name or str(options.task), Path("outputs/rates"))
    options = dataclasses.replace(options, out=root)
    for rate, execution in itertools.product(options.rates, options.executions):
        check_options(with_realtime(_at(options, rate, execution)))
    with reserved(root):
        say(f"Output folder: {root}")
        keep_options(
            root, store_of("rates", may_grow=("episodes", "rates", "executions")), "rates", options
        )
        again = command_line(dataclasses.replace(options, resume=True), "rates")
        with evaluations_continued_with(again, root / OPTIONS_FILE):
            result = _evaluate(options, root, prepare, console)
    console = console or plain_console()
    print_tables(console, [_table(dict(result))])
    print_lines(console, [f"Kept: {root}/ (rates.json, rates.svg, a folder for each rate)"])
    return result


def _evaluate(
    options: RatesOptions,
    root: Path,
    prepare: Callable[[Parts], Setup] | None,
    console: Console | None,
) -> Rates:
    done: dict[tuple[float, str], Results] = {}
    for rate, execution in itertools.product(sorted(options.rates), options.executions):
        here = _at(options, rate, execution)
        done[rate, execution] = evaluate(here, prepare=prepare, console=console, part=True)
        assert options.delay is not None
        delay = options.delay
        result = gather(list(delay) if isinstance(delay, tuple) else delay, done)
        write_json(root / "rates.json", result)
        save_figure(dict(result), root / "rates.svg")
    return result


def _at(options: RatesOptions, rate: float, execution: str) -> EvalOptions:
    """The evaluation at one rate."""
    assert options.out is not None
    shared = {f.name: getattr(options, f.name) for f in dataclasses.fields(EvalOptions)}
    own = {"control_rate": rate, "execution": execution}
    return EvalOptions(**shared | own | {"out": options.out / _folder(rate, execution)})


def _folder(rate: float, execution: str) -> str:
    return f"{rate:g}hz" + (f"-{execution}" if execution != _USUAL else "")


def _at_rate(summary: Summary) -> AtRate:
    assert summary["deadlines"] is not None, "every rate has a --delay"
    told: AtRate = {
        "success": summary["success"],
        "deadlines": summary["deadlines"],
        "chunk_latency_ms": summary["chunk_latency_ms"],
        "network_calls_per_chunk": summary["network_calls_per_chunk"],
    }
    if "smoothness" in summary:
        told["smoothness"] = summary["smoothness"]
    return told


def gather(delay: Delay, done: Mapping[tuple[float, str], Results]) -> Rates:
    """The content of rates.json: of the summary of each rate's evaluation."""
    *_, last = done.values()
    return {
        "schema_version": 1,
        "task": last["task"],
        "delay": delay,
        "resolved": last["resolved"],
        "seeds": last["seeds"],
        "rates": [_rate(*which, results) for which, results in done.items()],
    }


def _rate(rate: float, execution: str, results: Results) -> Rate:
    entry: Rate = {
        "control_rate_hz": rate,
        "folder": _folder(rate, execution),
        "complete": results["complete"],
        "processor_wait_share": results["processor_wait_share"],
        "samplers": {name: _at_rate(summary) for name, summary in results["samplers"].items()},
    }
    if execution != _USUAL:
        entry["execution"] = execution
    return entry


def save_figure(result: Json, path: Path) -> None:
    """Over the control rate: success with its 95% interval, and steps held still below it; a column
    for each execution."""
    import matplotlib
    from matplotlib.figure import Figure

    from asd_policy.eval.show.figures import STYLE, label_ticks, save

    executions = list(dict.fromkeys(entry.get("execution", _USUAL) for entry in result["rates"]))
    with matplotlib.rc_context(STYLE):
        width = 6 if len(executions) == 1 else 2 + 3 * len(executions)
        figure = Figure(figsize=(width, 6), layout="constrained")
        panels = figure.subplots(2, len(executions), sharex=True, sharey=True, squeeze=False)
        for execution, (top, bottom) in zip(executions, panels.T, strict=True):
            of = [e for e in result["rates"] if e.get("execution", _USUAL) == execution]
            for i, name in enumerate(result["rates"][0]["samplers"]):
                _lines(top, bottom, of, name, i)
            top.set(ylim=(-3, 103), xscale="log")
            if len(executions) > 1:
                top.set_title(execution)
            bottom.set(xlabel="control rate, Hz")
            label_ticks(bottom.xaxis, sorted({e["control_rate_hz"] for e in result["rates"]}))
        panels[0][0].set(ylabel="success, %")
        panels[1][0].set(ylabel="steps held still, %")
        delay = result["delay"]
        if delay != "measured":
            delay = ", ".join(map(duration, delay if isinstance(delay, list) else [delay]))
        figure.suptitle(f"{result['task']}: chunks come late ({delay})")
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        save(figure, path, ("svg",))


def _lines(top: Any, bottom: Any, entries: Sequence[Json], name: str, number: int) -> None:
    """One sampler's, of one execution."""
    from asd_policy.eval.show.figures import COLOURS

    found = [entry["samplers"][name] for entry in entries]
    look = {
        "color": COLOURS.get(name, COLOURS["ddim-10"]),
        "marker": "os^Dv"[number % 5],
        "label": name,
    }
    share = [100 * s["success"]["rate"] for s in found]
    ends = [[100 * end for end in s["success"]["ci95"]] for s in found]
    below = [max(0.0, y - low) for y, (low, _) in zip(share, ends, strict=True)]
    above = [max(0.0, high - y) for y, (_, high) in zip(share, ends, strict=True)]
    # Side by side: they may coincide.
    at = [entry["control_rate_hz"] * (1 + 0.02 * number) for entry in entries]
    top.errorbar(at, share, yerr=[below, above], capsize=3, **look)
    held = [100 * s["deadlines"]["held_steps"] / s["deadlines"]["steps"] for s in found]
    bottom.plot(at, held, **look)


def _table(result: Json) -> Table:
    rows = []
    for entry in result["rates"]:
        for name, summary in entry["samplers"].items():
            success, late = summary["success"], summary["deadlines"]
            low, high = success["ci95"]
            jump = summary.get("smoothness", {}).get("jump_at_joins")
            rows.append(
                [
                    f"{entry['control_rate_hz']:g}",
                    name,
                    entry.get("execution", _USUAL),
                    f"{success['count']}/{success['n']}",
                    f"{100 * low:.0f}–{100 * high:.0f}%",
                    duration(late["delay_ms"]["p50"]),
                    f"{late['delay_steps_mean']:.1f}",
                    f"{late['held_steps']}/{late['steps']}",
                    MISSING if jump is None else f"{jump:.2f}",
                ]
            )
    headers = (
        "Hz",
        "sampler",
        "execution",
        "success",
        "95%",
        "delay\np50",
        "steps\nlate",
        "held still,\nof steps",
        "jump at\njoins",
    )
    return table(headers, rows, left=(1, 2), dense=True)
