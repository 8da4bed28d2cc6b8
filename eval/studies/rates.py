"""`asd-policy rates`: success against control rate, one evaluation for each rate."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asd_policy.console import plain_console, say
from asd_policy.errors import InputError
from asd_policy.eval.options import EvalOptions, RatesOptions, command_line
from asd_policy.eval.plan import Parts
from asd_policy.eval.resume import OPTIONS_FILE, continued_with, keep_options, store_of
from asd_policy.eval.rollout.loop import Setup
from asd_policy.eval.runs.evaluation import Results, Summary
from asd_policy.eval.runs.files import default_folder, reserved, write_json
from asd_policy.eval.runs.formats import duration
from asd_policy.eval.runs.forms import Delay
from asd_policy.eval.runs.studies import AtRate, Rate, Rates
from asd_policy.eval.show.tables import print_lines, table
from asd_policy.eval.studies.evaluate import evaluate
from asd_policy.eval.subject import with_its_task

Json = dict[str, Any]
_USUAL = "late"
_LINES = {"waiting": ":", "late": "-", "overlapped": "--"}


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
    if options.delay is None:
        raise InputError("`rates` needs a --delay: measured, or milliseconds; got none")
    if options.resume and options.out is None:
        raise InputError("--resume needs --out, the folder of the rates to continue; got none")
    if not options.executions or len(set(options.executions)) < len(options.executions):
        got = " ".join(options.executions)
        raise InputError(f"--executions takes different ones, one or more; got {got}")
    options = with_its_task(options)
    root = options.out or default_folder(options.name or str(options.task), Path("outputs/rates"))
    options = dataclasses.replace(options, out=root)
    with reserved(root):
        say(f"Output folder: {root}")
        keep_options(
            root, store_of("rates", may_grow=("episodes", "rates", "executions")), "rates", options
        )
        again = command_line(dataclasses.replace(options, resume=True), "rates")
        with continued_with(again, root / OPTIONS_FILE):
            result = _evaluate(options, root, prepare, console)
    console = console or plain_console()
    console.print(_table(dict(result)))
    print_lines(console, [f"Kept: {root}/ (rates.json, rates.svg, a folder for each rate)"])
    return result


def _evaluate(
    options: RatesOptions,
    root: Path,
    prepare: Callable[[Parts], Setup] | None,
    console: Console | None,
) -> Rates:
    shared = {f.name: getattr(options, f.name) for f in dataclasses.fields(EvalOptions)}
    done: dict[tuple[float, str], Results] = {}
    for rate, execution in itertools.product(sorted(options.rates), options.executions):
        own = {"out": root / _folder(rate, execution), "control_rate": rate, "execution": execution}
        here = EvalOptions(**{**shared, **own})
        done[rate, execution] = evaluate(here, prepare=prepare, console=console, part=True)
        assert options.delay is not None
        result = gather(options.delay, done)
        write_json(root / "rates.json", result)
        save_figure(dict(result), root / "rates.svg")
    return result


def _folder(rate: float, execution: str) -> str:
    return f"{rate:g}hz" + (f"-{execution}" if execution != _USUAL else "")


def _at_rate(summary: Summary) -> AtRate:
    assert summary["deadlines"] is not None, "every rate has a --delay"
    return {
        "success": summary["success"],
        "deadlines": summary["deadlines"],
        "chunk_latency_ms": summary["chunk_latency_ms"],
        "network_calls_per_chunk": summary["network_calls_per_chunk"],
    }


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
    """Two panels over the control rate: success with its 95% interval, and steps held still."""
    import matplotlib
    from matplotlib.figure import Figure

    from asd_policy.eval.show.figures import COLOURS, STYLE, label_ticks, save

    executions = dict.fromkeys(entry.get("execution", _USUAL) for entry in result["rates"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 6))
        top, bottom = figure.subplots(2, 1, sharex=True)
        series = itertools.product(result["rates"][0]["samplers"], executions)
        for i, (name, execution) in enumerate(series):
            of = [e for e in result["rates"] if e.get("execution", _USUAL) == execution]
            found = [entry["samplers"][name] for entry in of]
            look = {
                "color": COLOURS.get(name, COLOURS["ddim-10"]),
                "marker": "os^Dv"[i % 5],
                "linestyle": _LINES[execution],
                "label": name if len(executions) == 1 else f"{name}, {execution}",
            }
            share = [100 * s["success"]["rate"] for s in found]
            ends = [[100 * end for end in s["success"]["ci95"]] for s in found]
            below = [max(0.0, y - low) for y, (low, _) in zip(share, ends, strict=True)]
            above = [max(0.0, high - y) for y, (_, high) in zip(share, ends, strict=True)]
            # Side by side: they may coincide.
            at = [entry["control_rate_hz"] * (1 + 0.02 * i) for entry in of]
            top.errorbar(at, share, yerr=[below, above], capsize=3, **look)
            held = [100 * s["deadlines"]["held_steps"] / s["deadlines"]["steps"] for s in found]
            bottom.plot(at, held, **look)
        top.set(ylabel="success, %", ylim=(-3, 103), xscale="log")
        bottom.set(ylabel="steps held still, %", ylim=(-3, 103), xlabel="control rate, Hz")
        label_ticks(bottom.xaxis, sorted({entry["control_rate_hz"] for entry in result["rates"]}))
        top.legend()
        delay = result["delay"] if result["delay"] == "measured" else duration(result["delay"])
        top.set_title(f"{result['task']}: chunks come late ({delay})", loc="left")
        save(figure, path, ("svg",))


def _table(result: Json) -> Table:
    rows = []
    for entry in result["rates"]:
        for name, summary in entry["samplers"].items():
            success, late = summary["success"], summary["deadlines"]
            low, high = success["ci95"]
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
                ]
            )
    headers = (
        "Hz",
        "sampler",
        "execution",
        "success",
        "95%",
        "delay p50",
        "steps late",
        "held still",
    )
    return table(headers, rows, left=(1, 2))
