"""What a round costs beside its network call, in every way that it can be launched, on one GPU.

Forms: "pausing", in which the host reads a round that is probably the last before it launches
another; "ahead", in which it never does, so that one round too many is launched; and "skipped", in
which that round is left out on the device. A form that fails here stops none of the others. Each
with noise drawn when it is asked for ("asked"), and after the chunk before, by when a control loop
has its actions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.engine import cuda_graph
from asd_policy.errors import EngineError
from asd_policy.eval.runs.store import Store
from asd_policy.eval.studies.bench.cells import cell
from asd_policy.eval.studies.bench.contestants import Chunk, EngineContestant, Forms
from asd_policy.eval.studies.bench.kept_cells import KeptCell, Say, failure, measure_cells
from asd_policy.eval.studies.bench.subjects import Subject
from asd_policy.eval.studies.bench.summary import latency_figures

Json = dict[str, Any]
FILE = "rounds.json"
STORE = Store("measurements of rounds", "rounds", FILE, fixed=("device", "chunks", "quick"))
# Form → the chance of the end from which the host pauses, and whether rounds are left out.
LAUNCHES = {"pausing": (cuda_graph.PROBABLY_LAST, False), "ahead": (2.0, False),
            "skipped": (2.0, True)}  # fmt: skip
OTHERS = ("ddim-10", "ddpm")


@dataclass(frozen=True)
class RoundsCell(KeptCell):
    """One network at one precision, sampling a batch."""

    network: str
    precision: str
    batch: int


def plan(device: torch.device, networks: Sequence[str]) -> list[RoundsCell]:
    """Cells in the order of what one would miss most: the second network is the issue's."""
    if device.type != "cuda":
        return [RoundsCell(network, "fp32", 1) for network in networks]
    first = [*networks[1:2], *networks[:1], *networks[2:]]
    cells = [RoundsCell(network, p, 1) for network in first for p in ("bf16", "tf32")]
    return cells + [RoundsCell(first[0], "bf16", batch) for batch in (8, 32)]


def measure_rounds(
    out: Path, subjects: dict[str, Subject], settings: Json, machine: Json, say: Say,
    deadline: float,
) -> int:  # fmt: skip
    """Measure what is not in the folder yet. Returns the exit status."""
    device = next(iter(subjects.values())).conditions.device
    work = partial(_measured, subjects, settings)
    given = plan(device, list(subjects)), work, summary, settings, machine, say, deadline
    return measure_cells(STORE, out, *given)


def summary(found: Json) -> str:
    """A line of what was measured: medians until the host has the result."""
    return "; ".join(
        f"{name} failed: {one['failed']}"
        if "failed" in one
        else f"{name} {one['result_ms']['p50']:.2f} ms ({one['calls']:.1f} calls)"
        for name, one in found["forms"].items()
    )


@contextlib.contextmanager
def launched(form: str, engine: str) -> Iterator[None]:
    """Rounds launched in one of the forms.

    Raises:
        EngineError: CUDA graphs of this PyTorch cannot leave rounds out.
    """
    if LAUNCHES[form][1] and engine == "cuda_graph" and not cuda_graph.can_skip():
        raise EngineError("this PyTorch has no conditional nodes in CUDA graphs")
    kept = cuda_graph.PROBABLY_LAST, cuda_graph.SKIPPED
    cuda_graph.PROBABLY_LAST, cuda_graph.SKIPPED = LAUNCHES[form]
    try:
        yield
    finally:
        cuda_graph.PROBABLY_LAST, cuda_graph.SKIPPED = kept


def _measured(subjects: dict[str, Subject], settings: Json, one: RoundsCell) -> Json:
    """All forms in turn, a chunk each; noise and conditions of a chunk are the same for all."""
    subject = subjects[one.network]
    device, forms, steps = subject.conditions.device, Forms(), subject.schedule.num_steps
    engine = "cuda_graph" if device.type == "cuda" else "eager"
    given = one.network, one.batch, steps, one.precision, engine, "auto", "auto"
    names = [f"{form}, {noise}" for form in LAUNCHES for noise in ("asked", "before")]
    launches = {n: n.split(",")[0] for n in names} | dict.fromkeys(OTHERS, "pausing")
    ready: dict[str, EngineContestant] = {}
    drawn: dict[str, list[Chunk]] = {name: [] for name in launches}
    failed: dict[str, Exception] = {}
    try:
        for name, launch in launches.items():
            sampler = name if name in OTHERS else "asd"
            with _noted(failed, name), launched(launch, engine):
                ready[name] = EngineContestant(cell(*given, sampler), subject, forms, device, 0)
                ready[name].ahead = not name.endswith("asked")
                ready[name].warm_up()
        for chunk in range(settings["chunks"]):
            for name in (n for n in launches if n not in failed):
                with _noted(failed, name), launched(launches[name], engine):
                    drawn[name].append(ready[name].draw(chunk))
        if len(failed) == len(drawn):
            raise next(iter(failed.values()))
        used = next(one for name, one in ready.items() if name not in failed).describe()
    finally:
        for contestant in ready.values():
            contestant.close()
    return {
        "trained": subject.trained,
        "engine": used["engine_used"],
        "layers_used": used["layers_used"],
        "forms": {
            name: failure(failed[name]) if name in failed else _figures(chunks)
            for name, chunks in drawn.items()
        },
    }


@contextlib.contextmanager
def _noted(failed: dict[str, Exception], name: str) -> Iterator[None]:
    """What goes wrong within is kept under a name."""
    try:
        yield
    except Exception as error:
        failed[name] = error


def _figures(chunks: Sequence[Chunk]) -> Json:
    return {
        "chunks": len(chunks),
        "result_ms": latency_figures(np.array([1e3 * c.result_s for c in chunks])),
        "idle_ms": latency_figures(np.array([1e3 * c.seconds for c in chunks])),
        "noise_ms": 1e3 * float(np.median([c.noise_s for c in chunks])),
        "calls": float(np.mean([float(c.stats.calls.max()) for c in chunks])),
        "window": chunks[-1].stats.window,
    }
