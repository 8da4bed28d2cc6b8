"""Chunks, batch after batch, each kept on the disk as it comes.

A batch's noise depends on the seed, the role and the batch's number alone, so that a run that was
killed goes on to the same chunks. No two roles share noise: the samples compared are independent.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from asd_policy.engine import Engine
from asd_policy.errors import NonFiniteError
from asd_policy.eval.studies.verify.store import load_arrays, save_arrays
from asd_policy.eval.studies.verify.subjects import Subject
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise, Stats, streams
from asd_policy.schedule import Schedule

Array = np.ndarray
MakeEngine = Callable[[Schedule], Engine]
WARM_UP = 2  # batches from which slopes are learned before any is kept


@dataclass(frozen=True)
class Drawn:
    """What a role drew.

    Attributes:
        chunks: (M, n, Tp, Da) float32, or float64 where that was sampled.
        calls, evaluations: (M, n) network calls and rows.
        seconds: of sampling, by whichever processes did.
    """

    chunks: Array
    calls: Array
    evaluations: Array
    seconds: float


@dataclass
class Role:
    """A sampler, under the name of its folder.

    Attributes:
        config: the sampler. change: applied to its noise (controls).
        make_engine: given its chain; by default the plain one.
    """

    name: str
    config: SamplerConfig
    change: Callable[[Noise], Noise] = lambda noise: noise
    make_engine: MakeEngine | None = None


class Sampling:
    """One role's sampler, set up when the first batch is needed.

    Args:
        each: chunks of a batch at each observation. engine: name of it. seed: of all noise.
    """

    def __init__(self, subject: Subject, role: Role, each: int, engine: str, seed: int) -> None:
        self.subject, self.role, self.each, self.seed = subject, role, each, seed
        chain = role.config.schedule(subject.schedule)
        runs = engine if role.make_engine is None else role.make_engine(chain)
        self._sampler = Sampler(
            runs.source if isinstance(runs, Engine) else subject.network(chain),
            subject.schedule,
            subject.shape,
            role.config,
            engine=runs,
            device=subject.conditions.device,
            dtype=subject.conditions.dtype,
            cond=subject.conditions[:1],
            stored=subject.calibration,
        )
        # (Slopes that went on being learned would make a batch depend on those before it.)
        if role.config.name == "asd" and not self._sampler.calibration.frozen:
            numbers = range(-WARM_UP, 0)
            self._sampler.calibrate((self._inputs(n) for n in numbers), len(numbers))
        self._sampler.freeze()

    @property
    def engine(self) -> Engine:
        """What runs the sampler."""
        return self._sampler.engine

    def batch(self, number: int) -> tuple[Array, Stats]:
        """(M, each, Tp, Da) chunks of a batch, and what they cost."""
        x, stats = self._sampler.draw(*self._inputs(number))
        chunks = x.view(len(self.subject.conditions), self.each, *self.subject.shape)
        if not bool(chunks.isfinite().all()):
            raise NonFiniteError(f"{self.role.name} returned a NaN or infinite action")
        return chunks.cpu().numpy(), stats

    def _inputs(self, number: int) -> tuple[Noise, torch.Tensor]:
        key = [self.seed, zlib.crc32(self.role.name.encode()), number + WARM_UP]
        state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator("cpu").manual_seed(state)
        cond = self.subject.conditions.repeat_interleave(self.each, 0)
        noise = self._sampler.noise(streams(generator, len(cond)))
        return self.role.change(noise), cond


def batch_file(folder: Path, number: int) -> Path:
    """Where a role, whose folder this is, keeps a batch."""
    return folder / f"{number:05d}.npz"


def draw_batch(sampling: Sampling, number: int, path: Path) -> dict[str, Array]:
    """Sample a batch and keep it."""
    start = time.perf_counter()
    chunks, stats = sampling.batch(number)
    seconds = time.perf_counter() - start
    counts = (t.numpy().reshape(chunks.shape[:2]) for t in (stats.calls, stats.evaluations))
    part = dict(zip(("calls", "evaluations"), counts, strict=True))
    part |= {"chunks": chunks, "seconds": np.asarray(seconds)}
    save_arrays(path, **part)
    return part


def collect(
    make: Callable[[], Sampling], folder: Path, batches: int, tick: Callable[[int], None]
) -> Drawn:
    """All batches of a role: those on the disk are read, the others sampled and kept.

    Args:
        make: sets the sampler up; called only if something must be sampled.
        folder: the role's. tick: told the chunks of each batch as it is there.
    """
    sampling, parts = None, []
    for number in range(batches):
        path = batch_file(folder, number)
        part = load_arrays(path)
        if part is None:
            sampling = sampling or make()
            part = draw_batch(sampling, number, path)
        parts.append(part)
        tick(part["calls"].size)
    return _joined(parts)


def _joined(parts: Sequence[dict[str, Array]]) -> Drawn:
    joined = {
        key: np.concatenate([part[key] for part in parts], axis=1)
        for key in ("chunks", "calls", "evaluations")
    }
    return Drawn(**joined, seconds=float(sum(part["seconds"] for part in parts)))
