"""What the study of chunks within a loop keeps: in_loop.json."""

from __future__ import annotations

from typing import Annotated, Literal

from asd_policy.eval.runs.forms import Above, Amount, Closed, Count, Positive, Sha256, Share, Some


class InLoopSettings(Closed):
    """What drove the episodes."""

    task: str
    checkpoint_sha256: Sha256
    sampler: str
    window: Positive | None
    """null: "auto", or a sampler without one."""
    seed: Count
    """Of the first episode."""
    engine: str


class InLoopFamily(Closed):
    """One kind of question, about each number of a chunk or about whole chunks."""

    name: str
    questions: Positive
    z: Amount
    """The largest of them, without its sign."""
    p: Share
    """The smallest, corrected for all questions of the column (Westfall & Young)."""


class InLoop(Closed):
    """Chunks that were executed in a loop, against DDPM's of the same histories."""

    schema_version: Literal[2]
    settings: InLoopSettings
    episodes: Positive
    succeeded: Count
    decisions: Positive
    """Chunks that were executed."""
    calls: Above
    """Of a chunk, the mean."""
    executed: Annotated[list[InLoopFamily], Some]
    """The sampler's chunks against DDPM's of the same noise."""
    control: Annotated[list[InLoopFamily], Some]
    """DDPM's from other noise, the same questions."""
    precision: Above
    """Of a number's mean, half its 95% interval in standard deviations of DDPM's; the median of all
    numbers of a chunk."""
