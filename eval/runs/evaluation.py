"""The files of one evaluation's folder: config.json, env.json and results.json. (A line of
episodes.jsonl is `asd_policy.eval.runs.episode.Episode`.)"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Len
from typing_extensions import NotRequired

from asd_policy.eval.runs.episode import Smoothness
from asd_policy.eval.runs.forms import (
    Above,
    Amount,
    Closed,
    Cluster,
    Count,
    Deadlines,
    Delay,
    Latency,
    Machine,
    Moment,
    Open,
    Pair,
    Positive,
    Precision,
    Seeds,
    Sha256,
    Share,
    Some,
    Success,
    Unique,
    Window,
)


class Settings(Open):
    """The options of `asd-policy eval` by name, and the checkpoint's hash."""

    task: str
    samplers: Annotated[list[str], Some, Unique]
    episodes: Positive
    seed: Count
    window: Window
    num_envs: Positive
    video: Count
    checkpoint_sha256: Sha256
    delay: Delay | None
    """Milliseconds by which chunks come late; measured: as long as they took; null: the world
    waits."""
    control_rate: Above
    """With a delay: control steps in a second of the wall clock."""
    record: bool
    """Whether flight/ is kept."""


class Asked(Open):
    """What was asked of the policy."""

    sampler: str


class Resolved(Open):
    """What "auto" and the defaults came to."""

    checkpoint: NotRequired[str]
    device: str
    gpu: str | None
    threads: Count
    engine: str
    kernels: str
    layers: NotRequired[str | None]
    """The form of a U-Net's layers; null for another network."""
    precision: Precision
    compile: bool
    parameters: NotRequired[Count]
    horizons: Annotated[list[Count], Len(3, 3)]
    """Observed, executed and predicted steps: To, Ta, Tp."""
    control_hz: Above
    """Control steps a second."""
    steps: dict[str, Count]
    """Denoising steps of each sampler."""
    windows: NotRequired[dict[str, Count]]
    """Window of each sampler that has one, "auto" chosen (1: sequentially); absent in runs of
    earlier versions."""
    etas: NotRequired[dict[str, Share]]
    """DDIM's η of each sampler where it is above 0; absent in runs of earlier versions."""


class Config(Closed):
    """What an evaluation was asked, and what that came to."""

    schema_version: Literal[2]
    asd_policy: str
    """Version of the package."""
    command: str
    started: Moment
    settings: Settings
    samplers: dict[str, Asked]
    resolved: Resolved


class Ray(Cluster):
    """Of --ray: what the cluster had, and where the policies were."""

    policies_on: list[str]
    """Hosts, one for each policy."""


class Place(Machine):
    """Where a part of a run was made."""

    schema_version: Literal[2]
    ray: NotRequired[Ray]


class Env(Place):
    """What the figures depend on besides the settings: versions and machine."""

    resumed: NotRequired[list[Place]]
    """Where and with what later parts of the run were made, if not as above."""


class CallsOfChunk(Closed):
    """Network calls of an episode's n-th chunk."""

    episodes: Count
    mean: Amount | None
    min: Count | None
    max: Count | None


class Overhead(Closed):
    """Milliseconds of a chunk by what they went to."""

    draft: float | None
    network: float | None
    verify: float | None
    other: float | None


class RemoteTime(Closed):
    """Milliseconds of a chunk that a server drew: in the network, in its queue, drawing."""

    network: float | None
    queue: float | None
    draw: float | None


class UsedWindow(Closed):
    """The window that was asked for, and those that chunks were drawn with."""

    requested: Literal["auto"] | int
    chosen: Count | None
    chunks_by_window: dict[str, Count]


class TimeShare(Closed):
    """Of an episode's time."""

    policy: Share | None
    simulation: Share | None
    rendering: Share | None


class Time(Closed):
    """Where the time of the episodes went."""

    total_s: Amount
    share: TimeShare


class Period(Closed):
    """A control step, and the steps that a chunk is executed for."""

    step: Amount
    chunk: Amount


class Over(Closed):
    """Chunks that took longer than period_ms."""

    step: Count
    chunk: Count


class Speedup(Closed):
    """Over ddpm in the same run: mean calls, median latency."""

    algorithmic: Amount | None
    wall_clock: Amount | None


class Reached(Closed):
    """Episodes that reached a stage of the task, and after how many control steps."""

    episodes: Success
    step_mean: Amount | None
    """Over those that did."""


class Summary(Closed):
    """One sampler of a run."""

    success: Success
    episode_steps_mean: Amount | None
    return_mean: float | None
    chunks: Count
    """Those that timings and costs are of."""
    chunk_latency_ms: Latency
    control_step_latency_ms: Latency
    network_calls_per_chunk: Amount | None
    network_evaluations_per_chunk: Amount | None
    acceptance_rate: Share | None
    rejections_per_chunk: Amount | None
    calls_by_chunk: list[CallsOfChunk]
    """Network calls of an episode's first chunk, second, …, over the episodes that have it."""
    acceptance_by_step: list[Share | None] | None
    """Share of drafts accepted, by denoising step."""
    overhead_ms_per_chunk: Overhead
    remote_ms_per_chunk: NotRequired[RemoteTime]
    """Of --remote."""
    window: UsedWindow | None
    time: Time
    chunk_latency_histogram: list[Count]
    """Chunks between neighbouring edges of latency_bins_ms."""
    chunks_over: Over
    speedup: Speedup
    deadlines: Deadlines | None
    """null without --delay and --realtime."""
    stages: NotRequired[dict[str, Reached]]
    """Of the task, in order; absent in runs of earlier versions."""
    smoothness: NotRequired[Smoothness]
    """Means over the episodes that tell it."""


class NamedPair(Pair):
    """Two samplers of a run on the seeds that both have done."""

    a: str
    b: str


class Results(Closed):
    """Computed from config.json and episodes.jsonl, and nothing else."""

    schema_version: Literal[2]
    complete: bool
    task: str
    seeds: Seeds
    num_envs: Positive
    processor_wait_share: Amount | None
    """Thread-seconds of waiting for a processor, for each second of the run."""
    resolved: dict[str, Any]
    """As in config.json."""
    period_ms: Period
    latency_bins_ms: list[Amount]
    """Edges, equal on a logarithmic axis."""
    samplers: dict[str, Summary]
    paired: list[NamedPair]
    restarts: Count
    """Worker processes that died and were replaced."""
