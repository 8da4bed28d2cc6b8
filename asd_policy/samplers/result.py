"""What every sampler takes and returns: injected noise, statistics, time."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import InputError, check_kind, seed_number

PHASES = ("draft", "network", "verify", "other")
Streams = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Noise:
    """All randomness of B samples, drawn before they start.

    Samples have the right distribution if all of it is independent, ``initial`` and ``steps``
    standard normal and exp(``log_uniform``) uniform. On the same machine and engine, with the same
    window and calibration, the same noise gives the same samples bit for bit; one row's sample
    depends on the other rows in its last bits at most, unless a decision falls on its edge.

    Attributes:
        initial: (B, D) x at the first step. steps: (B, K, D) ξ of each step, in the order in which
            they are taken. log_uniform: (B, K) log u, by which ASD accepts drafts. D is the product
            of a sample's shape, which may stand in its place.
    """

    initial: Tensor
    steps: Tensor
    log_uniform: Tensor

    @classmethod
    def draw(
        cls,
        shape: tuple[int, ...],
        num_steps: int,
        *,
        generator: Streams = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Noise:
        """What :func:`asd_policy.sample` draws for these arguments, on a chain of K steps.

        Raises:
            ValueError: seed and generator, or another number of generators than ``shape[0]``.
        """
        like = torch.empty(0, math.prod(shape[1:]), device=device, dtype=dtype)
        generators = streams(seeded(seed, generator, device), shape[0])
        return draw_noise(generators, num_steps, like)

    def fits(self, num_steps: int, like: Tensor) -> bool:
        """Whether these are numbers as :meth:`fitted` makes them."""
        batch, dim = self.initial.shape[0], like.shape[-1]
        shapes = (batch, dim), (batch, num_steps, dim), (batch, num_steps)
        given = self.initial, self.steps, self.log_uniform
        return batch > 0 and all(
            not isinstance(tensor, Tensor)  # of diffusers' long chains, drawn later
            or (tensor.shape, tensor.dtype, tensor.device) == (shape, like.dtype, like.device)
            for tensor, shape in zip(given, shapes, strict=True)
        )

    def fitted(self, batch: int, num_steps: int, like: Tensor) -> Noise:
        """The same numbers as (B, D), (B, K, D) and (B, K) of a tensor's type and device.

        Raises:
            ValueError: noise for another number of chains, steps or numbers; or that is no noise.
        """
        shapes = {
            "initial": (batch, like.shape[-1]),
            "steps": (batch, num_steps, like.shape[-1]),
            "log_uniform": (batch, num_steps),
        }
        fitted = {}
        for name, shape in shapes.items():
            given = getattr(self, name)
            check_kind(f"noise.{name}", given, Tensor, "a tensor")
            lead = shape[:-1] if name != "log_uniform" else shape
            if given.shape[: len(lead)] != lead or given.numel() != math.prod(shape):
                raise InputError(f"noise.{name} must be {shape}; got {tuple(given.shape)}")
            if not bool(given.isfinite().all()):
                raise InputError(f"noise.{name} holds a NaN or infinite value")
            fitted[name] = given.reshape(shape).to(like)
        if bool((fitted["log_uniform"] > 0).any()):
            raise InputError("noise.log_uniform must hold logarithms of numbers up to 1")
        return Noise(**fitted)


def check_streams(generator: Streams, batch: int) -> None:
    """Raise a ValueError unless :func:`streams` can make streams of this."""
    if generator is None:
        return
    wanted = "a torch.Generator, a list of one for each chain, or None"
    for each in generator if isinstance(generator, Sequence) else [generator]:
        check_kind("generator", each, torch.Generator, wanted)
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise InputError(f"expected {batch} generators, one for each chain; got {len(generator)}")


def streams(generator: Streams, batch: int) -> list[torch.Generator]:
    """One random stream per chain: those given, or ``batch`` new ones seeded from the one given.

    Raises:
        ValueError: as many generators as chains were expected and something else came.
    """
    check_streams(generator, batch)
    if isinstance(generator, Sequence):
        return list(generator)
    # Without one, PyTorch's own on the CPU, whatever the default device is.
    device = torch.device("cpu") if generator is None else generator.device
    seeds = torch.randint(2**63 - 1, (batch,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def states_of(used: Sequence[Any]) -> list[Tensor | None]:
    """Where random streams are, for :func:`go_back`; None of what is no generator of PyTorch's."""
    return [each.get_state() if isinstance(each, torch.Generator) else None for each in used]


def go_back(used: Sequence[Any], states: Sequence[Tensor | None]) -> None:
    """Have random streams give again what they have given since."""
    for stream, state in zip(used, states, strict=True):
        if state is not None:
            stream.set_state(state)


def seeded(seed: int | None, generator: Streams, device: torch.device | str) -> Streams:
    """The generator, or a new one of that seed on the device.

    Raises:
        ValueError: both are given, or the seed is no whole number that PyTorch takes.
    """
    if seed is None:
        return generator
    if generator is not None:
        raise InputError("expected seed or generator, got both")
    return torch.Generator(device).manual_seed(seed_number(seed))


def draw_noise(generators: Sequence[torch.Generator], num_steps: int, like: Tensor) -> Noise:
    """Noise for chains of D = ``like.shape[-1]`` numbers, each from its own stream."""
    dim = like.shape[-1]
    # All in one block, filled chain by chain: with K large, it is most of what a sampler keeps.
    normal = like.new_empty(len(generators), num_steps + 1, dim)
    # Of a half-precision chain too: the least of bfloat16's few numbers would be log p = −5.5.
    uniform = normal.new_empty(len(generators), num_steps, dtype=at_least_float32(like.dtype))
    for i, generator in enumerate(generators):
        fill = functools.partial(_fill, generator=generator)
        fill(torch.randn, normal[i])
        fill(torch.rand, uniform[i])
    return Noise(normal[:, 0], normal[:, 1:], torch.log1p(-uniform).to(like.dtype))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """What uniforms are drawn in: in float32 they reach far into improbable acceptances."""
    return torch.promote_types(dtype, torch.float32)


def _fill(make: Callable[..., Tensor], out: Tensor, generator: torch.Generator) -> None:
    """Random numbers from a generator, which may be of another device than they are for."""
    given: dict[str, Any] = {"generator": generator, "device": generator.device}
    if generator.device == out.device:
        make(out.shape, out=out, **given)
    else:
        out.copy_(make(out.shape, dtype=out.dtype, **given))


class Clock:
    """Splits a run's time into phases: ``lap(phase)`` ends a stretch that belonged to it.

    On a GPU the marks are events, read once at the end, so that timing adds no synchronization.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def lap(self, phase: str) -> None:
        self._marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by phase; their sum is the whole run."""
        if self._device.type == "cuda":  # not all of it: another thread may be capturing there
            torch.cuda.current_stream(self._device).synchronize()
        total = dict.fromkeys(PHASES, 0.0)
        for (_, before), (phase, after) in zip(self._marks[:-1], self._marks[1:], strict=True):
            total[phase] += _elapsed(before, after)
        return total


def _elapsed(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, float):
        assert isinstance(after, float)
        return after - before
    return before.elapsed_time(after) / 1000  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False)
class Stats:
    """What one run cost. Printed, it is one line.

    Attributes:
        sampler: name with which the sample was drawn.
        window: θ, steps guessed ahead in a round (1: sequential); with rejoining, evaluations.
        calls: (B,) sequential network calls that each chain took part in.
        evaluations: (B,) network evaluations (rows) spent on each chain.
        accepted, decided: (B, K) 1 where a draft of that step was accepted, or decided upon. (A
            draft at a point that was evaluated before is the network's own value: accepted, and
            no evaluation.)
        seconds: time of the whole run in "draft", "network", "verify" and "other".
        sums: (2, K) Σ⟨Δx, Δx̂0⟩ and Σ‖Δx‖² over drafts that were decided upon, from which slopes
            are learned; None where nothing is.
    """

    sampler: str
    window: int
    calls: Tensor
    evaluations: Tensor
    accepted: Tensor
    decided: Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    sums: np.ndarray | None = None

    def copy(self) -> Stats:
        """With tensors of their own; ordinary ones, if it is not made in inference mode."""
        names = ("calls", "evaluations", "accepted", "decided")
        return replace(self, **{name: getattr(self, name).clone() for name in names})

    def __repr__(self) -> str:
        calls, rows = self.calls.tolist(), self.evaluations.float().mean().item()
        return one_line(self.sampler, self.window, calls, rows, sum(self.seconds.values()))

    @property
    def rejections(self) -> Tensor:
        """(B,) rejected drafts."""
        return (self.decided - self.accepted).sum(1)

    @property
    def acceptance(self) -> Tensor:
        """(K,) share of accepted drafts by step, over the chains; NaN where none was decided."""
        return self.accepted.sum(0) / self.decided.sum(0)


def sequential_stats(sampler: str, batch: int, num_steps: int, seconds: dict[str, float]) -> Stats:
    """Statistics of a sampler that takes one call a step and drafts nothing."""
    calls = torch.full((batch,), num_steps, dtype=torch.long, device="cpu")
    zeros = torch.zeros((batch, num_steps), dtype=torch.long, device="cpu")
    return Stats(sampler, 1, calls, calls.clone(), zeros, zeros.clone(), seconds)


def one_line(
    sampler: str, window: int, calls: Sequence[int], evaluations: float, seconds: float
) -> str:
    """ "asd: 15–16 calls, 208 evaluations, 275 ms, window 24, 3 chains", of chains that were drawn
    together: the range of their calls, and the mean of their evaluations."""
    least, most = min(calls), max(calls)
    spread = f"{least}" if least == most else f"{least}–{most}"
    parts = [
        f"{sampler}: {spread} call{'s' * (most != 1)}",
        f"{evaluations:.0f} evaluation{'s' * (f'{evaluations:.0f}' != '1')}",
        f"{1000 * seconds:.{0 if seconds >= 0.01 else 2}f} ms",
    ]
    parts += [f"window {window}"] * (window > 1) + [f"{len(calls)} chains"] * (len(calls) > 1)
    return ", ".join(parts)
