"""Forms of a network's layers side by side on one GPU: calls by rows, and chunks of samplers.

Triton's kernels are compiled before, in as many processes as there are forms, all at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from asd_policy.engine.cuda_graph import CudaRecorder
from asd_policy.engine.timing import LADDER
from asd_policy.errors import NonFiniteError
from asd_policy.eval.runs.store import Store
from asd_policy.eval.studies.bench.ceilings import matmul_precision, synchronize
from asd_policy.eval.studies.bench.cells import cell
from asd_policy.eval.studies.bench.contestants import Chunk, Contestant, Forms, make_contestant
from asd_policy.eval.studies.bench.kept_cells import KeptCell, Say, measure_cells
from asd_policy.eval.studies.bench.options import EAGER_LOOP
from asd_policy.eval.studies.bench.subjects import Subject
from asd_policy.eval.studies.bench.summary import latency_figures
from asd_policy.networks import ConditionalUnet1D, whole
from asd_policy.networks.inference import InferenceUnet1D

Json = dict[str, Any]
FILE = "layers.json"
STORE = Store("measurements of layers", "layers", FILE, fixed=("device", "chunks", "quick"))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SAMPLERS = ("asd", "ddpm", "ddim-10")
REPLAYS = 30
SIDES = ("fused", "whole")  # as it is, and as it may become
LAUNCHED = ("apart", "overlapping")


@dataclass(frozen=True)
class LayersCell(KeptCell):
    """What is measured of one form: "call"s by rows, or "chunk"s of a batch."""

    kind: str
    network: str
    precision: str
    layers: str
    pdl: bool = False
    batch: int = 1

    def described(self) -> Json:
        said = super().described()
        return said if self.kind == "chunk" else {k: v for k, v in said.items() if k != "batch"}


def plan(device: torch.device, networks: Sequence[str]) -> list[LayersCell]:
    """Cells in the order of what one would miss most: the second network is the issue's."""
    if device.type != "cuda":
        return [LayersCell(k, n, "fp32", "products") for n in networks for k in ("call", "chunk")]
    first = [*networks[1:2], *networks[:1], *networks[2:]]
    cells = []
    for network in first:
        pairs = [(p, form) for p in ("bf16", "tf32") for form in SIDES]
        cells += [LayersCell("call", network, *pair) for pair in pairs]
        cells += [LayersCell("call", network, p, "whole", True) for p in ("bf16", "tf32")]
        cells += [LayersCell("chunk", network, *pair) for pair in pairs]
    for batch in (8, 32):
        cells += [LayersCell("chunk", first[0], "tf32", form, False, batch) for form in SIDES]
    cells += [LayersCell("chunk", first[0], p, "whole", True) for p in ("bf16", "tf32")]
    return cells


def measure_layers(
    out: Path, subjects: dict[str, Subject], settings: Json, machine: Json, say: Say,
    deadline: float,
) -> int:  # fmt: skip
    """Measure what is not in the folder yet. Returns the exit status."""
    device = next(iter(subjects.values())).conditions.device

    def measure(one: LayersCell) -> Json:
        work = _calls if one.kind == "call" else _chunks
        with overlapping(one.pdl):
            return work(one, subjects[one.network], settings)

    given = plan(device, list(subjects)), measure, summary, settings, machine, say, deadline
    return measure_cells(STORE, out, *given)


def summary(found: Json) -> str:
    """A line of what was measured."""
    if found["kind"] == "call":
        times = ", ".join(f"{r}: {m:.3f}" for r, m in zip(found["rows"], found["ms"], strict=True))
        same = "same bits" if found["bitwise"] else "OTHER BITS"
        return f"ms by rows {times}; {found['kernels']} kernels, {same}, {max(found['error']):.1e}"
    return "; ".join(
        f"{name} {one['latency_ms']['p50']:.2f} (p99 {one['latency_ms']['p99']:.2f}) ms, "
        f"{one['calls']:.1f} calls" for name, one in found["samplers"].items()
    )  # fmt: skip


@contextlib.contextmanager
def overlapping(pdl: bool) -> Iterator[None]:
    """With programmatic dependent launch, or without."""
    kept, whole.PDL = whole.PDL, pdl
    try:
        yield
    finally:
        whole.PDL = kept


# ---- calls -------------------------------------------------------------------------------------


def _inputs(subject: Subject, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points of ``rows`` rows, their steps and conditions: the same each time."""
    device = subject.conditions.device
    generator = torch.Generator(device).manual_seed(rows)
    x = torch.randn(rows, *subject.shape, generator=generator, device=device)
    steps = torch.arange(rows, device=device) * 7 % subject.schedule.num_steps
    return x, steps, subject.take(0, rows)


def prepared_for(one: LayersCell, subject: Subject) -> InferenceUnet1D:
    timesteps = subject.schedule.timesteps.to(subject.conditions.device)
    network = cast(ConditionalUnet1D, subject.network)  # forms are a U-Net's
    return InferenceUnet1D(network, timesteps, one.precision, one.layers)


@torch.inference_mode()
def _calls(one: LayersCell, subject: Subject, settings: Json) -> Json:
    device = subject.conditions.device
    prepared, rows = prepared_for(one, subject), (1, 4) if settings["quick"] else ROWS
    recorder = CudaRecorder(device) if device.type == "cuda" else None
    start = time.perf_counter()
    calls = [Call(prepared, subject, count, recorder) for count in rows]
    capture_s = time.perf_counter() - start
    times = [call.milliseconds(4 if settings["quick"] else REPLAYS) for call in calls]
    return {
        "parameters": subject.parameters,
        "rows": list(rows),
        "ms": [statistics.median(each) for each in times],
        "least_ms": [min(each) for each in times],
        "error": [call.error(subject) for call in calls],
        "bitwise": all(call.repeats() for call in calls),
        "kernels": calls[-1].kernels(),
        "capture_s": capture_s,
        "pool_bytes": sum(call.bytes for call in calls),
    }


class Call:
    """A call on a number of rows, captured where there is a GPU."""

    def __init__(
        self, prepared: InferenceUnet1D, subject: Subject, rows: int, recorder: CudaRecorder | None
    ) -> None:
        self.x, self.steps, self.cond = _inputs(subject, rows)
        self.device = self.x.device
        condition = prepared.condition(self.cond, rows)
        self.work = partial(self._work, prepared, condition)
        self.answer, self.bytes = self.work(), 0
        self.replay: Callable[[], object] = self.work
        if recorder is not None:
            self.replay, self.bytes = recorder.record(self.work, f"a call on {rows} rows")

    def _work(self, prepared: InferenceUnet1D, condition: Tensor) -> Tensor:
        self.answer = prepared(self.x, prepared.timestep_film[self.steps] + condition)
        return self.answer

    def milliseconds(self, repeats: int) -> list[float]:
        """Of single calls; on a GPU between two events around each."""
        for _ in range(3):
            self.replay()
        found = []
        for _ in range(repeats):
            synchronize(self.device)
            if self.device.type != "cuda":
                begun = time.perf_counter()
                self.replay()
                found.append(1e3 * (time.perf_counter() - begun))
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self.device)  # of another GPU than the first, too
            start.record(stream)
            self.replay()
            end.record(stream)
            end.synchronize()
            found.append(start.elapsed_time(end))
        return found

    def repeats(self) -> bool:
        """Whether replays give the same bits."""
        self.replay()
        first = self.answer.clone()
        for _ in range(20):
            self.replay()
            if not torch.equal(self.answer, first):
                return False
        return True

    def error(self, subject: Subject) -> float:
        """The largest difference to PyTorch's float32, over the largest number.

        Raises:
            NonFiniteError: there is a NaN or an infinity, which no JSON holds.
        """
        self.replay()
        timesteps = subject.schedule.timesteps.to(self.device)[self.steps]
        kept, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            with matmul_precision("fp32"):
                expected = subject.network(self.x, timesteps, self.cond)
        finally:
            torch.backends.cudnn.allow_tf32 = kept
        found = float((self.answer - expected).abs().max() / expected.abs().max())
        if not math.isfinite(found):
            raise NonFiniteError(f"a call on {len(self.x)} rows gave NaN or infinity")
        return found

    def kernels(self) -> int | None:
        """Launched by one call; None where nothing counts them."""
        if self.device.type != "cuda":
            return None
        activities = [torch.profiler.ProfilerActivity.CUDA]
        try:
            with torch.profiler.profile(activities=activities) as profile:
                self.work()
                synchronize(self.device)
        except (AssertionError, RuntimeError):  # no profiler there; what was timed is kept
            return None
        on_gpu = torch.autograd.DeviceType.CUDA
        return sum(event.device_type == on_gpu for event in profile.events())


# ---- chunks ------------------------------------------------------------------------------------


def _chunks(one: LayersCell, subject: Subject, settings: Json) -> Json:
    """Samplers in turn, one chunk each (of the fast ones, several)."""
    device, forms = subject.conditions.device, Forms(one.layers)
    engine = "cuda_graph" if device.type == "cuda" else "eager"
    steps, names = subject.schedule.num_steps, list(SAMPLERS)
    if one.batch == 1 and one.layers == "fused":
        names.append(EAGER_LOOP)
    given = one.network, one.batch, steps, one.precision, engine, "auto", "auto"
    ready: list[Contestant] = []
    try:
        for name in names:
            ready.append(make_contestant(cell(*given, name), subject, forms, device, 0))
            ready[-1].warm_up()
        drawn: list[list[Chunk]] = [[] for _ in ready]
        for _ in range(settings["chunks"]):
            for contestant, chunks in zip(ready, drawn, strict=True):
                for _ in range(1 if contestant.cell.sampler in ("ddpm", EAGER_LOOP) else 5):
                    chunks.append(contestant.draw(len(chunks)))
    finally:
        for contestant in ready:
            contestant.close()
    (used,) = {prepared.layers for prepared in forms.all()}
    return {
        "trained": subject.trained,
        "engine": ready[0].describe()["engine_used"],
        "layers_used": used,
        "fallback": next((p.fallback for p in forms.all() if p.fallback), None),
        "samplers": {name: _contest(d) for name, d in zip(names, drawn, strict=True)},
    }


def _contest(chunks: list[Chunk]) -> Json:
    calls = [float(c.stats.calls.max()) for c in chunks]
    rows = [float(c.stats.evaluations.sum()) for c in chunks]
    return {
        "chunks": len(chunks),
        "latency_ms": latency_figures(np.array([1e3 * c.seconds for c in chunks])),
        "calls": float(np.mean(calls)),
        "rows_per_call": float(np.mean(rows) / np.mean(calls)),
        "window": chunks[-1].stats.window,
    }


# ---- compiling ---------------------------------------------------------------------------------


def compile_ahead(script: list[str], networks: Sequence[str], say: Say, deadline: float) -> None:
    """Compile kernels into Triton's cache: a process for each network, precision and way to launch.
    Those that are not done by the deadline are ended: what they lack is compiled where it is met.
    """
    start, what = time.perf_counter(), itertools.product(networks, ("bf16", "tf32"), LAUNCHED)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed, late = [], []
    try:
        for one in map(":".join, what):
            running[one] = subprocess.Popen([sys.executable, *script, "--compile", one])
        for one, each in running.items():
            try:
                failed += [one] * bool(each.wait(max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                late.append(one)
    finally:
        for each in running.values():
            each.kill()
            each.wait()
    said = f", but for {', '.join(failed)}" if failed else ""
    said += f"; no time for all of {', '.join(late)}" if late else ""
    say(f"Compiled in {time.perf_counter() - start:.0f} s{said}")


@torch.inference_mode()
def compile_for(subject: Subject, precision: str, launched: str) -> None:
    """One call on each number of rows that is measured here, or for the choice of a window."""
    prepared = prepared_for(LayersCell("call", subject.name, precision, "whole"), subject)
    with overlapping(launched == LAUNCHED[1]):
        for rows in dict.fromkeys((*ROWS, *LADDER)):
            Call(prepared, subject, rows, None)
    synchronize(subject.conditions.device)
