"""Runs the matrix: groups in order, the samplers of a group chunk by chunk in turn.

What else the machine does drifts over minutes; taken in turn, A, B, C, A, B, C …, it hits all
alike. In a round a fast sampler makes up to ten chunks, so that its percentiles mean something.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from asd_policy.eval.runs.machine import processor_wait_s
from asd_policy.eval.studies.bench.ceilings import least_seconds, measure_ceilings
from asd_policy.eval.studies.bench.cells import Cell, Group
from asd_policy.eval.studies.bench.contestants import (
    Chunk,
    Contestant,
    EngineContestant,
    Forms,
    make_contestant,
)
from asd_policy.eval.studies.bench.options import EAGER_LOOP
from asd_policy.eval.studies.bench.store import BenchFile
from asd_policy.eval.studies.bench.subjects import Subject
from asd_policy.eval.studies.bench.summary import summarize
from asd_policy.progress import Stage

Json = dict[str, Any]
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
SLOW_CALL_S = 0.5  # larger batches than one that takes this long are not timed
LEAST_ROUNDS = 5  # fewer are no measurement


class Runner:
    """Measures groups of cells and keeps what it finds.

    Args:
        store: where. subjects: by name. chunks: rounds of a group. quick: fewer batch sizes.
        deadline: ``time.monotonic()`` after which to stop, with what has been measured.
        say: told what is going on.
    """

    def __init__(
        self,
        store: BenchFile,
        subjects: dict[str, Subject],
        device: torch.device,
        chunks: int,
        seed: int,
        quick: bool,
        say: Callable[[str], None],
        deadline: float = float("inf"),
    ) -> None:
        self.store, self.subjects, self.device, self.seed = store, subjects, device, seed
        self.chunks, self.quick, self.say, self.deadline = chunks, quick, say, deadline
        self.forms = Forms()

    def run(self, groups: Sequence[Group]) -> bool:
        """Measure what is not in the store yet. False if the deadline came first."""
        self._prepare(groups)
        for number, group in enumerate(groups, start=1):
            pending = [cell for cell in group if cell.key not in self.store.done]
            if not pending:
                continue
            if self._late():
                return False
            one = pending[0]
            self.say(
                f"[{number}/{len(groups)}] {one.network}, K={one.steps}, batch {one.batch}: "
                + ", ".join(dict.fromkeys(_label(cell, pending) for cell in pending))
            )
            if not self._measure(pending):
                return False
            self.forms = Forms()
        return True

    def _late(self) -> bool:
        return time.monotonic() > self.deadline

    def _prepare(self, groups: Sequence[Group]) -> None:
        """Ceilings of all precisions that come, and what the networks are."""
        asked = {cell.precision for group in groups for cell in group} | {"fp32"}
        ceilings = self.store.content["ceilings"]
        known = set(ceilings["matmul_flop_per_s"]) if ceilings else set()
        if not asked - {"-"} <= known:
            with Stage("measuring what this machine can do: copies, products"):
                ceilings = measure_ceilings(self.device, tuple(sorted(asked - {"-"})), self.quick)
        networks = {name: subject.describe() for name, subject in self.subjects.items()}
        self.store.add_networks(networks)
        self.store.write(ceilings=ceilings)

    def _measure(self, cells: Sequence[Cell]) -> bool:
        """One group. False if the deadline came before it had rounds enough."""
        ready: list[tuple[Contestant, Json]] = []
        for cell in cells:
            try:
                with Stage(f"  {_label(cell, cells)}: preparing, calibrating"):
                    contestant = make_contestant(
                        cell, self.subjects[cell.network], self.forms, self.device, self.seed
                    )
                    ready.append((contestant, contestant.warm_up()))
            except Exception as error:
                self._failed(cell, error)
            if self._late():
                break
        try:
            with Stage("  timing one network call by its rows"):
                for contestant, _ in ready:
                    self._measure_costs(contestant)
            return self._take_turns(ready) and not self._late()
        finally:
            for contestant, _ in ready:
                contestant.close()

    def _take_turns(self, ready: list[tuple[Contestant, Json]]) -> bool:
        drawn: dict[str, list[Chunk]] = {contestant.cell.key: [] for contestant, _ in ready}
        failed: set[str] = set()
        repeats = [1] * len(ready)
        if not self.quick:
            timed = [(one, self._drawn(one[0], -1)) for one in ready]
            ready = [one for one, chunk in timed if chunk is not None]
            repeats = _repeats([chunk.seconds for _, chunk in timed if chunk is not None])
        waited, started = processor_wait_s(), time.perf_counter()
        with Stage("  measuring, round", self.chunks, measuring=True) as stage:
            for turn in range(self.chunks):
                for (contestant, _), times in zip(ready, repeats, strict=True):
                    chunks = drawn[contestant.cell.key]
                    for _ in range(0 if contestant.cell.key in failed else times):
                        chunk = self._drawn(contestant, len(chunks))
                        if chunk is None:
                            failed.add(contestant.cell.key)
                            break
                        chunks.append(chunk)
                stage.update(turn + 1)
                if self._late():
                    if turn + 1 < LEAST_ROUNDS:
                        return False
                    break
        now = processor_wait_s()
        wait = None if now is None or waited is None else now - waited
        share = None if wait is None else wait / (time.perf_counter() - started)
        for contestant, warm_up in ready:
            if contestant.cell.key not in failed:
                self._keep(contestant, warm_up, drawn[contestant.cell.key], share)
        return True

    def _drawn(self, contestant: Contestant, chunk: int) -> Chunk | None:
        """A chunk; None where it could not be drawn, which is kept and said."""
        try:
            return contestant.draw(chunk)
        except Exception as error:
            self._failed(contestant.cell, error)
            return None

    def _keep(
        self, contestant: Contestant, warm_up: Json, chunks: list[Chunk], wait: float | None
    ) -> None:
        cell = contestant.cell
        size = self.subjects[cell.network].size
        self.store.add_cell(
            {
                "key": cell.key,
                **asdict(cell),
                "trained": self.subjects[cell.network].trained,
                **contestant.describe(),
                "warm_up": warm_up,
                "processor_wait_share": wait,
                "peak_memory_bytes": _peak_memory(self.device),
                **summarize(cell, chunks, size, self.store.content["ceilings"]),
            }
        )

    def _failed(self, cell: Cell, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self.say(f"  {cell.sampler} on {cell.engine} failed: {text}")
        trace = "".join(traceback.format_exception(error))[-4000:]
        self.store.add_cell({"key": cell.key, **asdict(cell), "error": text, "traceback": trace})

    # ---- C(n) ------------------------------------------------------------------------------------

    def _measure_costs(self, contestant: Contestant) -> None:
        """The curve of this form of the network, if the store has none."""
        cell = contestant.cell
        loop = cell.sampler == EAGER_LOOP
        form = {
            "network": cell.network,
            "precision": cell.precision,
            "engine": EAGER_LOOP if loop else contestant.describe()["engine_used"],
            "compile": cell.compile,
        }
        if any(form.items() <= curve.items() for curve in self.store.content["costs"]):
            return
        if cell.compile:  # each batch size is compiled anew
            rows: tuple[int, ...] = (1, 8)
        else:
            rows = (1, 4) if self.quick else ROWS
        curve = self._curve(self._call(contestant), rows)
        self.store.write(costs=[*self.store.content["costs"], {**form, **curve}])

    def _call(self, contestant: Contestant) -> Callable[[int], float]:
        """Seconds of one network call on a number of rows."""
        subject, repeats = self.subjects[contestant.cell.network], 2 if self.quick else 6
        if isinstance(contestant, EngineContestant):
            engine, cond = contestant.engine, subject.take(0, 1)
            return lambda rows: engine.seconds(rows, cond, repeats)

        @torch.no_grad()
        def plain(rows: int) -> float:
            x = torch.zeros(rows, *subject.shape, device=self.device)
            timesteps = torch.zeros(rows, dtype=torch.int64, device=self.device)
            call = partial(subject.network, x, timesteps, subject.take(0, rows))
            return least_seconds(call, self.device, 1 + repeats)

        return plain

    def _curve(self, call: Callable[[int], float], rows: Sequence[int]) -> Json:
        seconds: list[float] = []
        for number in rows:
            try:
                seconds.append(call(number))
            except RuntimeError as error:  # no memory for it, and so for none that is larger
                self.say(f"  one call on {number} rows failed: {error}")
                break
            if seconds[-1] > SLOW_CALL_S:
                break
        return {"rows": list(rows[: len(seconds)]), "ms": [1e3 * s for s in seconds]}


def _repeats(seconds: Sequence[float]) -> list[int]:
    """Chunks that each samples in a round: up to ten, and no more than a quarter of the slowest's
    time."""
    slowest = max(seconds, default=0.0)
    return [min(10, max(1, int(slowest / (4 * own)))) for own in seconds]


def _label(cell: Cell, among: Sequence[Cell]) -> str:
    """The sampler, with what tells the cell from the others of its group."""
    words = [cell.sampler]
    for name in ("engine", "kernels", "precision", "window"):
        value = getattr(cell, name)
        if value != "-" and len({getattr(c, name) for c in among} - {"-"}) > 1:
            words.append(value)
    return " ".join(words)


def _peak_memory(device: torch.device) -> int | None:
    """Bytes, the most so far: of tensors on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
