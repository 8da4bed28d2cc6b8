"""Is the first command steady? Runs it again and again, with other work beside it and without.

    python -m asd_policy.eval.studies.bench.first_minutes --runs 10 --out first_minutes.json

Each run is `asd-policy eval` in a process of its own, as a user types it. Beside the busy ones a
process for each core does nothing but compute. What the network costs is measured by the first run
and kept for the others, as on a user's machine; with --fresh every run measures it anew.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.errors import AsdPolicyError, InputError
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.machine import describe_machine
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.eval.script import run_script
from asd_policy.eval.show.tables import as_text
from asd_policy.files import check_writable

Json = dict[str, Any]
SPIN = "while True: pass"


@contextlib.contextmanager
def rivals(count: int) -> Iterator[None]:
    """So many processes that take a processor each."""
    running = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run_once(episodes: int, cache: Path) -> Json:
    """One evaluation, from the command to the end of its process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "asd_policy", "eval", "--episodes", str(episodes)]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--out", str(out)],
            env=os.environ | {"ASD_POLICY_CACHE": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise AsdPolicyError(f"`{' '.join(command)}` failed: {done.stderr[-2000:]}")
        seconds = time.perf_counter() - start
        results = read_json(out / "results.json", "results")
    asd, ddpm = results["samplers"]["asd"], results["samplers"]["ddpm"]
    return {
        "seconds": seconds,
        "window": asd["window"]["chosen"],
        "windows": sorted(int(window) for window in asd["window"]["chunks_by_window"]),
        "calls": asd["network_calls_per_chunk"],
        "asd_ms": asd["chunk_latency_ms"]["p50"],
        "ddpm_ms": ddpm["chunk_latency_ms"]["p50"],
        "speedup_clock": asd["speedup"]["wall_clock"],
        "speedup_calls": asd["speedup"]["algorithmic"],
        "processor_wait_share": results["processor_wait_share"],
        "threads": results["resolved"]["threads"],
    }


def main(
    runs: int = 10, episodes: int = 4, fresh: bool = False, out: Path = Path("first_minutes.json")
) -> None:
    """Run the first command on a quiet and on a busy machine, and print one table.

    Args:
        runs: Runs of each.
        episodes: Episodes of each sampler in a run.
        fresh: Let every run measure what the network costs, as on a machine that is new.
        out: JSON file, written after every run.
    """
    if runs < 1 or episodes < 1:
        raise InputError(f"--runs and --episodes are 1 or more; got {runs}, {episodes}")
    check_writable(out)
    busy = os.cpu_count() or 1
    kept: list[Json] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (0, busy):
            for number in range(runs):
                cache = Path(folder) / (f"{count}-{number}" if fresh else "kept")
                with rivals(count):
                    found = run_once(episodes, cache)
                kept.append({"beside": count, "run": number, **found})
                machine = describe_machine({"threads": found["threads"], "gpu": None})
                content: Json = {"schema_version": VERSION["first_minutes"], "fresh": fresh}
                content |= {"episodes": episodes, "machine": machine, "runs": kept}
                write_json(out, content)
                print(_line(kept[-1]), flush=True)
    print(table(kept))


def _line(run: Json) -> str:
    return (
        f"{run['beside']} beside, run {run['run'] + 1}: {run['seconds']:.0f} s, window "
        f"{run['window']}, {run['calls']:.2f} calls, {run['speedup_clock']:.2f}x by the clock"
    )


def table(kept: list[Json]) -> str:
    """Medians and ranges, quiet and busy."""
    rows = []
    groups = [
        [run for run in kept if (run["beside"] > 0) == busy] for busy in (False, True)
    ]  # fmt: skip
    for title, key, digits in (
        ("seconds", "seconds", 0),
        ("window", "window", 0),
        ("calls a chunk", "calls", 2),
        ("ASD, ms a chunk", "asd_ms", 0),
        ("DDPM, ms a chunk", "ddpm_ms", 0),
        ("speedup, clock", "speedup_clock", 2),
        ("speedup, calls", "speedup_calls", 2),
    ):
        cells = []
        for group in groups:
            values = [run[key] for run in group]
            low, middle, high = (f"{f(values):.{digits}f}" for f in (np.min, np.median, np.max))
            cells.append(f"{middle} ({low} to {high})")
        rows.append([title, *cells])
    return as_text(("", "quiet", "busy"), rows)


if __name__ == "__main__":
    sys.exit(run_script("bench.first_minutes", main, __doc__))
