"""results.json as a person reads it on a terminal. Every number shown is in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asd_policy.errors import counted
from asd_policy.eval.runs.evaluation import Results, Summary
from asd_policy.eval.runs.formats import MISSING, number, success, times
from asd_policy.eval.runs.forms import Difference
from asd_policy.eval.show.tables import print_lines, print_tables, table
from asd_policy.eval.show.windows import sampled_sequentially, window_phrases

_WIDE = 100  # columns that the one-table layout takes
_BUSY = 0.05  # thread-seconds of waiting in each second: a free machine has well under 0.01

Column = tuple[str, Callable[[Summary], str]]  # two-line header, cell


def print_report(console: Console, results: Results, folder: Path) -> None:
    """The table, and what is needed to read it."""
    together = console.width >= _WIDE
    columns = [[*_COLUMNS, *_SPLIT]] if together else [_COLUMNS, _SPLIT]
    print_tables(
        console,
        [*(_table(results, those) for those in columns), *progress_tables(results["samplers"])],
    )
    videos = "; videos/" if (folder / "videos").is_dir() else ""
    page = "; report.html" if (folder / "report.html").is_file() else ""
    print_lines(
        console,
        [
            _setting(results),
            *_deadlines(results),
            *_remarks(results),
            *_pairs(results),
            _time_line(results),
            f"Kept: {folder}/ (results.json: every figure above; episodes.jsonl{page}{videos})",
        ],
    )


def _table(results: Results, columns: Sequence[Column]) -> Table:
    rows = [
        [name, *(cell(summary) for _, cell in columns)]
        for name, summary in results["samplers"].items()
    ]
    return table(["sampler", *(header for header, _ in columns)], rows, dense=True)


def progress_tables(samplers: Mapping[str, Any]) -> list[Table]:
    """How far the episodes got, and how smoothly they moved; none where that was not kept.

    Args:
        samplers: name → what was summed up of it, with `stages` and `smoothness`.
    """
    stages = list(next(iter(samplers.values())).get("stages", {}))
    if not stages:
        return []
    rows = []
    for name, summary in samplers.items():
        reached, motion = summary["stages"], summary["smoothness"]
        episodes = [reached[stage]["episodes"] if stage in reached else None for stage in stages]
        counts = [f"{e['count']}/{e['n']}" if e else MISSING for e in episodes]
        jumps = motion["jump_at_joins"], motion["jump_within"]
        rows.append([name, *counts, number(motion["jerk"]), *map(number, jumps)])
    headers = ["stages\nreached", *("\n".join(s.rsplit(" ", 1)) for s in stages)]
    headers += ["jerk\nm/s³", "jump\njoins", "jump\nwithin"]
    return [table(headers, rows, dense=True)]


_COLUMNS: list[Column] = [
    ("success\n95% interval", lambda s: success(s["success"])),
    ("calls\n/chunk", lambda s: number(s["network_calls_per_chunk"])),
    ("evals\n/chunk", lambda s: number(s["network_evaluations_per_chunk"])),
    ("chunk\np50 ms", lambda s: number(s["chunk_latency_ms"]["p50"])),
    ("chunk\np95 ms", lambda s: number(s["chunk_latency_ms"]["p95"])),
    ("step\np95 ms", lambda s: number(s["control_step_latency_ms"]["p95"])),
    ("speedup\nclock", lambda s: times(s["speedup"]["wall_clock"])),
    ("speedup\ncalls", lambda s: times(s["speedup"]["algorithmic"])),
]
_SPLIT: list[Column] = [
    ("draft\nms", lambda s: number(s["overhead_ms_per_chunk"]["draft"])),
    ("net\nms", lambda s: number(s["overhead_ms_per_chunk"]["network"])),
    ("verify\nms", lambda s: number(s["overhead_ms_per_chunk"]["verify"])),
    ("other\nms", lambda s: number(s["overhead_ms_per_chunk"]["other"])),
]


def _setting(results: Results) -> str:
    resolved, seeds = results["resolved"], results["seeds"]
    ends = [str(seed) for seed in sorted({seeds["first"], seeds["last"]})]
    steps = {resolved["steps"][name] for name in results["samplers"] if "ddim" not in name}
    parts = [
        results["task"],
        f"seed{'s' * (seeds['count'] > 1)} {'–'.join(ends)}",
        *(f"K={k}" for k in sorted(steps)),
        *(f"η={eta:g}" for eta in sorted(set(resolved.get("etas", {}).values()))),
        *window_phrases(results),
        resolved["device"],
        counted(resolved["threads"], "thread"),
        resolved["precision"] + ", compiled" * resolved["compile"],
        f"{resolved['engine']} engine with {resolved['kernels']} kernels",
    ]
    if results["num_envs"] > 1:
        parts.append(f"{results['num_envs']} robots in one batch (latency is not one robot's)")
    return "Setting: " + ", ".join(parts)


def is_busy(results: Results) -> bool:
    """Whether other work had the processor so often that latencies are not a free machine's."""
    waiting = results["processor_wait_share"]
    return waiting is not None and waiting > _BUSY


def busy_note(results: Results) -> str:
    """What a busy machine means for the figures, and what to do."""
    threads = results["resolved"]["threads"]
    fewer = "" if threads == 1 else ", or with --threads 1, which loses least to other work"
    others = "calls, acceptance and success are"
    if load_counts(results):
        others = "nor, as chunks came late by what they took, is success; calls and acceptance are"
    return (
        "The machine was busy with other work: this run waited for a processor "
        f"{results['processor_wait_share']:.2f} s in each second (all threads together), so "
        f"latencies and the speedup by the clock are not those of a free machine; {others}. For "
        f"latencies, run the command again when the other work is done{fewer}."
    )


def load_counts(results: Results) -> bool:
    """Whether success depends on the machine's load: chunks came late by what they took."""
    late = (summary["deadlines"] for summary in results["samplers"].values())
    return any(each is not None and each["delay"] == "measured" for each in late)


def _deadlines(results: Results) -> list[str]:
    """What delays came to, where the world went on while the policy thought."""
    lines = []
    for name, summary in results["samplers"].items():
        d = summary["deadlines"]
        if d is None:
            continue
        delay = d["delay_ms"]
        lines.append(
            f"Delay of {name} at {d['control_rate_hz']:g} Hz ({d['delay']}"
            + " ms" * (d["delay"] != "measured")
            + f"): p50 {number(delay['p50'])} ms, p95 {number(delay['p95'])} ms, "
            f"{number(d['delay_steps_mean'])} steps a chunk; missed: {d['held_steps']} of "
            f"{d['steps']} steps held still ({d['held_steps_at_start']} before a first chunk), "
            f"{d['late_chunks']} of {d['chunks']} chunks over one period, "
            f"{d['useless_chunks']} useless"
        )
    return lines


def _remarks(results: Results) -> list[str]:
    """What the figures alone would not say."""
    lines = [
        f"{name}: no window pays for itself here, by measured cost, so it sampled sequentially."
        for name in sampled_sequentially(results)
    ]
    firsts = [
        f"{name} {number(summary['chunk_latency_ms']['first'])} ms"
        for name, summary in results["samplers"].items()
        if summary["chunk_latency_ms"]["first"] is not None
    ]
    if firsts:
        lines.append(f"First chunk, apart from all other figures: {', '.join(firsts)}")
    if is_busy(results):
        lines.append(busy_note(results))
    if results["restarts"]:
        lines.append(
            f"Worker processes died {results['restarts']} times; their episodes were run again."
        )
    if not results["complete"]:
        lines.append("This run is not complete: the figures are of the episodes finished so far.")
    return lines


def _pairs(results: Results) -> list[str]:
    """Each sampler against ddpm (without it, the first); the file has every pair."""
    names = list(results["samplers"])
    reference = "ddpm" if "ddpm" in names else names[0]
    return [
        f"Same seeds, {pair['a']} and {pair['b']}: both succeeded {pair['both']}, "
        f"only {pair['a']} {pair['only_a']}, only {pair['b']} {pair['only_b']}, "
        f"neither {pair['neither']}; difference {_points(pair['difference'])}"
        for pair in results["paired"]
        if pair["n"] and reference in (pair["a"], pair["b"])
    ]


def _points(difference: Difference | None) -> str:
    assert difference is not None, "there are common seeds"
    low, high = (100 * end for end in difference["ci95"])
    return f"{100 * difference['estimate']:.1f} points (95% {low:.1f} to {high:.1f})"


def _time_line(results: Results) -> str:
    shares = []
    for name, summary in results["samplers"].items():
        time = summary["time"]
        if time["total_s"]:
            shared: dict[str, Any] = dict(time["share"])
            named = [f"{part} {100 * share:.0f}%" for part, share in shared.items() if share]
            shares.append(f"{name} {time['total_s']:.1f} s ({', '.join(named)})")
    return "Time: " + (", ".join(shares) or "none")
