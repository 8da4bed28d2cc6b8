"""The file of `asd-policy bench`."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from typing_extensions import NotRequired

from asd_policy.eval.runs.forms import (
    Above,
    Amount,
    Closed,
    Count,
    Machine,
    Moment,
    Positive,
    Precision,
    Sha256,
    Share,
    Some,
    Two,
    Unique,
    pattern,
)

Engine = Literal["auto", "eager", "cuda_graph", "openvino", "distributed"]
UsedEngine = Literal["eager-loop", "eager", "cuda_graph", "openvino", "distributed"]
Kernels = Literal["auto", "torch", "native", "triton"]


class BenchSettings(Closed):
    """The options of `asd-policy bench` by name."""

    samplers: Annotated[list[str], Some, Unique]
    engines: Annotated[list[Engine], Some, Unique]
    kernels: Annotated[list[Kernels], Some, Unique]
    precisions: Annotated[list[Precision], Some, Unique]
    batches: Annotated[list[Positive], Some, Unique]
    windows: Annotated[list[Annotated[str, pattern("^(auto|[1-9][0-9]*)$")]], Some, Unique]
    networks: Annotated[list[str], Some, Unique]
    steps: Annotated[list[Positive], Unique]
    """None: as trained."""
    compile: bool
    chunks: Positive
    device: str
    threads: Positive | None
    data: str | None
    seed: int
    calls_against_steps: bool
    quick: bool


class BenchMachine(Machine):
    """A machine or version that went on with the benchmark."""

    gpu_memory_bytes: NotRequired[Positive]
    gpu_multiprocessors: NotRequired[Positive]
    cuda: NotRequired[str | None]
    cudnn: NotRequired[Positive | None]
    commit_given: NotRequired[str]


class Network(Closed):
    """A network that is measured."""

    sha256: NotRequired[Sha256 | None]
    """Of the checkpoint's weights; none of random ones, and in files older than this entry."""
    parameters: Positive
    trained: bool
    trained_steps: Positive
    chunk_shape: Annotated[list[Positive], Two]
    conditions: str
    """Where they are from."""
    flops_per_row: Positive
    conditioning_flops_per_row: Count
    weights: Positive
    conditioning_weights: Count


class Ceilings(Closed):
    """What the hardware reaches on plain work."""

    copy_bytes_per_s: Above
    copy_megabytes: Positive
    matmul_flop_per_s: Annotated[dict[Precision, Above], Some]
    matmul_size: Positive


class CallCost(Closed):
    """Milliseconds of a network call by rows, of one form of a network."""

    network: str
    precision: Literal["-"] | Precision
    engine: UsedEngine
    compile: bool
    rows: list[Positive]
    ms: list[Above]


class BenchCell(Closed):
    """What was measured; "-" for what does not apply to its sampler."""

    key: str
    network: str
    batch: Positive
    steps: Positive
    precision: Literal["-"] | Precision
    engine: Literal["-"] | Engine
    kernels: Literal["-"] | Kernels
    window: Annotated[str, pattern("^(-|auto|[1-9][0-9]*)$")]
    sampler: str
    compile: bool
    machine: NotRequired[Count]
    """Which of the file's machines it was measured on; where it is missing, the first."""


class WarmUp(Closed):
    """Everything that happens once."""

    prepare_s: NotRequired[Amount]
    calibrate_s: NotRequired[Amount]
    first_chunk_s: Amount
    total_s: Amount


class ChunkLatency(Closed):
    """Milliseconds."""

    mean: Above
    p50: Above
    p95: Above
    p99: Above
    p99_over_p50: Above


class Split(Closed):
    """Milliseconds of a chunk by what they went to."""

    draft: Amount
    network: Amount
    verify: Amount
    noise: Amount
    other: Amount


class SplitShare(Closed):
    """The same as shares of the chunk."""

    draft: Share
    network: Share
    verify: Share
    noise: Share
    other: Share


class CellSpeedup(Closed):
    """Of medians; null where the other was not measured."""

    over_ddpm: Above | None
    over_eager_loop: Above | None
    clock_per_algorithmic: Above | None


class MeasuredCell(BenchCell):
    """A cell that was measured."""

    trained: bool
    """Where it is false, acceptance means nothing."""
    engine_used: UsedEngine
    kernels_used: Literal["-", "torch", "native", "triton"]
    precision_used: Literal["torch default"] | Precision
    layers_used: NotRequired[Literal["products", "fused", "whole"]]
    layers_fallback: NotRequired[str | None]
    """Why they are not those that would have been first."""
    bytes_by_bucket: NotRequired[dict[str, Count]]
    """Of the CUDA graphs."""
    warm_up: WarmUp
    processor_wait_share: Amount | None
    """Thread-seconds of waiting for a processor, for each second of the group."""
    peak_memory_bytes: Count | None
    chunks: Positive
    latency_ms: ChunkLatency
    calls: Above
    """Of a batch: those of its slowest chain."""
    calls_standard_error: Amount
    calls_per_chain: Above
    evaluations: Above
    rows_per_call: Above
    rejections_per_chain: Amount
    window_used: Positive
    accepted: Annotated[list[Count], Some]
    """Drafts by denoising step, over all chunks."""
    decided: Annotated[list[Count], Some]
    split_ms: Split
    split_share: SplitShare
    algorithmic_speedup: Above
    flop_per_s: Amount
    share_of_matmul: Amount
    """Of the ceiling."""
    weight_bytes_per_s: Amount
    share_of_copy: Amount
    latencies_ms: Annotated[list[Above], Some]
    speedup: CellSpeedup


class FailedCell(BenchCell):
    """A cell that could not be measured."""

    error: str
    traceback: str


class WindowChoice(Closed):
    """The window that "auto" chose, and the best of the fixed windows measured with it."""

    network: str
    steps: Positive
    batch: Positive
    precision: Precision
    engine_used: UsedEngine
    kernels_used: Literal["-", "torch", "native", "triton"]
    sampler: str
    chosen: Positive
    best: Positive
    chosen_ms: Above
    best_ms: Above
    """Medians of a chunk."""
    loss: Amount
    """What the chosen window takes more, as a share of the best one's time."""
    loss_standard_error: Amount


class CallsAgainstSteps(Closed):
    """Calls of one form of ASD on a mixture whose denoiser is known."""

    form: Literal["asd-paper", "asd-memory", "asd"]
    steps: Annotated[list[Positive], MinLen(2)]
    calls: Annotated[list[Above], MinLen(2)]
    standard_error: Annotated[list[Amount], MinLen(2)]
    exponent: float
    exponent_standard_error: Amount
    seeds: Positive
    chains_per_seed: Positive


class Bench(Closed):
    """A benchmark: written whole after every cell. Of --calls-against-steps it has no networks,
    costs and cells."""

    schema_version: Literal[1]
    started: Moment
    settings: BenchSettings
    machine: Annotated[list[BenchMachine], Some]
    networks: dict[str, Network]
    ceilings: Ceilings | None
    costs: list[CallCost]
    cells: list[MeasuredCell | FailedCell]
    window_choices: NotRequired[list[WindowChoice]]
    calls_against_steps: list[CallsAgainstSteps]
    complete: bool
