"""The file of the study of modes: chunks where there are two ways to go, and whole episodes."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Len

from asd_policy.eval.runs.forms import (
    Amount,
    Closed,
    Count,
    Pair,
    Positive,
    Sha256,
    Share,
    Signed,
    Some,
    Success,
    Two,
)

Side = Literal[1, -1]
Interval = Annotated[list[Signed], Two]


class ModesSettings(Closed):
    """What was measured."""

    policy_sha256: Sha256
    """Of its weights."""
    parameters: Positive
    training_steps: Count
    demonstrations: Positive
    first_seed: Count
    versions: dict[str, str | None]


class Swings(Closed):
    """Chunks of a sampler at one observation, or of the demonstrations near it."""

    sampler: str
    """ "demonstrations", or how the chunks were drawn."""
    row: Count
    """Of posts, which the hand is before."""
    left: Count
    between: Count
    right: Count
    histogram: list[Count]
    """Of swings: between edges of `edges`, those outside in the outer bins."""


class Known(Closed):
    """Chunks of two ways whose chances are known, by a network without errors."""

    sampler: str
    first: float
    """Command of the first way, throughout a chunk; `second` that of the other."""
    second: float
    chance: Share
    """Of the second."""
    counts: Annotated[list[Count], Len(3, 3)]
    """In the first way, in the middle half between the two, in the second."""


class AtRow(Closed):
    """What the demonstrations swing before one row, which says what a mode is."""

    left: float
    right: float
    """Medians of each side's demonstrations, in units of actions. Between the modes: the middle
    half of the way from one to the other."""


class ModesEpisode(Closed):
    """One sampler on one seed."""

    sampler: str
    seed: Count
    success: bool
    touched: bool
    """Something touched a post, which ends the episode."""
    sides: list[Side]
    """Of the rows that were passed: 1 for the larger x."""
    steps: Positive
    chunks: Positive
    calls: Count
    """Of the network, in all chunks."""
    evaluations: Count


class Gap(Closed):
    """A difference of shares to those of ddpm, with a 95% interval."""

    estimate: Signed
    ci95: Interval


class ShareOf(Closed):
    """A share, with Wilson's 95% interval."""

    count: Count
    n: Positive
    rate: Share
    ci95: Annotated[list[Share], Two]


class LawOf(Closed):
    """All chunks of a sampler at the observations before one row; of "all", the rows together."""

    sampler: str
    row: Count | Literal["all"]
    right: ShareOf | None
    """Of the chunks in either mode; null: there were none."""
    between: ShareOf
    right_gap: Gap | None
    between_gap: Gap | None
    distance: Share | None
    """In total variation, of (left, between, right), to ddpm's; the mean over the rows."""
    p_value: Share | None
    """Of the hypothesis that the shares are ddpm's (chi squared, rows added up)."""


class PlayOf(Closed):
    """All episodes of a sampler."""

    success: Success
    right: ShareOf | None
    """Of the rows that were passed, in all episodes; null: none was."""
    touched: ShareOf | None
    """Rows before which an episode ended, of all rows that were come to; null: there was none."""
    lanes: Annotated[list[Count], Some]
    """Episodes that succeeded, by the lane that they ended in, the leftmost first."""
    ways: Count
    """Different ways among them."""
    ways_distance: Share | None
    """In total variation, of the shares of ways and of failures, to ddpm's."""
    ways_p: Share | None
    """Of the hypothesis that they are ddpm's, by permutation."""
    calls_per_chunk: Amount


class PairOf(Closed):
    """Two samplers on the seeds that both have done, a minus b."""

    a: str
    b: str
    success: Pair


class Modes(Closed):
    """Samplers of one policy that learned two ways at each of three rows of posts."""

    schema_version: Literal[1]
    settings: ModesSettings
    known: list[Known]
    rows: list[AtRow]
    edges: list[float]
    """Of the bins of `swings`."""
    swings: list[Swings]
    law: list[LawOf]
    episodes: list[ModesEpisode]
    play: dict[str, PlayOf]
    paired: list[PairOf]
