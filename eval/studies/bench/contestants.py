"""One cell made ready: it warms up, then samples chunks that are timed from outside the sampler."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.engine import Engine
from asd_policy.eval.studies.bench.ceilings import synchronize
from asd_policy.eval.studies.bench.cells import Cell, sampler_config
from asd_policy.eval.studies.bench.eager_loop import sample_eager_loop
from asd_policy.eval.studies.bench.options import EAGER_LOOP
from asd_policy.eval.studies.bench.subjects import Subject
from asd_policy.networks.prepare import PreparedUnet1D, prepare
from asd_policy.sampler import Sampler
from asd_policy.samplers.costs import candidates
from asd_policy.samplers.result import Noise, Stats
from asd_policy.schedule import Schedule

Json = dict[str, Any]
CALIBRATION_CHAINS = 16  # sampled, at least, for slopes and acceptance
FIRST = 1000  # number of the first chunk that is measured; those before it are thrown away


@dataclass(frozen=True)
class Chunk:
    """One timed chunk.

    Attributes:
        seconds: of wall clock, until the device has nothing left to do. noise_s: for its noise.
        stats: what the sampler counted. result_s: until the host had the result.
    """

    seconds: float
    noise_s: float
    stats: Stats
    result_s: float = 0.0


class Forms:
    """Prepared networks, shared by the contestants of a group: a copy of the weights each.

    Args:
        layers: the form of theirs, as for ``prepare``.
    """

    def __init__(self, layers: str = "auto") -> None:
        self._layers = layers
        self._kept: dict[tuple[object, ...], PreparedUnet1D | nn.Module] = {}

    def get(
        self, subject: Subject, steps: int, schedule: Schedule, precision: str, compile: bool
    ) -> PreparedUnet1D | nn.Module:
        """The subject's network for the timesteps of a schedule; but for U-Nets, as it is."""
        timesteps = tuple(schedule.timesteps.tolist())
        key = subject.name, steps, timesteps, precision, compile
        if key not in self._kept:
            network, _ = subject.at(steps)
            self._kept[key] = prepare(network, schedule.timesteps, precision, compile, self._layers)
        return self._kept[key]

    def all(self) -> list[PreparedUnet1D]:
        """Those that there are."""
        return [each for each in self._kept.values() if isinstance(each, PreparedUnet1D)]


def make_contestant(
    cell: Cell, subject: Subject, forms: Forms, device: torch.device, seed: int
) -> EagerLoop | EngineContestant:
    """The contestant of a cell. Errors are those of networks and engines."""
    if cell.sampler == EAGER_LOOP:
        return EagerLoop(cell, subject, device, seed)
    return EngineContestant(cell, subject, forms, device, seed)


def _streams(seed: int, chunk: int, batch: int, device: torch.device) -> list[torch.Generator]:
    """One for each chain; on a GPU they are there."""
    first = (seed * 1_000_003 + chunk) * batch
    return [torch.Generator(device).manual_seed(first + i) for i in range(batch)]


class EagerLoop:
    """:func:`sample_eager_loop`, with PyTorch's own defaults (on a GPU, TF32 convolutions)."""

    def __init__(self, cell: Cell, subject: Subject, device: torch.device, seed: int) -> None:
        self.cell, self._subject, self._device, self._seed = cell, subject, device, seed
        self._network, self._schedule = subject.at(cell.steps)

    def warm_up(self) -> Json:
        seconds = [self.draw(-1).seconds for _ in range(2)]
        return {"first_chunk_s": seconds[0], "total_s": sum(seconds)}

    def draw(self, chunk: int) -> Chunk:
        cond = self._subject.take(chunk, self.cell.batch)
        torch.manual_seed(self._seed + FIRST + chunk)
        synchronize(self._device)
        start = time.perf_counter()
        shape = self.cell.batch, *self._subject.shape
        initial = torch.randn(shape, device=self._device)
        x, stats = sample_eager_loop(self._network, self._schedule, initial, cond)
        x.cpu()
        synchronize(self._device)
        return Chunk(time.perf_counter() - start, 0.0, stats)

    def describe(self) -> Json:
        precision = "torch default" if self._device.type == "cuda" else "fp32"
        return {"engine_used": EAGER_LOOP, "kernels_used": "-", "precision_used": precision}

    def close(self) -> None:
        pass


class EngineContestant:
    """A sampler on an engine of its own, its window and drafts calibrated before measurement.

    Attributes:
        ahead: whether a chunk's noise is drawn after the one before, as in a control loop, which
            has time for it once it has its actions; else when it is asked for.
    """

    def __init__(
        self, cell: Cell, subject: Subject, forms: Forms, device: torch.device, seed: int
    ) -> None:
        self.cell, self._subject, self._device, self._seed = cell, subject, device, seed
        start = time.perf_counter()
        self.config = sampler_config(cell)
        _, trained = subject.at(cell.steps)
        chain = self.config.schedule(trained)
        as_trained = cell.steps == subject.schedule.num_steps
        self._prepared = forms.get(subject, cell.steps, chain, cell.precision, cell.compile)
        self._sampler = Sampler(
            self._prepared,
            trained,
            subject.shape,
            self.config,
            engine=cell.engine,
            device=device,
            kernels="auto" if cell.kernels == "-" else cell.kernels,
            stored=subject.calibration if as_trained else None,
            cond=subject.take(0, 1),
            compiled=cell.compile,
        )
        self.engine: Engine = self._sampler.engine
        self.ahead = True
        self._next: tuple[int | None, list[torch.Generator]] = None, []
        self._prepare_s = time.perf_counter() - start

    def warm_up(self) -> Json:
        start = time.perf_counter()
        if self.config.name == "asd":
            self._calibrate()
        calibrated = time.perf_counter()
        seconds = [self.draw(-1).seconds for _ in range(2)]
        return {
            "prepare_s": self._prepare_s,
            "calibrate_s": calibrated - start,
            "first_chunk_s": seconds[0],
            "total_s": self._prepare_s + calibrated - start + sum(seconds),
        }

    def draw(self, chunk: int) -> Chunk:
        cond = self._subject.take(chunk, self.cell.batch)
        generators = self._next[1] if self._next[0] == chunk else self._streams(chunk)
        synchronize(self._device)
        start = time.perf_counter()
        noise = self._sampler.noise(generators)
        drawn = time.perf_counter()
        x, stats = self._sampler.draw(noise, cond)
        x.cpu()
        there = time.perf_counter()
        synchronize(self._device)
        end = time.perf_counter()
        if self.ahead:
            self._next = chunk + 1, self._streams(chunk + 1)
            self._sampler.ahead(self._next[1])
        return Chunk(end - start, drawn - start, stats, there - start)

    def _streams(self, chunk: int) -> list[torch.Generator]:
        return _streams(self._seed, FIRST + chunk, self.cell.batch, self._device)

    def _calibrate(self) -> None:
        """Slopes and acceptance from the checkpoint or from throw-away chunks, costs, window.

        From here on the calibration is frozen, as a policy's is: a chunk depends on its seed.
        """
        auto, steps = self._sampler.needs_costs, self._sampler.schedule.num_steps
        if not self._sampler.calibration.frozen:
            chunks = max(2, CALIBRATION_CHAINS // self.cell.batch)
            others = candidates(steps) if auto else ()
            self._sampler.calibrate(self._throw_away(), chunks, self._sampler.window, others)
        self._sampler.freeze()
        self._sampler.measure(again=False)
        self._sampler.close()  # what only the calibration needed

    def _throw_away(self) -> Iterator[tuple[Noise, Tensor]]:
        """Other observations and other noise than those that are measured."""
        for i in itertools.count():
            noise = self._sampler.noise(self._streams(-2 - i))
            yield noise, self._subject.take(7 * i, self.cell.batch)

    def describe(self) -> Json:
        buckets = dict(getattr(self.engine, "bytes_by_bucket", {}))
        network = self._prepared
        layers: Json = {}
        if isinstance(network, PreparedUnet1D):
            layers = {"layers_used": network.layers, "layers_fallback": network.fallback}
        return {
            "engine_used": self.engine.name,
            "kernels_used": self.engine.kernels,
            "precision_used": self.cell.precision,
            "bytes_by_bucket": buckets,
            **layers,
        }

    def close(self) -> None:
        self.engine.close()


Contestant = EagerLoop | EngineContestant  # a cell that can sample
