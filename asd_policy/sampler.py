"""A sampler with its state: one denoiser, its chain, an engine, and what is known beforehand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from asd_policy.denoiser import Around, Network, PreparedNetwork, check_mode
from asd_policy.device import usable_device
from asd_policy.engine import Engine, make_engine
from asd_policy.engine.timing import network_costs
from asd_policy.errors import InputError, check_kind, whole_from
from asd_policy.samplers.acceptance import Acceptance
from asd_policy.samplers.ahead import Ahead
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise, Stats
from asd_policy.samplers.table import Plan
from asd_policy.schedule import Schedule, check_choice
from asd_policy.threads import limited_to

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # of chains


class Sampler:
    """Draws samples of one denoiser. :func:`asd_policy.sample` is its shell.

    Args:
        denoiser, schedule: as for :func:`asd_policy.sample`. shape: of one sample.
        config: which sampler.
        engine: a name, or an engine of the same network, chain and shape.
        device, dtype, kernels: of an engine that is made (default: the CPU, float32, "auto"); one
            that is given has its own.
        calibration: from earlier calls; it is updated.
        stored: in its place, what a checkpoint has; used, and frozen, if it is of this sampler.
        cond: (1, …) of one chain, to time the network with; its values do not matter.
        threads: CPU threads that samples are drawn with; None is PyTorch's number.
        compiled: whether the network goes through ``torch.compile``, and costs what it then does.

    Attributes:
        schedule: the chain that is run. calibration: what is known now.

    Raises:
        ValueError: a sampler that this chain does not allow, an engine of something else, or
            arguments of another kind.
    """

    def __init__(
        self,
        denoiser: Network | PreparedNetwork,
        schedule: Schedule,
        shape: tuple[int, ...],
        config: SamplerConfig,
        *,
        engine: str | Engine = "eager",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kernels: str = "auto",
        calibration: Calibration | None = None,
        stored: Mapping[str, Any] | None = None,
        cond: Tensor | None = None,
        threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.config, self.shape = config, tuple(shape)
        self.threads = None if threads is None else whole_from(1, "threads", threads)
        self.schedule = config.schedule(schedule)
        self._compiled = compiled
        if dtype is not None:
            check_kind("dtype", dtype, torch.dtype, "a torch.dtype")
            check_choice("dtype", dtype, DTYPES)
        if isinstance(engine, Engine):
            self._check_fit(engine, denoiser, device, dtype)
        else:
            place = usable_device("cpu" if device is None else device)
            with self._limited():
                engine = make_engine(
                    engine, denoiser, self.schedule, self.shape, place, dtype or torch.float32,
                    kernels, cond,
                )  # fmt: skip
        if calibration is None:
            calibration = Calibration()
        check_kind(
            "calibration", calibration, Calibration, "a Calibration, as calibrate() makes it"
        )
        self.engine, self.calibration = engine, calibration
        self._cond = None if cond is None else cond.to(engine.like.device)
        # Then it may be in training when a chunk is drawn; prepared ones have no such layers.
        self._as_it_is = not isinstance(engine.source, PreparedNetwork) or isinstance(
            engine.source, Around
        )
        if stored and config.has_stored_calibration(schedule):
            self.calibration = Calibration.from_dict(stored)
            self.freeze()
        self._together: int | None = None
        self._ahead = Ahead(self.schedule.num_steps, self.engine.like)

    def _check_fit(
        self,
        engine: Engine,
        denoiser: Network | PreparedNetwork,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        place = engine.like.device
        if device is not None:  # with its index, as tensors have it
            place = torch.empty(0, device=usable_device(device)).device
        if (place, dtype or engine.like.dtype) != (engine.like.device, engine.like.dtype):
            raise InputError(
                f"this engine's chains are {engine.like.dtype} on {engine.like.device}; got "
                f"dtype={dtype} and device={device}"
            )
        steps, wanted = engine.schedule.num_steps, self.schedule.num_steps
        same = engine.schedule.same_as(self.schedule)
        if engine.source != denoiser or not same or engine.shape != self.shape:
            other = "network" if engine.source != denoiser else "schedule"
            if (engine.shape, steps) != (self.shape, wanted):
                other = f"shape or chain ({self.shape} in {wanted} steps)"
            raise InputError(
                f"this engine is for samples of shape {engine.shape} in {steps} steps of the very "
                f"network that it was made with; got another {other}"
            )

    def noise(self, generators: Sequence[torch.Generator]) -> Noise:
        """All randomness of a sample from each of these streams."""
        with self._limited():
            return self._ahead.take(generators)

    def ahead(self, generators: Sequence[torch.Generator]) -> None:
        """Draw now what :meth:`noise` will give next for these streams, while nobody waits for it.
        It gives the same with or without."""
        with self._limited():
            self._ahead.draw(generators)

    def draw(
        self, noise: Noise, cond: Tensor | None = None, plan: Plan | None = None
    ) -> tuple[Tensor, Stats]:
        """Samples (B, *shape) of given noise and (B, …) conditions, and what they cost.

        Args:
            plan: to draw with, in place of :meth:`plan`'s. (To draw a chunk again as it once was.)

        Raises:
            ValueError: noise of another chain or shape, or another number of conditions.
            NonFiniteError: the network returned a NaN or an infinity.
        """
        plan = plan or self.plan(len(noise.initial))
        with self._limited():
            return self._draw(self.config, plan, noise, cond)

    def _draw(
        self, config: SamplerConfig, plan: Plan, noise: Noise, cond: Tensor | None
    ) -> tuple[Tensor, Stats]:
        batch, steps, like = len(noise.initial), self.schedule.num_steps, self.engine.like
        if batch < 1 or (cond is not None and len(cond) != batch):
            raise InputError(
                "expected noise of one chain or more, and conditions of as many; got "
                f"{batch} and {'none' if cond is None else len(cond)}"
            )
        if not noise.fits(steps, like):
            noise = noise.fitted(batch, steps, like)
        if cond is not None:  # observations come from the host, chains may lie on a GPU
            cond = cond.to(like.device)
        if self._as_it_is:
            check_mode(self.engine.source)
        x, stats = config.method.draw(self.engine, config, plan, noise, cond)
        self.calibration.learned.update(stats)
        return x.view(-1, *self.shape), stats

    def plan(self, batch: int) -> Plan:
        """What the next chunk for ``batch`` chains is drawn with."""
        known, steps = self.calibration, self.schedule.num_steps
        drafts = "draft" in self.config.method.options
        return Plan(
            self.window_for(self._together or batch),
            known.slopes(steps) if drafts else None,
            learn=not known.frozen,
            acceptance=known.learned.acceptance or Acceptance.unknown(steps),
        )

    # ---- the window ------------------------------------------------------------------------------

    def expect(self, batch: int) -> None:
        """Choose the window for so many chains at once, from here on: not for those of the moment,
        so that a chunk does not depend on which others are drawn beside it."""
        self._together = max(1, batch)
        self.engine.expect(self._together)

    @property
    def window(self) -> int | None:
        """θ of the next chunks (1: sequentially); None of samplers without a window."""
        if "window" not in self.config.method.options:
            return None
        return self.window_for(self._together or 1)

    def window_for(self, batch: int) -> int:
        """θ of a chunk for ``batch`` chains, "auto" chosen."""
        steps, fixed = self.schedule.num_steps, self.config.method.window
        if "window" in self.config.method.options and self.config.window != "auto":
            fixed = int(self.config.window)
        if fixed is not None:
            return min(fixed, steps)
        return self.calibration.window(batch, steps)

    @property
    def needs_costs(self) -> bool:
        """Whether the window depends on what a network call costs on this machine."""
        return self.config.method.window is None and self.config.window == "auto"

    # ---- what is known beforehand ----------------------------------------------------------------

    def calibrate(
        self,
        inputs: Iterable[tuple[Noise, Tensor | None]],
        chunks: int = 4,
        window: int | None = None,
        others: Iterable[int] = (),
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Learn from throw-away chunks: slopes with one window, calls with ``others`` as well.

        Args:
            inputs: noise and (B, …) conditions of each, as typical as may be.
            chunks: with each window. Acceptance in the first one is not kept, if there are more:
                it was drawn without slopes.
            window: with which slopes are learned (default: the next chunks').
            progress: called with the number of chunks done.
        """
        feed, learned, done = iter(inputs), self.calibration.learned, 0

        def chunk(width: int | None, learn: bool) -> Stats:
            nonlocal done
            noise, cond = next(feed)
            config, plan = self.config, replace(self.plan(len(noise.initial)), learn=learn)
            if width is not None:
                config, plan = replace(config, window=width), replace(plan, window=width)
            with self._limited():
                _, stats = self._draw(config, plan, noise, cond)
            done += 1
            progress(done)
            return stats

        for number in range(chunks):
            chunk(window, learn=True)
            if number == 0 and chunks > 1:
                learned.forget_acceptance()
        for other in sorted(set(others) - {window}):
            for _ in range(chunks):
                learned.count_calls(chunk(other, learn=False))
        learned.settle()

    def freeze(self) -> None:
        """Learn nothing from here on: a chunk then depends on its noise and window alone."""
        self.calibration.frozen = True

    def measure(self, again: bool = True) -> None:
        """Time the network on this machine, if windows depend on it, and choose them by what it
        took; unless ``again``, by what is kept from an earlier time, if anything is."""
        if self.needs_costs:
            with self._limited():
                costs = network_costs(self.engine, self._cond, self._compiled, again)
            self.calibration.costs = costs

    def close(self) -> None:
        """Release what the engine keeps on its device. The sampler can still be used."""
        self.engine.close()

    def _limited(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.threads is None else limited_to(self.threads)
