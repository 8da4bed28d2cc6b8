"""bench.json as a person reads it: rich tables where rich is installed, plain columns elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from asd_policy.errors import counted
from asd_policy.eval.runs.formats import MISSING
from asd_policy.eval.studies.bench.windows import WITHIN

Json = dict[str, Any]
Column = tuple[str, Callable[[Json], str]]
SPLIT = (("draft", "draft"), ("net", "network"), ("verify", "verify"), ("noise", "noise"),
         ("other", "other"))  # fmt: skip


def print_benchmark(content: Json, write: Callable[[str], None] = print) -> None:
    """Every table of a benchmark. Every number shown is in the file."""
    cells = content["cells"]
    for (network, steps, batch), group in groupby(sorted(cells, key=_place), key=_place):
        rows = list(group)
        trained = content["networks"][network]["trained"]
        note = "" if trained else " (untrained: its calls and acceptance mean nothing)"
        write(f"\n{network}{note}, K={steps}, {counted(batch, 'chain')}")
        done = [row for row in rows if "error" not in row]
        write(table(columns_of(done), done))
        for row in rows:
            if "error" in row:
                write(f"{row['sampler']} on {row['engine']} failed: {row['error']}")
        for line in _remarks(done):
            write(line)
    if content.get("window_choices"):
        write("\nThe window that auto chose, against the best of the fixed ones, by medians")
        write(window_table(content["window_choices"]))
    if content["costs"]:
        write(
            "\nOne network call, least ms by rows in the batch; weights read and arithmetic done,"
        )
        write("as a share of what a plain copy and a plain matrix product reach here")
        write(cost_table(content))
    for result in content["calls_against_steps"]:
        write(_scaling_line(result))
    write("\n" + _setting(content))


def _place(cell: Json) -> tuple[str, int, int]:
    return cell["network"], cell["steps"], cell["batch"]


def columns_of(cells: Sequence[Json]) -> list[Column]:
    """Columns of a group, those that are alike in all its rows left out."""
    columns: list[Column] = [("sampler", lambda c: c["sampler"])]
    for header, key in (("engine", "engine_used"), ("kernels", "kernels_used")):
        if len({c[key] for c in cells}) > 1:
            columns.append((header, lambda c, key=key: c[key]))  # type: ignore[misc]
    if len({c["precision"] for c in cells} - {"-"}) > 1:
        columns.append(("precision", lambda c: c["precision_used"]))
    return [
        *columns,
        ("θ", _window),
        ("calls", lambda c: number(c["calls"])),
        ("rows", lambda c: number(c["evaluations"])),
        ("p50 ms", lambda c: number(c["latency_ms"]["p50"])),
        ("p95", lambda c: number(c["latency_ms"]["p95"])),
        ("p99", lambda c: number(c["latency_ms"]["p99"])),
        ("×ddpm", lambda c: number(c["speedup"]["over_ddpm"], 2)),
        ("K/calls", lambda c: number(c["algorithmic_speedup"], 2)),
        ("ratio", lambda c: number(c["speedup"]["clock_per_algorithmic"], 2)),
        ("×loop", lambda c: number(c["speedup"]["over_eager_loop"], 1)),
        *((header, _share(part)) for header, part in SPLIT),
    ]


def _share(part: str) -> Callable[[Json], str]:
    return lambda cell: f"{100 * cell['split_share'][part]:.0f}%"


def _window(cell: Json) -> str:
    if cell["window"] == "-":
        return MISSING
    return f"{cell['window_used']}" + "*" * (cell["window"] == "auto")


def number(value: float | None, digits: int | None = None) -> str:
    """A number with the digits that matter."""
    if value is None:
        return MISSING
    if digits is None:
        digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"


def window_table(choices: Sequence[Json]) -> str:
    """One row each, and how many are as good as the best."""
    columns: list[Column] = [("network", lambda c: c["network"])]
    columns += [
        (name, lambda c, key=name: str(c[key]))  # type: ignore[misc]
        for name in ("sampler", "engine_used", "precision")
        if len({choice[name] for choice in choices}) > 1
    ]
    columns += [
        ("K", lambda c: str(c["steps"])),
        ("chains", lambda c: str(c["batch"])),
        ("θ", lambda c: str(c["chosen"])),
        ("best θ", lambda c: str(c["best"])),
        ("p50 ms", lambda c: number(c["chosen_ms"])),
        ("best", lambda c: number(c["best_ms"])),
        ("loss", lambda c: f"{100 * c['loss']:.1f}% ± {100 * c['loss_standard_error']:.1f}"),
    ]
    good = sum(choice["loss"] <= WITHIN for choice in choices)
    verdict = f"{good} of {len(choices)} within {100 * WITHIN:.0f}% of the best."
    return f"{table(columns, choices)}\n{verdict}"


def cost_table(content: Json) -> str:
    """C(n) of each form of a network, one row each, with the use of the hardware at its ends."""
    sizes = sorted({n for curve in content["costs"] for n in curve["rows"]})
    columns: list[Column] = [
        ("network", lambda c: c["network"]),
        ("form", lambda c: _form(c)),
        *((str(n), _cost_at(n)) for n in sizes),
        ("copy", lambda c: f"{100 * hardware(content, c, 0)[0]:.0f}%"),
        ("matmul", lambda c: f"{100 * hardware(content, c, -1)[1]:.0f}%"),
    ]
    return table(columns, content["costs"])


def _form(curve: Json) -> str:
    words = [curve["engine"], "" if curve["precision"] == "-" else curve["precision"]]
    return " ".join([*words, "compiled" * curve["compile"]]).strip()


def _cost_at(rows: int) -> Callable[[Json], str]:
    def cell(curve: Json) -> str:
        return number(dict(zip(curve["rows"], curve["ms"], strict=True)).get(rows))

    return cell


def hardware(content: Json, curve: Json, at: int) -> tuple[float, float]:
    """(share of the copy bandwidth, share of the product's FLOP/s) at one point of C(n)."""
    size, ceilings = content["networks"][curve["network"]], content["ceilings"]
    precision = "fp32" if curve["precision"] == "-" else curve["precision"]
    whole = curve["engine"] == "eager-loop"
    seconds = curve["ms"][at] / 1e3
    width = 2 if precision == "bf16" else 4
    read = width * (size["weights"] + whole * size["conditioning_weights"]) / seconds
    flops = size["flops_per_row"] + whole * size["conditioning_flops_per_row"]
    done = flops * curve["rows"][at] / seconds
    return (
        read / ceilings["copy_bytes_per_s"],
        done / ceilings["matmul_flop_per_s"][precision],
    )


def _remarks(cells: Sequence[Json]) -> list[str]:
    lines = []
    for cell in cells:
        if cell["window"] == "auto" and cell["window_used"] == 1 and cell["sampler"] != "paradigms":
            lines.append(
                f"{cell['sampler']}: no window pays for itself here, by measured cost, so it "
                "sampled sequentially."
            )
    waits = [c["processor_wait_share"] for c in cells if c["processor_wait_share"] is not None]
    if waits and max(waits) > 0.05:
        lines.append(
            f"The machine was busy: {max(waits):.2f} s of waiting for a processor in each second."
        )
    return lines


def _scaling_line(result: Json) -> str:
    pairs = zip(result["calls"], result["standard_error"], strict=True)
    calls = ", ".join(f"{mean:.1f}±{error:.1f}" for mean, error in pairs)
    steps = ", ".join(str(k) for k in result["steps"])
    return (
        f"{result['form']}: {calls} calls for K = {steps} (θ = K, exact mixture); "
        f"exponent {result['exponent']:.3f} ± {result['exponent_standard_error']:.3f}"
    )


def _setting(content: Json) -> str:
    machine, ceilings = content["machine"][-1], content["ceilings"]
    parts = [
        machine["gpu"] or machine["cpu"],
        counted(machine["threads"], "thread"),
        f"torch {machine['versions']['torch']}",
    ]
    if ceilings:
        parts.append(f"copy {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s")
        products = ceilings["matmul_flop_per_s"].items()
        parts += [f"{p} product {flops / 1e9:.0f} GFLOP/s" for p, flops in products]
    lines = [
        ", ".join(parts),
        "θ: * chosen from measured cost. rows: network evaluations a chunk. ×ddpm, ×loop: by the "
        "clock, medians. ratio: ×ddpm ÷ K/calls.",
    ]
    if content["settings"].get("quick"):
        lines.append("A quick run: these are no figures to quote.")
    return "\n".join(lines)


def table(columns: Sequence[Column], rows: Sequence[Json]) -> str:
    """Aligned text, through rich where it is installed."""
    cells = [[cell(row) for _, cell in columns] for row in rows]
    headers = [header for header, _ in columns]
    try:
        from asd_policy.eval.show.tables import as_text
    except ImportError:
        return _plain_table(headers, cells)
    return as_text(headers, cells)


def _plain_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [headers, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
