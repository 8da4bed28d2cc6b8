"""The CUDA-graph engine: a whole round is one launch, and the host waits for none of them.

A small network's time is launches, and a round has hundreds. Here each is recorded once for a
number of chains and a window, and replayed. The host launches a round before it has read whether
the one before was the last, unless it probably is (or ``SKIPPED`` makes one too many cost nothing);
a finished chain's round changes nothing.
"""

from __future__ import annotations

import functools
import math
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from asd_policy.ambient import Precision, asked_for, own_precision
from asd_policy.denoiser import Denoiser, owner
from asd_policy.engine.eager import Engine, raise_if_bad
from asd_policy.engine.kernels import make_kernels
from asd_policy.errors import EngineError
from asd_policy.networks.weights import Watch
from asd_policy.samplers.asd import AutospeculativeDecoding
from asd_policy.samplers.ddpm import sample_ddpm
from asd_policy.samplers.result import Noise, Stats, sequential_stats
from asd_policy.samplers.sequential import SequentialSteps
from asd_policy.samplers.table import Plan

Replay = Callable[[], None]
Key = TypeVar("Key")
Graphs = TypeVar("Graphs")
NARROWEST = 8  # a window of fewer steps is not worth a graph of its own
# A round that nobody needed costs about ten times the pause in which the host reads the one before.
PROBABLY_LAST = 0.1
# Whether a round first asks on the device if any chain goes on, so that one which nobody needed
# costs a few µs and the host need never pause (conditional nodes, CUDA 12.4): not measured yet.
SKIPPED = False
# A process has one capture at a time, during which a device must not be waited for.
_capturing = threading.Lock()


def can_skip() -> bool:
    """Whether what is recorded can be left out by a flag on the device."""
    return hasattr(torch.cuda.CUDAGraph, "begin_capture_to_if_node")


class CudaRecorder:
    """CUDA graphs in one memory pool, on a stream of their own. A copy has others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __reduce__(self) -> tuple[type[CudaRecorder], tuple[torch.device]]:
        return CudaRecorder, (self._device,)

    @property
    def skips(self) -> bool:
        """Whether what is recorded is left out where a flag on the device says so."""
        return SKIPPED and can_skip()

    def record(
        self,
        work: Callable[[], object],
        what: str,
        when: Callable[[], Tensor] | None = None,
        smaller: str = "A smaller window or fewer chains at a time",
    ) -> tuple[Replay, int]:
        """Warm ``work`` up and capture it: a function that replays it, and the bytes that the pool
        has grown by (0 where what was captured before had as much).

        Args:
            when: makes a boolean () on the device; what is replayed does nothing where it is false.
            smaller: what takes less memory, for the error.
        """
        with _capturing:
            try:
                return self._record(work, what, when)
            except RuntimeError as error:
                self._pool = torch.cuda.graph_pool_handle()  # a capture that broke keeps its own
                # The end of one that broke fails, too, and says less than what broke it.
                before = None if error.__cause__ else error.__context__
                first = before if isinstance(before, RuntimeError) else error
                told = f"capturing {what} as a CUDA graph failed: {first}"
                if isinstance(first, torch.cuda.OutOfMemoryError):
                    free, total = (n / 2**20 for n in torch.cuda.mem_get_info(self._device))
                    told = f"out of GPU memory while capturing {what}: {free:.0f} of {total:.0f} "
                    told += f"MiB are free. {smaller} would fit"
                raise EngineError(told) from error

    def _record(
        self, work: Callable[[], object], what: str, when: Callable[[], Tensor] | None
    ) -> tuple[Replay, int]:
        graph, held = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved
        cudnn = torch.backends.cudnn
        searching, cudnn.benchmark = cudnn.benchmark, True  # shapes are those of every replay
        casts = torch.is_autocast_cache_enabled()  # of weights, which a graph must make anew
        torch.set_autocast_cache_enabled(False)
        try:
            # torch.cuda.graph stays on its stream where the capture breaks; this one does not.
            with self.working():
                for _ in range(3):  # libraries choose algorithms and allocate workspaces
                    if when is not None:
                        when()
                    work()
                self._stream.synchronize()
                with torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ):
                    before = held(self._device)  # PyTorch has let go of what warmed up
                    if when is not None:
                        graph.begin_capture_to_if_node(when())
                    work()
                    if when is not None:
                        graph.end_capture_to_conditional_node()
        finally:
            cudnn.benchmark = searching
            torch.set_autocast_cache_enabled(casts)
        return graph.replay, max(0, held(self._device) - before)

    def read_later(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        """Copy them as they are now, and before what is launched next changes them."""
        with torch.cuda.stream(self._stream):
            copies = [
                torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True) for t in tensors
            ]
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)

        def wait() -> list[Tensor]:
            copied.synchronize()
            # Pinned memory, once let go, marks its stream, which may be recording a graph by then.
            return [copy.clone() for copy in copies]

        return wait

    def working(self) -> AbstractContextManager[Any]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()


@dataclass(frozen=True)
class Rounds:
    """Graphs of one form of autospeculative decoding.

    Attributes:
        reset: the start of a chunk. turns: a round, by the width of its window: θ, its half, a
            quarter … parts: seconds of its draft, network and verification, by width.
        skipped: whether a round that no chain needs is left out.
    """

    reset: Replay
    turns: dict[int, Replay]
    parts: dict[int, dict[str, float]]
    skipped: bool

    def width(self, left: int) -> int:
        """The narrowest window for as many steps as are left, or θ."""
        return min((w for w in self.turns if w >= left), default=max(self.turns))


class CudaGraphEngine(Engine):
    """An :class:`Engine` whose rounds and steps are CUDA graphs.

    Args:
        recorder: stands in for the device in tests.
        fallback: where capture fails, warn once and go on eagerly (``name`` then says so).
    """

    name = "cuda_graph"
    lean = False  # graphs read noise where it lay when they were captured

    def __init__(
        self,
        *args: Any,
        recorder: CudaRecorder | None = None,
        fallback: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        device = self.like.device
        if recorder is None and device.type != "cuda":
            raise EngineError(f"CUDA graphs need a CUDA device, got {str(device)!r}")
        self._recorder = recorder or CudaRecorder(device)
        self._fallback = fallback

    def _keep(self) -> None:
        super()._keep()
        self._graphs: WeakKeyDictionary[object, Any] = WeakKeyDictionary()
        self._steps: OrderedDict[tuple[int, Precision], SequentialSteps] = OrderedDict()
        # A prepared network is copied in place; of another, graphs know where its weights lie.
        module = owner(self.source)
        self._module = module if isinstance(module, torch.nn.Module) else None
        self._watch = None if self._module is None else Watch(self._module)
        self.bytes_by_bucket: dict[str, int] = {}
        self._waiting: list[Callable[[], list[Tensor]]] = []  # for rounds that were launched

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_graphs", "_steps", "_waiting", "bytes_by_bucket")
        return {k: v for k, v in super().__getstate__().items() if k not in kept}

    def _decode(
        self, run: AutospeculativeDecoding, noise: Noise, plan: Plan
    ) -> tuple[Tensor, Stats]:
        start, chains = time.perf_counter(), run.chains
        graphs = self._captured(run, self._capture_rounds)
        if graphs is None:
            return super()._decode(run, noise, plan)
        assert plan.slopes is not None, "ASD drafts with slopes, if only with zeros"
        size, n = chains.num_steps, [0] * chains.batch
        ends = plan.acceptance.chance_of_the_end(chains.window)
        waiting = self._waiting = []
        launched: list[int] = []
        with self._recorder.working():
            chains.load(noise.initial, noise.steps, noise.log_uniform, plan.slopes)
            graphs.reset()
            while min(n) < size:
                likely = math.prod(float(ends[i]) for i in n) > PROBABLY_LAST
                while len(waiting) < (1 if likely and not graphs.skipped else 2):
                    # No wider than what is left, of which the host knows a little late.
                    width = graphs.width(size - min(n))
                    graphs.turns[width]()
                    launched.append(width)
                    waiting.append(self._recorder.read_later(chains.counts, chains.x))
                counts, x = waiting.pop(0)()
                marks = counts[: 6 * chains.batch].view(6, chains.batch)
                raise_if_bad(run.denoiser, marks[1].tolist())
                n = marks[2].tolist()
                assert len(launched) <= size + 1, "every round must advance every chain"
        needed = launched[: len(launched) - len(waiting)]
        seconds = time.perf_counter() - start
        return x.to(self.like.device), run.stats(
            counts, _split([graphs.parts[w] for w in needed], seconds)
        )

    def _settle(self) -> None:
        """Wait for a round that nobody needed: it writes to chains whose memory may be let go."""
        if self._waiting:
            self._recorder.synchronize()
            self._waiting.clear()

    def _denoiser(self, batch: int, cond: Tensor | None) -> Denoiser:
        self._settle()  # before states of chains, or their graphs, are replaced
        return super()._denoiser(batch, cond)

    def __del__(self) -> None:
        with suppress(Exception):  # of an engine half made, or where the interpreter ends
            self._settle()

    def _captured(self, key: Key, capture: Callable[[Key], Graphs]) -> Graphs | None:
        """The graphs of ``key``, captured at first; None once that has failed under "auto"."""
        if self.name == "eager":
            return None
        if self._watch is not None and self._watch.moved():
            assert self._module is not None
            self._graphs.clear()
            self._watch = Watch(self._module)
        if key not in self._graphs:
            try:
                self._graphs[key] = capture(key)
            except EngineError as error:
                if not self._fallback:
                    raise
                self.name = "eager"
                warnings.warn(f"using the eager engine: {error}", stacklevel=2)
                return None
        return cast(Graphs, self._graphs[key])

    def _capture_rounds(self, run: AutospeculativeDecoding) -> Rounds:
        chains = run.chains
        reset, _ = self._recorder.record(chains.reset, "the start of a chunk")
        rounds, width = Rounds(reset, {}, {}, self._recorder.skips), chains.window
        when = run.going_on if rounds.skipped else None
        while width == chains.window or width >= NARROWEST:
            what = f"a round of {chains.batch} chains with window {width}"
            work = functools.partial(run.round, None, width=width)
            recorded = self._recorder.record(work, what, when)
            rounds.turns[width], self.bytes_by_bucket[what] = recorded
            rounds.parts[width] = self._time_parts(run, width)
            width //= 2
        return rounds

    def _capture_step(self, steps: SequentialSteps) -> Replay:
        what = f"a sequential step of {len(steps.x)} chains"
        replay, self.bytes_by_bucket[what] = self._recorder.record(steps.step, what)
        return replay

    def _time_parts(self, run: AutospeculativeDecoding, width: int) -> dict[str, float]:
        """Seconds that draft, network and verification take in a round, each replayed alone."""
        chains, parts, ahead = run.chains, {}, run.form.ahead
        guess = functools.partial(run.guess, width)
        guesses, here = guess(), chains.x.unsqueeze(1)
        first = functools.partial(run.predict, here, chains.steps(1), None)
        said = first(), run.evaluate(guesses, False)

        def network() -> None:
            if ahead:
                first()
            run.evaluate(guesses, False)

        def verify() -> None:
            if ahead:
                run.kernels.observe(chains, run.denoiser, here, said[0], run.form)
            run.verify(guesses, said[1])

        stages: dict[str, Callable[[], object]] = {
            "draft": guess, "network": network, "verify": verify,
        }  # fmt: skip
        for name, work in stages.items():
            replay, _ = self._recorder.record(work, f"the {name} of a round")
            chains.reset()
            self._recorder.synchronize()
            start = time.perf_counter()
            with self._recorder.working():
                for _ in range(20):
                    replay()
                self._recorder.synchronize()
            parts[name] = (time.perf_counter() - start) / 20
        return parts

    @torch.inference_mode()
    @own_precision()
    def sequential(
        self, noise: Noise, cond: Tensor | None, name: str = "ddpm"
    ) -> tuple[Tensor, Stats]:
        with self._lock:
            start, batch = time.perf_counter(), len(noise.initial)
            size, denoiser = self.schedule.num_steps, self._denoiser(batch, cond)
            key = batch, asked_for()
            steps = self._steps.get(key)
            if steps is None or steps.denoiser is not denoiser:
                kernels = make_kernels(self.kernels)
                steps = SequentialSteps(denoiser, self.schedule, noise.initial, kernels)
                self._steps[key] = steps
            self._keep_newest(self._steps, key)
            replay = self._captured(steps, self._capture_step)
            if replay is None:
                return sample_ddpm(denoiser, self.schedule, noise, name)
            with self._recorder.working():
                steps.load(noise)
                for _ in range(size):
                    replay()
                x, marks = self._recorder.read_later(steps.x, steps.marks)()
            raise_if_bad(denoiser, marks[1].tolist())
            seconds = time.perf_counter() - start
            times = {"draft": 0.0, "network": seconds, "verify": 0.0, "other": 0.0}
            return x.to(self.like.device), sequential_stats(name, batch, size, times)

    def _repeatable(self, work: Callable[[], object], rows: int) -> Callable[[], object]:
        """Captured, as a round's call would be; released with the function returned."""
        if self.name == "eager":
            return work
        try:
            replay, _ = self._recorder.record(work, f"a network call on {rows} rows")
        except EngineError:
            if not self._fallback:
                raise
            return work

        def repeat(_reads: object = work) -> None:  # what the graph reads must stay where it lies
            replay()

        return repeat

    def close(self) -> None:
        """Release graphs, their memory and the states that are kept."""
        with self._lock:
            self._recorder.synchronize()  # before memory is let go that a round may write to
        super().close()
        with self._lock:
            self._steps.clear()
            self._graphs.clear()
            self.bytes_by_bucket.clear()


def _split(rounds: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """A chunk's time by phase; "other" is what was in none: launches, copies, gaps.

    Args:
        rounds: seconds of each round's phases, measured alone. seconds: of the whole chunk.
    """
    parts = {name: sum(one[name] for one in rounds) for name in rounds[0]}
    scale = min(1.0, seconds / max(sum(parts.values()), 1e-12))
    split = {name: part * scale for name, part in parts.items()}
    return {**split, "other": seconds - sum(split.values())}
