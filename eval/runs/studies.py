"""The files of what is made of evaluations, and of the smaller commands."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from typing_extensions import NotRequired

from asd_policy.eval.runs.episode import Smoothness
from asd_policy.eval.runs.evaluation import Reached
from asd_policy.eval.runs.forms import (
    Above,
    Amount,
    Closed,
    Count,
    Deadlines,
    Delay,
    Difference,
    Latency,
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

# --- options.json ---------------------------------------------------------------------------------


class OfRates(Open):
    """The options of `asd-policy rates` by name."""

    episodes: Positive
    num_envs: Positive
    device: str
    precision: Precision
    threads: Positive | None
    task: str
    checkpoint: str | None
    """As it was given; null: the one that is shipped for the task."""
    samplers: Annotated[list[str], Some, Unique]
    seed: Count
    window: Window
    delay: Delay
    rates: Annotated[list[Above], Some, Unique]
    """Hertz."""


class OfTasks(Closed):
    """The options of a shard of `asd-policy tasks` by name."""

    episodes: Positive
    num_envs: Positive
    device: str
    precision: Precision
    threads: Positive | None
    tasks: Annotated[list[str], Some, Unique]
    samplers: NotRequired[Annotated[list[str], Some, Unique]]
    """Not there: the seven that they were before they could be chosen."""
    window: Positive
    latency_episodes: Positive


class RatesAsked(Closed):
    """What `rates` was asked: it is continued with this."""

    schema_version: Literal[1]
    command: Literal["rates"]
    started: Moment
    options: OfRates


class TasksAsked(Closed):
    """What a shard of `tasks` was asked (options-<i>of<n>.json): it is continued with this."""

    schema_version: Literal[1]
    command: Literal["tasks"]
    started: Moment
    options: OfTasks


Options = RatesAsked | TasksAsked

# --- rates.json -----------------------------------------------------------------------------------


class AtRate(Closed):
    """One sampler at one control rate."""

    success: Success
    deadlines: Deadlines
    chunk_latency_ms: Latency
    network_calls_per_chunk: Amount | None
    smoothness: NotRequired[Smoothness]
    """Jumps where chunks join, and within them; absent in files of earlier versions."""


class Rate(Closed):
    """The evaluation of one control rate."""

    control_rate_hz: Above
    folder: str
    complete: bool
    processor_wait_share: Amount | None
    samplers: Annotated[dict[str, AtRate], Some]
    execution: NotRequired[str]
    """waiting or overlapped; absent of late chunks."""


class Rates(Closed):
    """Success against control rate: computed from the evaluation of each rate."""

    schema_version: Literal[1]
    task: str
    delay: Delay
    """measured, or milliseconds."""
    resolved: dict[str, Any]
    """As in config.json."""
    seeds: Seeds
    rates: Annotated[list[Rate], Some]


# --- tasks.json -----------------------------------------------------------------------------------


class LatencyMachine(Closed):
    """That latencies are of."""

    cpu: str
    cpu_count: Count | None
    gpu: str | None
    threads: Count
    precision: Precision
    kernels: str


class OneRobot(Closed):
    """Of the latency run."""

    episodes: Count
    chunks: Count
    chunk_latency_ms: Latency
    speedup_wall_clock: Amount | None


class OnTask(Closed):
    """One sampler on one task."""

    success: Success
    against_ddpm: Pair | None
    """null for ddpm itself."""
    failed_seeds: NotRequired[list[Count]]
    """So that what is run later can be paired with it; absent in tables of earlier versions."""
    network_calls_per_chunk: Amount | None
    network_evaluations_per_chunk: Amount | None
    acceptance_rate: Share | None
    acceptance_by_step: list[Share | None] | None
    window: Window | None
    """That was asked for; null where there is none."""
    chunks: Count
    stages: NotRequired[dict[str, Reached]]
    """Of the task, in order; absent, as `smoothness` is, in tables of earlier versions."""
    smoothness: NotRequired[Smoothness]
    one_robot: OneRobot | None
    """null while there is no latency run."""


class Task(Closed):
    """The evaluations of one task."""

    checkpoint_sha256: Sha256
    complete: bool
    """Every shard and the latency run are there and whole."""
    seeds: Seeds
    steps: Positive
    """Denoising steps of ddpm."""
    num_envs: Annotated[list[Positive], Unique]
    """Of the success runs."""
    restarts: Count
    machine: LatencyMachine | None
    processor_wait_share: Amount | None
    samplers: Annotated[dict[str, OnTask], Some]


class Tasks(Closed):
    """The samplers on every task: computed from the evaluations in its folder."""

    schema_version: Literal[1]
    versions: Annotated[list[str], Some, Unique]
    """Of the package, that made the runs."""
    tasks: Annotated[dict[str, Task], Some]


# --- first_minutes.json, rejoining.json, pusht.json, plan.json, doctor --json ---------------------


class FirstRun(Closed):
    """The first command, once."""

    beside: Count
    """Processes that only computed beside it; 0: a quiet machine."""
    run: Count
    seconds: Amount
    """From the command to the end of its process."""
    window: Positive
    windows: list[Positive]
    """All that chunks were drawn with."""
    calls: Amount
    """Network calls of a chunk of ASD, the mean."""
    asd_ms: Amount
    ddpm_ms: Amount
    speedup_clock: Amount
    speedup_calls: Amount
    processor_wait_share: Amount | None
    threads: Positive


class FirstMinutes(Closed):
    """The first command, run again and again on a quiet and on a busy machine."""

    schema_version: Literal[1]
    fresh: bool
    """Whether every run timed the network anew."""
    episodes: Positive
    machine: dict[str, Any]
    """As env.json."""
    runs: list[FirstRun]


class Sums(Closed):
    """Of whole numbers, one a chain."""

    total: int
    squares: Count
    """The sum of their squares: with both, more chains can be added exactly."""
    mean: float
    standard_error: Amount


class Sides(Closed):
    """The same chains' numbers without and with rejoining."""

    without: Sums
    rejoining: Sums
    difference: Sums
    """Rejoining minus without, chain by chain."""


class RejoiningCell(Closed):
    """One policy that ships at one window."""

    task: str
    checkpoint_sha256: NotRequired[Sha256]
    """Absent in files of earlier versions, to which no chains are added."""
    window: Positive
    """Evaluations of a round at most."""
    chains: Count
    calls: Sides
    evaluations: Sides


class Rejoining(Closed):
    """What chunks take without and with rejoining, from the same noise."""

    schema_version: Literal[1]
    seed: Count
    """Of the first block of chains."""
    cells: list[RejoiningCell]


class PushTEpisode(Closed):
    """One sampler (or the scripted expert, which samples nothing) on one seed of PushT."""

    sampler: str
    seed: Count
    success: bool
    """More than 95% of the goal was covered."""
    overlap: Share
    """LeRobot's largest reward of the episode: covered share of the goal over 0.95, at most 1."""
    steps: Positive
    chunks: Count
    calls: Count
    """Of the network, in all chunks."""
    evaluations: Count
    processor_s: Amount
    """Of the process, in all chunks: what other work takes is not in it."""
    wall_s: Amount


class PushTSampler(Closed):
    """All episodes of a sampler."""

    success: Success
    overlap_mean: Share
    steps_median: Amount
    calls_per_chunk: Amount | None
    evaluations_per_chunk: Amount | None
    processor_ms_per_chunk: Amount | None
    wall_ms_per_chunk: Amount | None


class PushTPair(Closed):
    """Two samplers on the seeds that both have done, a minus b."""

    a: str
    b: str
    success: Pair
    overlap: Difference | None
    """Of the means, with Student's paired interval; null with fewer than two seeds."""


class PushTSettings(Closed):
    """What a comparison is of."""

    policy_sha256: Sha256
    """Of its weights."""
    parameters: Positive
    training_steps: Count
    first_seed: Count
    cpu: str
    threads: Positive
    versions: dict[str, str | None]


class PushT(Closed):
    """Samplers of one LeRobot policy on the same seeds of PushT, in LeRobot's own rollouts."""

    schema_version: Literal[1]
    settings: PushTSettings
    samplers: dict[str, PushTSampler]
    paired: list[PushTPair]
    episodes: list[PushTEpisode]


class Plan(Closed):
    """The recipe of a benchmark's training, kept so that a run that was stopped goes on as it was
    planned."""

    schema_version: Literal[1]
    steps: Positive
    batch_size: Positive
    learning_rate: Above
    warmup_steps: Count


class Finding(Closed):
    """One line of the doctor's answer."""

    name: str
    status: Literal["ok", "note", "missing", "broken"]
    text: str
    mend: str | None
    """The command to type."""


class Doctor(Closed):
    """What works here, what does not, and the command that mends it."""

    schema_version: Literal[1]
    well: bool
    """Nothing is broken."""
    findings: list[Finding]
    facts: dict[str, Any]
    """What the findings were made from."""
