"""The files of `eval/gpu.py --layers` and `--rounds`."""

from __future__ import annotations

from typing import Annotated, Literal

from typing_extensions import NotRequired

from asd_policy.eval.runs.bench import BenchMachine, ChunkLatency
from asd_policy.eval.runs.forms import (
    Above,
    Amount,
    Closed,
    Count,
    Moment,
    Positive,
    Precision,
    Some,
)

Form = Literal["products", "fused", "whole"]


class LayersSettings(Closed):
    """What all cells of a file have alike."""

    device: str
    chunks: Positive
    quick: bool


class LayersCell(Closed):
    """One form of one network."""

    key: str
    network: str
    precision: Precision
    layers: Form
    pdl: bool
    """Whether launches overlap: programmatic dependent launch."""


class CallCell(LayersCell):
    """Captured calls of one form, by rows."""

    kind: Literal["call"]
    parameters: Positive
    rows: Annotated[list[Positive], Some]
    ms: Annotated[list[Above], Some]
    """Medians."""
    least_ms: Annotated[list[Above], Some]
    error: Annotated[list[Amount], Some]
    """Largest difference to PyTorch's float32, over the largest number."""
    bitwise: bool
    """Whether replays gave the same bits each time."""
    kernels: Count | None
    """Launched in a call; null where there is no GPU."""
    capture_s: Amount
    """Of all rows: compiling, where it was not done before, and capturing."""
    pool_bytes: Count


class Contest(Closed):
    """What one sampler took."""

    chunks: Positive
    latency_ms: ChunkLatency
    calls: Above
    rows_per_call: Above
    window: Positive


class ChunkCell(LayersCell):
    """Samplers that took turns on one form."""

    kind: Literal["chunk"]
    trained: bool
    """Where it is false, acceptance and with it ASD's calls mean nothing."""
    batch: Positive
    engine: str
    layers_used: Form
    fallback: str | None
    samplers: dict[str, Contest]


class BrokenCell(LayersCell):
    """A cell that could not be measured."""

    kind: Literal["call", "chunk"]
    batch: NotRequired[Positive]
    failed: str
    traceback: str


class RoundsForm(Closed):
    """One way to launch rounds, or another sampler."""

    chunks: Positive
    result_ms: ChunkLatency
    """Until the host had the result."""
    idle_ms: ChunkLatency
    """Until the device had nothing left to do."""
    noise_ms: Amount
    """Of these, for noise: the median."""
    calls: Above
    window: Positive


class BrokenForm(Closed):
    """A way to launch rounds that failed here."""

    failed: str
    traceback: str


class RoundsCell(Closed):
    """Forms that took turns."""

    key: str
    network: str
    precision: Precision
    batch: Positive
    trained: bool
    """Where it is false, acceptance and with it ASD's calls mean nothing."""
    engine: str
    layers_used: Form
    forms: Annotated[dict[str, RoundsForm | BrokenForm], Some]


class BrokenRounds(Closed):
    """A cell that could not be measured."""

    key: str
    network: str
    precision: Precision
    batch: Positive
    failed: str
    traceback: str


class Rounds(Closed):
    """Rounds launched in every way: written whole after every cell."""

    schema_version: Literal[1]
    started: Moment
    settings: LayersSettings
    machine: Annotated[list[BenchMachine], Some]
    cells: list[RoundsCell | BrokenRounds]
    complete: bool


class Layers(Closed):
    """Forms of a network's layers side by side: written whole after every cell."""

    schema_version: Literal[1]
    started: Moment
    settings: LayersSettings
    machine: Annotated[list[BenchMachine], Some]
    cells: list[CallCell | ChunkCell | BrokenCell]
    complete: bool
