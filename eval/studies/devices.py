"""What several devices gain: a round's network call against the ranks that it is split over.

    python -m asd_policy.eval.studies.devices measure --ranks 1 2 --out devices.json
    python -m asd_policy.eval.studies.devices plan

`measure` starts torchrun for each number of ranks, with a network that is slow enough to matter,
and one that computes nothing. `plan` is on paper: devices that are not here, by what connects them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asd_policy.console import plain_console
from asd_policy.errors import EngineError, InputError
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.machine import describe_machine, processor_wait_s
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.script import run_script
from asd_policy.eval.show.tables import print_tables, table

if TYPE_CHECKING:
    from torch import Tensor

Json = dict[str, Any]
SIZES = {"small": (64, 128, 256), "chi": (256, 512, 1024)}
SHAPE, CONDITION = (16, 7), 26
_MODULE = "asd_policy.eval.studies.devices"


# ---- on paper ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects devices: seconds of a message however short, and bytes a second."""

    latency_s: float
    bytes_per_s: float


@dataclasses.dataclass(frozen=True)
class Call:
    """A network call: seconds of it whatever its rows, and of each row; bytes of a row."""

    fixed_s: float
    row_s: float
    row_bytes: float


# Of links, what their makers and users give as usual; not measured here.
LINKS = {
    "PCIe 4 x16": Link(30e-6, 20e9),
    "NVLink": Link(15e-6, 200e9),
    "10 GbE": Link(60e-6, 1.1e9),
}
# The kinds of networks that the paper runs, with times that are assumed: A40 figures are not ours.
CALLS = {
    "256×256×3 pixels, 100 ms a row": Call(5e-3, 100e-3, 4 * 3 * 256 * 256),
    "64×64×4 latents, 50 ms a row": Call(10e-3, 50e-3, 4 * 4 * 64 * 64),
    "a robot's chunk, 5 ms a call": Call(5e-3, 0.02e-3, 4 * 16 * 7),
}
MESSAGES = 4  # of a round: what comes, points, steps, and predictions back


def round_seconds(call: Call, rows: int, ranks: int, link: Link) -> float:
    """A round's network call: the largest share of the rows, and what goes over the link.

    Points go out and predictions come back, of all rows but the first rank's own share.
    """
    each = -(-rows // ranks)
    computed = call.fixed_s + each * call.row_s
    if ranks == 1:
        return computed
    moved = 2 * (rows - each) * call.row_bytes
    return computed + MESSAGES * link.latency_s + moved / link.bytes_per_s


def speedup(call: Call, rows: int, ranks: int, link: Link, fewer: float) -> float:
    """By the clock, over one row a call on one device, where ``fewer`` is the speedup by calls."""
    return fewer * (call.fixed_s + call.row_s) / round_seconds(call, rows, ranks, link)


def plan(rows: int = 8, fewer: float = 3.1) -> None:
    """Print what 1 to 8 devices would gain, on paper.

    Args:
        rows: Rows of a round.
        fewer: How many times fewer sequential calls there are.
    """
    if rows < 1 or not fewer > 0:
        raise InputError("--rows takes a whole number from 1 on, --fewer a number above 0")
    made = []
    for name, link in LINKS.items():
        rest = [
            [what, *(f"{speedup(call, rows, n, link, fewer):.2f}" for n in (1, 2, 4, 8))]
            for what, call in CALLS.items()
        ]
        made.append(table(["speedup by the clock", *"1248"], rest, title=f"{name}, {rows} rows"))
    print_tables(plain_console(), made)


# ---- measured ----------------------------------------------------------------------------------


class Nothing:
    """A network that computes nothing: what a call then takes is sending and receiving."""

    def __call__(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        return x


def measure(
    ranks: tuple[int, ...] = (1, 2),
    rows: int = 32,
    network: str = "chi",
    calls: int = 20,
    out: Path = Path("devices.json"),
) -> None:
    """Time a round's network call on so many ranks, one processor core each, and print a table.

    Args:
        ranks: Numbers of processes.
        rows: Rows of a round.
        network: chi (Chi et al.'s, 64 M) or small (5 M), with random weights.
        calls: Calls that are timed, of each.
        out: JSON file.
    """
    if network not in SIZES:
        raise InputError(f"--network must be one of {', '.join(SIZES)}; got {network!r}")
    if not ranks or min(*ranks, rows, calls) < 1:
        raise InputError("--ranks, --rows and --calls take whole numbers from 1 on")
    waited, start = processor_wait_s(), time.perf_counter()
    found = [_on_ranks(count, rows, network, calls) for count in ranks]
    now, seconds = processor_wait_s(), time.perf_counter() - start
    wait = None if waited is None or now is None else max(0.0, now - waited) / seconds
    content = {
        "schema_version": VERSION["devices"],
        "machine": describe_machine({"threads": 1, "gpu": None}),
        "processor_wait_share": wait,
        "parameters": found[0].pop("parameters"),
        "rows": rows,
        "numbers": SHAPE[0] * SHAPE[1],
        "calls": calls,
        "splits": [{k: v for k, v in each.items() if k != "parameters"} for each in found],
    }
    write_json(out, content)
    show(content)
    print(f"Kept: {out}")


def show(content: Json) -> None:
    """One table."""
    first = content["splits"][0]
    rows = [
        [
            str(each["ranks"]),
            f"{each['wall_ms']:.1f}",
            f"{first['wall_ms'] / each['wall_ms']:.2f}",
            ", ".join(f"{ms:.1f}" for ms in each["processor_ms"]),
            f"{max(first['processor_ms']) / max(each['processor_ms']):.2f}",
            f"{each['message_ms']:.2f}",
        ]
        for each in content["splits"]
    ]
    headers = ["ranks", "call\nms", "gain", "processor\nms of each"]
    headers += ["gain if\nall are free", "messages\nms"]
    title = f"{content['rows']} rows of a {content['parameters'] / 1e6:.1f} M network"
    print_tables(plain_console(), [table(headers, rows, title=title)])
    if (content["processor_wait_share"] or 0) > 0.05:
        print("The machine was busy: wall-clock times are not those of a free one.")


def _on_ranks(ranks: int, rows: int, network: str, calls: int) -> Json:
    """Start so many, each in `_rank`, and read what the first has found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        start = sys.executable, "-m", "torch.distributed.run", "--standalone"
        words = "rank", "--rows", str(rows), "--network", network, "--calls", str(calls)
        done = subprocess.run(
            [*start, "--nproc-per-node", str(ranks), "-m", _MODULE, *words,
             "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise EngineError(f"{ranks} ranks could not be timed: {done.stderr[-2000:]}")
        found: Json = json.loads(out.read_text(encoding="utf-8"))
    return found


def rank(rows: int, network: str, calls: int, out: Path) -> None:
    """One of the processes that `measure` starts. (It is no command for people.)

    Args:
        rows: Rows of a round.
        network: One of `measure`'s.
        calls: Calls that are timed.
        out: JSON file that the first process writes.
    """
    import torch

    from asd_policy import Schedule
    from asd_policy.engine import Engine, make_engine
    from asd_policy.engine.ranks import everyones, joined
    from asd_policy.networks import ConditionalUnet1D
    from asd_policy.networks.prepare import prepare

    torch.set_num_threads(1)
    torch.manual_seed(0)
    schedule = Schedule.ddpm(100)
    unet = ConditionalUnet1D(SHAPE[1], CONDITION, down_dims=SIZES[network]).eval()
    cond = torch.zeros(1, CONDITION, device="cpu")

    def timed(engine: Engine, cond: Tensor | None) -> tuple[float, float]:
        """Median wall-clock ms, and mean processor ms of this rank."""
        spent = 0.0

        def work() -> list[float]:
            nonlocal spent
            call = engine.timer(rows, cond)
            call()
            spent = -time.process_time()
            seconds = [_wall(call) for _ in range(calls)]
            spent += time.process_time()
            return seconds

        before = time.process_time()
        seconds = engine.lead(work)
        if not engine.leads:  # with the first call, which is not timed
            spent = (time.process_time() - before) * calls / (calls + 1)
        return 1e3 * statistics.median(seconds), 1e3 * spent / calls

    with joined() as number:
        prepared = prepare(unet, schedule.timesteps)
        wall, spent = timed(make_engine("distributed", prepared, schedule, SHAPE), cond)
        message, _ = timed(make_engine("distributed", Nothing(), schedule, SHAPE), None)
        everyone = everyones(spent)
        if number == 0:
            content = {"ranks": len(everyone), "wall_ms": wall, "processor_ms": everyone}
            content |= {"message_ms": message if len(everyone) > 1 else 0.0}
            write_json(out, content | {"parameters": sum(p.numel() for p in unet.parameters())})


def _wall(call: Callable[[], float]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> int:
    """Returns the exit status, as ``run_script``."""
    return run_script("devices", {"measure": measure, "plan": plan, "rank": rank}, __doc__)


if __name__ == "__main__":
    sys.exit(main())
