"""`asd-policy bench`. Importing this is quick: torch comes when the run starts."""

from __future__ import annotations

from typing import Annotated

import tyro

from asd_policy.eval.runs.files import check_output_folder
from asd_policy.eval.studies.bench.options import BenchOptions
from asd_policy.progress import Stage


def main_bench(options: Annotated[BenchOptions, tyro.conf.arg(name="")]) -> int:
    """Measure what a chunk costs: latency, calls, acceptance, use of the hardware.

    With no options, it measures the shipped Lift policy, one chain, on this machine, in about three
    minutes. It prints tables, and keeps every figure under outputs/bench/.
    """
    if options.out is not None:  # refused at once, not after seconds of loading
        check_output_folder(options.out)
    with Stage("loading PyTorch"):
        from asd_policy.eval.studies.bench.run import run_bench

    return run_bench(options)
