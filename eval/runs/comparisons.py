"""What is held against another: chunks drawn again, rollouts, samplers."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, Len, Lt
from typing_extensions import NotRequired, TypedDict

from asd_policy.eval.runs.forms import (
    Amount,
    Closed,
    Count,
    Moment,
    Positive,
    Sha256,
    Share,
    Signed,
    Some,
    Success,
    Two,
    Unique,
)

# --- replay.json ----------------------------------------------------------------------------------


class Cost(Closed):
    """Window, calls and evaluations of a chunk, when it was recorded and drawn again."""

    recorded: Annotated[list[Count], Len(3, 3)]
    now: Annotated[list[Count], Len(3, 3)]


class DrawnAgain(Closed):
    """A chunk that was drawn again."""

    sampler: str
    seed: Count
    chunk: Count
    same: bool
    batch: Positive
    window: Positive
    largest_difference: Amount | None
    """Of an action; null where it is not finite."""
    actions_differ: Count
    """How many numbers."""
    decisions_differ_at_steps: Annotated[list[Count], Unique]
    """Denoising steps at which other drafts were decided on or accepted."""
    window_calls_evaluations: Cost


class DamagedFlight(Closed):
    """A chunk whose record is damaged."""

    sampler: str
    seed: Count
    chunk: Count
    same: Literal[False]
    damaged: str
    """Why the flight cannot be read."""


class Replay(Closed):
    """Chunks of a recorded run, drawn again and compared bit by bit."""

    schema_version: Literal[1]
    run: str
    chunks: Positive
    same: Count
    different: Count
    machine: dict[str, str | int | None]
    """As in env.json but without nesting (versions.torch), and what draws; empty where no flight
    could be read."""
    changed_since: dict[str, Annotated[list[str | int | None], Two]]
    """What is not as it was when the run was recorded: then, now."""
    verdicts: Annotated[list[DrawnAgain | DamagedFlight], Some]


# --- run_trained_agent --record -------------------------------------------------------------------


class RecordedEpisode(Closed):
    """One rollout."""

    seed: int | None
    """Of scene and noise; null without --seed."""
    scene: Sha256 | None
    """SHA-256 of the first observation's vectors; null before the first step."""
    success: bool
    steps: Count
    """Control steps."""
    policy_s: Amount
    """Seconds in the policy."""
    simulation_s: Amount
    """Seconds in the environment."""
    calls: list[Count]
    """Network calls of each chunk, where the policy counts them."""


class Recording(Closed):
    """Rollouts of a policy by robomimic's script: outcome and times of each episode."""

    schema_version: Literal[2]
    words: NotRequired[list[str]]
    """The command line, after the module's name."""
    sampler: NotRequired[str | None]
    """null: robomimic's own."""
    policy: NotRequired[str]
    episodes: Annotated[list[RecordedEpisode], Some]


# --- compare --json -------------------------------------------------------------------------------


class CommonSeeds(Closed):
    """That both sides have done."""

    common: Positive
    same_scene: Count
    """Of them, those known to have begun with one scene in both."""
    first: Count
    last: Count
    left_out_of_a: Count
    left_out_of_b: Count


class SomeSuccess(Success):
    """How many of one or more episodes succeeded."""

    n: Positive  # type: ignore[misc]


class PairedSuccess(Closed):
    """Success on the common seeds."""

    a: SomeSuccess
    b: SomeSuccess
    both: Count
    only_a: Count
    only_b: Count
    neither: Count
    mcnemar_p: Share | None
    difference: Signed
    """Of the success rates, a minus b."""
    difference_ci95: Annotated[list[Signed], Two]
    difference_ci90: Annotated[list[Signed], Two]
    """That the verdict goes by."""
    margin: Annotated[float, Gt(0), Lt(1)]
    equivalent: bool
    not_worse: bool
    worse: bool
    episodes_needed: Positive | None
    """Looked at once, with a chance of 80%; null: no number of them would do at these rates."""


class LogE(Closed):
    """Decimal logarithms of e-values: from 1.3 on (20), a hypothesis is refused at 5%."""

    not_worse: float
    """Of the hypothesis that a is worse by the margin or more."""
    difference: float
    """Of the hypothesis that both succeed equally often."""


class Sequential(Closed):
    """What is valid however often one has looked, and so where a comparison was stopped."""

    log10_e: LogE
    difference_ci95: Annotated[list[Signed], Two]
    difference_ci90: NotRequired[Annotated[list[Signed], Two]]
    """That "not worse" goes by, a test on one side; absent in comparisons of earlier versions."""
    a_better: Share
    """Posterior probability that a succeeds more often (Jeffreys' prior)."""
    decision: Literal["worse", "better", "not worse"] | None


class Ratio(Closed):
    """Of a over b; null where a side has no chunk to go by."""

    a: Amount | None
    b: Amount | None
    ratio: Amount | None
    ci95: Annotated[list[Amount], Two] | None
    """Bootstrap over episodes; null with fewer than two, and of latencies of robots that waited
    for the same calls."""


class Side(Closed):
    """One sampler in one run."""

    folder: str
    sampler: str
    checkpoint_sha256: Sha256
    asd_policy: str | None
    """Version of the package."""
    started: Moment | None
    episodes: Positive


class CompareVerdict(Closed):
    """What came of it."""

    status: Literal[0, 1, 2]
    """The exit status."""
    word: Literal[
        "EQUIVALENT",
        "NOT WORSE",
        "WORSE",
        "BETTER",
        "NOT DECIDED",
        "COULD NOT TELL, TOO FEW EPISODES",
    ]
    sentence: str


Ratios = TypedDict(
    "Ratios",
    {
        "chunk latency, median (ms)": Ratio,
        "chunk latency, p95 (ms)": Ratio,
        "chunk latency, mean (ms)": Ratio,
        "network calls a chunk": Ratio,
        "network evaluations a chunk": Ratio,
    },
)
Ratios.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]


class Comparison(Closed):
    """One sampler's episodes judged against another's."""

    a: Side
    b: Side
    seeds: CommonSeeds
    success: PairedSuccess
    sequential: Sequential
    ratios: Ratios
    different_places: list[str]
    """What else the latencies differ in."""
    different_settings: NotRequired[list[str]]
    """Of the world, or of one and the same sampler."""
    verdict: CompareVerdict


class Lettered(Closed):
    """A sampler among several of a run; two share a letter where they cannot be told apart."""

    sampler: str
    success: SomeSuccess
    letters: str


class Compare(Closed):
    """One sampler's episodes judged against another's on the same seeds."""

    schema_version: Literal[2]
    status: Literal[0, 1, 2]
    """The exit status."""
    comparisons: Annotated[list[Comparison], Some]
    letters: NotRequired[list[Lettered]]
    """Of more than two samplers, the best first."""
