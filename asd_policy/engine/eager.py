"""The eager engine: every operation is launched when its turn comes."""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, SupportsIndex, TypeVar

import torch
from torch import Tensor

from asd_policy.ambient import asked_for, own_precision
from asd_policy.chains import Chains
from asd_policy.denoiser import Denoiser, Network, PreparedNetwork
from asd_policy.drafts import Form
from asd_policy.engine.kernels import choose_kernels, make_kernels
from asd_policy.errors import CopyError
from asd_policy.samplers.asd import AutospeculativeDecoding
from asd_policy.samplers.ddpm import sample_ddpm
from asd_policy.samplers.result import Clock, Noise, Stats
from asd_policy.samplers.table import Loop, Plan
from asd_policy.schedule import Schedule

Result = TypeVar("Result")
KEPT, MOST_KEPT = 8, 64  # states of chains, one for each batch size, window and form


class Engine:
    """Runs the samplers of one network on one device.

    No gradients; autocast and shortened products in a plain network alone. States of chains are
    kept between chunks. Threads may share an engine: chunks are drawn one after the other. A copy
    has a network of its own, and makes its states anew.

    Args:
        network: as for :func:`asd_policy.sample`, or prepared.
        schedule: the chain to run. shape: of one sample.
        kernels: one of ``asd_policy.engine.kernels.KERNELS``.
    """

    name = "eager"
    ranks = 1  # processes that share a network call
    leads = True  # whether this process is the one that draws
    kept = KEPT
    lean = True  # chains in PyTorch's arithmetic keep no more than their window (see Chains)

    def __init__(
        self,
        network: Network | PreparedNetwork,
        schedule: Schedule,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ) -> None:
        self.network, self.schedule, self.shape = network, schedule, tuple(shape)
        self.source = network  # as it was given; a subclass may wrap it
        self.like = torch.empty(0, torch.Size(shape).numel(), device=device, dtype=dtype)
        self.kernels = choose_kernels(kernels, self.like)
        self._keep()

    def expect(self, batch: int) -> None:
        """Keep states for as many batch sizes as there are up to this one, within reason."""
        self.kept = max(KEPT, min(batch, MOST_KEPT))

    def _keep(self) -> None:
        """Begin with no states: those of a copy would lie where the original's do."""
        self._lock = threading.Lock()
        self._denoisers: OrderedDict[int, Denoiser] = OrderedDict()
        self._runs: OrderedDict[tuple[object, ...], AutospeculativeDecoding] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_denoisers", "_runs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._keep()

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        made = memo[id(self)] = object.__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        name = str(getattr(self.source, "__qualname__", ""))
        if "<" in name:  # pickle finds functions by their names; deepcopy takes any
            raise CopyError(
                f"the engine of {name} cannot be pickled: define this denoiser at the top of a "
                "module, or pickle the result's sample, stats and calibration without the engine"
            )
        return super().__reduce_ex__(protocol)

    @torch.inference_mode()
    @own_precision()
    def sequential(
        self, noise: Noise, cond: Tensor | None, name: str = "ddpm"
    ) -> tuple[Tensor, Stats]:
        """:func:`sample_ddpm` on (B, …) conditions."""
        with self._lock:
            return sample_ddpm(self._denoiser(len(noise.initial), cond), self.schedule, noise, name)

    @torch.inference_mode()
    @own_precision()
    def run(self, loop: Loop, noise: Noise, cond: Tensor | None) -> tuple[Tensor, Stats]:
        """Any sampler ``loop(denoiser, schedule, noise)`` on (B, …) conditions."""
        with self._lock:
            return loop(self._denoiser(len(noise.initial), cond), self.schedule, noise)

    @torch.inference_mode()
    @own_precision()
    def asd(
        self, noise: Noise, cond: Tensor | None, form: Form, plan: Plan
    ) -> tuple[Tensor, Stats]:
        """Autospeculative decoding.

        Args:
            noise: all randomness of the chunk. cond: (B, …).
            form: drafts and calls a round. plan: window, and slopes from earlier chunks.

        Returns:
            (B, D) samples, distributed as those of :meth:`sequential`, and their statistics.

        Raises:
            NonFiniteError: the network returned a NaN or an infinity.
        """
        with self._lock:
            run = self._run(noise, cond, form, plan.window)
            try:
                x, stats = self._decode(run, noise, plan)
            finally:
                run.chains.forget_noise()
            if form.learn:
                learned = run.chains.learned[:, : self.schedule.num_steps]
                stats = replace(stats, sums=learned.cpu().numpy().copy())
            return x, stats

    def _decode(
        self, run: AutospeculativeDecoding, noise: Noise, plan: Plan
    ) -> tuple[Tensor, Stats]:
        assert plan.slopes is not None, "ASD drafts with slopes, if only with zeros"
        clock, chains = Clock(self.like.device), run.chains
        chains.load(noise.initial, noise.steps, noise.log_uniform, plan.slopes)
        chains.reset()
        clock.lap("other")
        rounds = 0
        while min(n := chains.n.tolist()) < chains.num_steps:
            run.round(n, clock.lap)
            raise_if_bad(run.denoiser, chains.bad.tolist())
            rounds += 1
            assert rounds <= chains.num_steps, "every round must advance every chain"
        x, counts = chains.x.clone(), chains.counts.cpu().clone()
        clock.lap("other")
        return x, run.stats(counts, clock.seconds())

    @torch.inference_mode()
    @own_precision()
    def timer(self, rows: int, cond: Tensor | None) -> Callable[[], float]:
        """A function that makes one network call on ``rows`` rows and returns what it took, in
        seconds; cond is (1, …) or None. It is valid until the engine's next chunk."""
        with self._lock:
            x = self.like.new_zeros(rows, self.like.shape[1])
            zeros = torch.zeros(rows, dtype=torch.int64, device=x.device)
            denoiser = self._denoiser(1, cond)
            call = self._repeatable(lambda: denoiser.predict(x, zeros, zeros), rows)

        @torch.inference_mode()
        @own_precision()
        def timed() -> float:
            with self._lock:
                return _timed(call, x.device, self.ranks)

        return timed

    def seconds(self, rows: int, cond: Tensor | None, repeats: int = 4) -> float:
        """What one network call on a number of rows takes; cond is (1, …) or None.

        The least of a few: whatever else the machine does only ever adds.
        """
        timed = self.timer(rows, cond)
        return min(timed() for _ in range(1 + repeats))

    def lead(self, work: Callable[[], Result]) -> Result:
        """Do work that calls the network, where this process is the one that does."""
        return work()

    def _repeatable(self, work: Callable[[], object], rows: int) -> Callable[[], object]:
        return work

    def close(self) -> None:
        """Release the states that are kept. The engine can still be used."""
        with self._lock:
            self._denoisers.clear()
            self._runs.clear()

    def release(self) -> None:
        """As :meth:`close`, but that processes which serve this one are not told."""
        self.close()

    def _denoiser(self, batch: int, cond: Tensor | None) -> Denoiser:
        """One that holds the conditions of these chains."""
        if batch in self._denoisers and self._denoisers[batch].takes(cond):
            self._denoisers[batch].condition(cond, batch)
        else:
            like = self.like.new_empty(batch, self.like.shape[1])
            self._denoisers[batch] = Denoiser(self.network, self.schedule, self.shape, cond, like)
        self._keep_newest(self._denoisers, batch)
        return self._denoisers[batch]

    def _run(
        self, noise: Noise, cond: Tensor | None, form: Form, window: int
    ) -> AutospeculativeDecoding:
        denoiser = self._denoiser(len(noise.initial), cond)
        batch, dim = noise.initial.shape
        like = self.like.new_empty(batch, dim)
        key = batch, window, form, asked_for()  # a captured round keeps its precision
        if key not in self._runs or self._runs[key].denoiser is not denoiser:
            lean = self.lean and self.kernels == "torch" and not form.rejoin
            chains = Chains(self.schedule, batch, dim, window, like, form.rejoin, lean)
            kernels = make_kernels(self.kernels)
            self._runs[key] = AutospeculativeDecoding(denoiser, chains, form, kernels)
        self._keep_newest(self._runs, key)
        return self._runs[key]

    def _keep_newest(self, cache: OrderedDict[Any, Any], key: object) -> None:
        cache.move_to_end(key)
        while len(cache) > self.kept:
            cache.popitem(last=False)


def _timed(call: Callable[[], object], device: torch.device, ranks: int) -> float:
    """Seconds of a call. Of one thread alone on a CPU, its processor's time: other work on the
    machine, which interrupts nearly every call of some milliseconds, does not count there."""
    alone = device.type == "cpu" and torch.get_num_threads() == ranks == 1
    clock = time.thread_time if alone else time.perf_counter
    start = clock()
    call()
    if device.type == "cuda":  # not the whole device, on which another thread may be capturing
        torch.cuda.current_stream(device).synchronize()
    return clock() - start


def raise_if_bad(denoiser: Denoiser, bad: list[int]) -> None:
    """Raise the NonFiniteError of the first chain whose network output was not finite."""
    for chain, step in enumerate(bad):
        if step >= 0:
            raise denoiser.non_finite(step, chain)
