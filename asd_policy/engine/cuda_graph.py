"""The CUDA-graph engine: a whole round is one launch, and the host waits for none of them.

A small network's time is launches, and a round has hundreds. Here each is recorded once for a
number of chains and a window, and replayed. The host launches a round before it has read whether
the one before was the last, unless it probably is; a finished chain's round changes nothing.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from asd_policy.engine.eager import Engine, raise_if_bad
from asd_policy.engine.kernels import make_kernels
from asd_policy.errors import EngineError
from asd_policy.samplers.asd import AutospeculativeDecoding
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.ddpm import sample_ddpm
from asd_policy.samplers.result import Noise, Stats, sequential_stats
from asd_policy.samplers.sequential import SequentialSteps

Replay = Callable[[], None]
# A round that nobody needed costs about ten times the pause in which the host reads the one before.
PROBABLY_LAST = 0.1


class Recorder(Protocol):
    """What the engine asks of a device."""

    def record(self, work: Callable[[], object], what: str) -> tuple[Replay, int]:
        """Warm ``work`` up and capture it: a function that replays it, and the bytes it took."""

    def read_later(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        """Copy to the host what the work launched so far leaves; calling waits and returns it."""

    def working(self) -> AbstractContextManager[Any]:
        """Where replays and copies are launched, after what the caller has launched."""

    def synchronize(self) -> None: ...


class CudaRecorder:
    """CUDA graphs in one memory pool, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream, self._reader = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], object], what: str) -> tuple[Replay, int]:
        before = torch.cuda.memory_allocated(self._device)
        graph = torch.cuda.CUDAGraph()
        cudnn = torch.backends.cudnn
        searching, cudnn.benchmark = cudnn.benchmark, True  # shapes are those of every replay
        try:
            with self.working():
                for _ in range(3):  # libraries choose algorithms and allocate workspaces
                    work()
            self._stream.synchronize()
            with torch.cuda.graph(
                graph, self._pool, self._stream, capture_error_mode="thread_local"
            ):
                work()
        except torch.cuda.OutOfMemoryError as error:
            free, total = (n / 2**20 for n in torch.cuda.mem_get_info(self._device))
            raise EngineError(
                f"out of GPU memory while capturing {what}: {free:.0f} of {total:.0f} MiB are "
                "free. A smaller window or fewer chains at a time would fit"
            ) from error
        except RuntimeError as error:
            raise EngineError(f"capturing {what} as a CUDA graph failed: {error}") from error
        finally:
            cudnn.benchmark = searching
        return graph.replay, torch.cuda.memory_allocated(self._device) - before

    def read_later(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        launched = torch.cuda.Event()
        launched.record(self._stream)
        with torch.cuda.stream(self._reader):
            self._reader.wait_event(launched)
            copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._reader)

        def wait() -> list[Tensor]:
            copied.synchronize()
            return copies

        return wait

    def working(self) -> AbstractContextManager[Any]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()


class CudaGraphEngine(Engine):
    """An :class:`Engine` whose rounds and steps are CUDA graphs.

    Args:
        recorder: stands in for the device in tests.
        fallback: where capture fails, warn once and go on eagerly (``name`` then says so).
    """

    name = "cuda_graph"

    def __init__(
        self,
        *args: Any,
        recorder: Recorder | None = None,
        fallback: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        device = self.like.device
        if recorder is None and device.type != "cuda":
            raise EngineError(f"CUDA graphs need a CUDA device, got {str(device)!r}")
        self._recorder: Recorder = recorder or CudaRecorder(device)
        self._fallback = fallback
        self._graphs: WeakKeyDictionary[object, tuple[Replay, ...]] = WeakKeyDictionary()
        self._parts: WeakKeyDictionary[object, dict[str, float]] = WeakKeyDictionary()
        self._steps: dict[int, SequentialSteps] = {}
        self.bytes_by_bucket: dict[str, int] = {}

    def _decode(
        self, run: AutospeculativeDecoding, noise: Noise, calibration: Calibration
    ) -> tuple[Tensor, Stats]:
        start, chains = time.perf_counter(), run.chains
        if not self._ready(run, self._capture_round):
            return super()._decode(run, noise, calibration)
        reset, turn = self._graphs[run]
        ends = calibration.chance_of_the_end(chains.num_steps, chains.window)
        with self._recorder.working():
            slopes = calibration.slopes(chains.num_steps)
            chains.load(noise.initial, noise.steps, noise.log_uniform, slopes)
            reset()
            rounds, waiting, n = 0, [], [0] * chains.batch
            while True:
                likely = math.prod(float(ends[i]) for i in n) > PROBABLY_LAST
                while len(waiting) < (1 if likely else 2):
                    turn()
                    waiting.append(self._recorder.read_later(chains.counts, chains.x))
                rounds += 1
                counts, x = waiting.pop(0)()
                marks = counts[: 6 * chains.batch].view(6, chains.batch)
                raise_if_bad(run.denoiser, marks[1].tolist())
                if min(n := marks[2].tolist()) >= chains.num_steps:
                    break
                assert rounds <= chains.num_steps, "every round must advance every chain"
        seconds = time.perf_counter() - start
        return x.to(self.like.device), run.stats(counts, self._split(run, rounds, seconds))

    def _ready(self, key: object, capture: Callable[[Any], tuple[Replay, ...]]) -> bool:
        """Whether replays of ``key`` are at hand; False once capture has failed under "auto"."""
        if self.name == "eager":
            return False
        if key not in self._graphs:
            try:
                self._graphs[key] = capture(key)
            except EngineError as error:
                if not self._fallback:
                    raise
                self.name = "eager"
                warnings.warn(f"using the eager engine: {error}", stacklevel=2)
                return False
        return True

    def _capture_round(self, run: AutospeculativeDecoding) -> tuple[Replay, ...]:
        chains = run.chains
        what = f"a round of {chains.batch} chains with window {chains.window}"
        reset, _ = self._recorder.record(chains.reset, "the start of a chunk")
        turn, self.bytes_by_bucket[what] = self._recorder.record(lambda: run.round(None), what)
        self._parts[run] = self._time_parts(run)
        return reset, turn

    def _capture_step(self, steps: SequentialSteps) -> tuple[Replay, ...]:
        what = f"a sequential step of {len(steps.x)} chains"
        replay, self.bytes_by_bucket[what] = self._recorder.record(steps.step, what)
        return (replay,)

    def _time_parts(self, run: AutospeculativeDecoding) -> dict[str, float]:
        """Seconds that draft, network and verification take in a round, each replayed alone."""
        chains, parts = run.chains, {}
        uses = run.draft == "secant", run.learn
        points, drafts = run.kernels.propose(chains, run.denoiser, run.draft, chains.window)
        here, later = points[:, :1], points[:, run.ahead : run.ahead + chains.window]
        said = run.predict(here, 0, False), run.predict(later, run.ahead, False)

        def network() -> None:
            if run.ahead:
                run.predict(here, 0, False)
            run.predict(later, run.ahead, False)

        def verify() -> None:
            if run.ahead:
                run.kernels.observe(chains, run.denoiser, here, said[0], 0, *uses)
            run.kernels.verify(chains, run.denoiser, points, drafts, said[1], run.ahead, *uses)

        stages: dict[str, Callable[[], object]] = {
            "draft": lambda: run.kernels.propose(chains, run.denoiser, run.draft, chains.window),
            "network": network,
            "verify": verify,
        }
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

    def _split(self, run: AutospeculativeDecoding, rounds: int, seconds: float) -> dict[str, float]:
        """A chunk's time by phase; "other" is what was neither: launches, copies, gaps."""
        parts = {name: part * rounds for name, part in self._parts[run].items()}
        scale = min(1.0, seconds / max(sum(parts.values()), 1e-12))
        split = {name: part * scale for name, part in parts.items()}
        return {**split, "other": seconds - sum(split.values())}

    @torch.inference_mode()
    def sequential(
        self, noise: Noise, cond: Tensor | None, name: str = "ddpm"
    ) -> tuple[Tensor, Stats]:
        with self._lock:
            start, batch = time.perf_counter(), len(noise.initial)
            size, denoiser = self.schedule.num_steps, self._denoiser(batch, cond)
            steps = self._steps.get(batch)
            if steps is None or steps.denoiser is not denoiser:
                kernels = make_kernels(self.kernels)
                steps = SequentialSteps(denoiser, self.schedule, noise.initial, kernels)
                self._steps[batch] = steps
            if not self._ready(steps, self._capture_step):
                return sample_ddpm(denoiser, self.schedule, noise, name)
            (replay,) = self._graphs[steps]
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
        return replay

    def close(self) -> None:
        """Release graphs, their memory and the states that are kept."""
        super().close()
        with self._lock:
            self._recorder.synchronize()
            self._steps.clear()
            self._graphs.clear()
            self._parts.clear()
            self.bytes_by_bucket.clear()
