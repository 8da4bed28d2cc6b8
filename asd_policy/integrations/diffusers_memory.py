"""What drawing pictures takes of a device's memory: less of it, said beforehand, and what fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from asd_policy.chains import PAIRS
from asd_policy.errors import AsdPolicyError, counted
from asd_policy.integrations.hooked import human
from asd_policy.samplers.result import Noise, at_least_float32

# Rows of a window at once: points twice, drafts, predictions, and what they are made of.
_ROUND = 14
_SEQUENTIAL = 8  # the same of a sequential step
_LEAN = "with sampler='{}' and engine='eager'"


@dataclass(frozen=True)
class Memory:
    """The most that B samples take beside the network, its activations, what it is given and the
    chain's coefficients (3·(K + θ + 2)² numbers for all of them, 13 MB with K = 1000).

    Of a chain of K steps, noise and the drafts' memory of the window's steps are kept and no
    others: noise is drawn when the window reaches it. That changes no sample. All K of them are
    kept (``whole``) where that is little, on a CPU, whose arithmetic in C is faster; and by rounds
    of CUDA graphs, rejoining and ParaDiGMS, which need them.

    Attributes:
        shape: (B, …) of the samples. steps: K. window: θ, 1 where nothing is drafted.
        rejoin: whether paths are kept beside the memory. itemsize: bytes of a number.
    """

    shape: tuple[int, ...]
    steps: int
    window: int
    whole: bool = False
    rejoin: bool = False
    itemsize: int = 4

    @property
    def _row(self) -> int:
        return self.itemsize * math.prod(self.shape)

    @property
    def noise(self) -> int:
        """Bytes of the chain's noise."""
        copies = 2 if self.whole else 1  # as it was drawn, and where rounds read it
        return copies * self._row * (self.steps + 1 if self.whole else self.window + 1)

    @property
    def drafts(self) -> int:
        """Bytes of the network's last answers, where they were given, and secants."""
        if self.window == 1:
            return 0
        kept = self.steps + self.window + 1 if self.whole else self.window + 2
        return self._row * ((5 if self.rejoin else 2) * kept + 2 * PAIRS)

    @property
    def round(self) -> int:
        """Bytes of a round's points and predictions, and of what comes between."""
        return self._row * (_SEQUENTIAL if self.window == 1 else _ROUND * (self.window + 1))

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return self.noise + self.drafts + self.round

    def __str__(self) -> str:
        batch, *sides = self.shape
        kept = self.steps if self.whole else min(self.steps, self.window + 2)
        return (
            f"{counted(batch, 'sample')} of {'×'.join(map(str, sides))}, which "
            f"take{'s' * (batch == 1)} at most {human(self.total)} beside the network (noise "
            f"{human(self.noise)} and drafts' memory {human(self.drafts)}, both of {kept} of "
            f"{self.steps} steps at a time; a round's points and predictions {human(self.round)})"
        )

    def check(self, most: int | None, name: str) -> None:
        """Raise an AsdPolicyError that says what fits, where more is needed than there is."""
        if most is not None and self.total > most:
            raise AsdPolicyError(f"{self}; {name} is {human(most)}: {self.fits(most)}")

    def fits(self, most: int) -> str:
        """What does, in so many bytes; where nothing does, the least that is needed."""
        sides = self.shape[1:]
        one = replace(self, shape=(1, *sides))
        if one.total <= most:
            return f"a batch of {most // one.total} fits"
        window = one.window
        while window > 1:
            window //= 2
            if replace(one, window=window).total <= most:
                return f"one sample with window={window} fits"
        least = replace(one, window=1, whole=False, rejoin=False).total
        if least > most:
            return f"not even one sample fits: {human(least)} is the least, {_LEAN.format('ddpm')}"
        asd = replace(one, whole=False, rejoin=False)
        lean, name = (asd, "asd") if asd.total <= most else (replace(asd, window=1), "ddpm")
        return f"{lean.fits(most)} {_LEAN.format(name)}, of which no more than a window is kept"


def free_bytes(device: torch.device) -> int | None:
    """What is free on a device; None where that is not known."""
    if device.type == "cuda":  # what PyTorch holds and does not use is free, too
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return (
        1024 * (sizes["MemAvailable"] + sizes.get("SwapFree", 0)) if device.type == "cpu" else None
    )


@contextmanager
def room_for(what: str, device: torch.device, less: str) -> Iterator[None]:
    """The errors of allocators as one sentence: for what there was no room, and what fits."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _of_memory(error):
            raise
        raise AsdPolicyError(f"the memory of {device} has no room for {what}; {less}") from error


def _of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return type(error) is RuntimeError and "allocate memory" in str(error)


class LaterNoise:
    """ξ as ``Noise.steps``, (B, K, D), of which a step is drawn when it is first asked for.

    A chain's steps are asked for in a window that only moves forward; what lies behind it is
    forgotten.

    Args:
        generators: of the chains. kept: steps that a window reaches over.
    """

    def __init__(self, generators: Sequence[torch.Generator], kept: int, like: Tensor) -> None:
        self._generators, self._drawn = generators, [0] * len(generators)
        self.ring = like.new_empty(len(generators), kept, like.shape[-1])
        self.device = like.device

    def __getitem__(self, index: tuple[Tensor | slice, Tensor | int]) -> Tensor:
        chains, steps = index
        if isinstance(steps, int):
            first = last = [steps] * len(self._generators)
        else:
            first, last = torch.stack([steps.amin(1), steps.amax(1)]).tolist()
        self.reach(last)
        kept = self.ring.shape[1]
        if any(a < drawn - kept for a, drawn in zip(first, self._drawn, strict=True)):
            raise IndexError(f"steps that are forgotten: {kept} are kept, up to {self._drawn}")
        return self.ring[chains, steps % kept]

    def reach(self, last: Sequence[int]) -> None:
        """Draw what is missing up to a step of each chain."""
        kept = self.ring.shape[1]
        for chain, (generator, end) in enumerate(zip(self._generators, last, strict=True)):
            for step in range(self._drawn[chain], end + 1):
                _normal(generator, self.ring[chain, step % kept])
            self._drawn[chain] = max(self._drawn[chain], end + 1)


def _normal(generator: torch.Generator, out: Tensor) -> None:
    out.copy_(torch.randn(out.shape, generator=generator, device=generator.device, dtype=out.dtype))


def picture_noise(generators: Sequence[torch.Generator], memory: Memory, like: Tensor) -> Noise:
    """All randomness of a sample from each stream: a first point, uniforms, and then step by step;
    the same numbers whether all are kept or not."""
    batch, steps = len(generators), memory.steps
    initial, wide = like.new_empty(batch, like.shape[-1]), at_least_float32(like.dtype)
    uniform = like.new_empty(batch, steps, dtype=wide)
    for i, generator in enumerate(generators):
        _normal(generator, initial[i])
        drawn = torch.rand(steps, generator=generator, device=generator.device, dtype=wide)
        uniform[i] = drawn
    later = LaterNoise(generators, steps if memory.whole else memory.window + 1, like)
    if memory.whole:
        later.reach([steps - 1] * batch)
    # Until then it is asked for steps as a tensor is, and is none.
    kicks = later.ring if memory.whole else cast(Tensor, later)
    return Noise(initial, kicks, torch.log1p(-uniform).to(like.dtype))
