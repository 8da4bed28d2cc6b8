"""What the study of pictures keeps: costs of samplers, and the quality of their samples."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Len
from typing_extensions import NotRequired

from asd_policy.eval.runs.forms import (
    Amount,
    Closed,
    Count,
    Positive,
    Sha256,
    Share,
    Some,
    Two,
)

BINS = 50  # stretches of a chain in which drafts are counted

PicturesModel = Literal["digits", "scenes"]


class PicturesSettings(Closed):
    """What was sampled, and on what."""

    model: PicturesModel
    weights_sha256: Sha256
    """Of the pipeline's network."""
    parameters: Positive
    cpu: str
    threads: Positive
    gpu: NotRequired[str | None]
    versions: dict[str, str | None]


class PicturesSamples(PicturesSettings):
    """How a folder's pictures were drawn."""

    schema_version: Literal[1]
    window: Positive
    """Of asd and of paradigms."""
    batch: Positive
    """Pictures of a file."""


class CallsCell(Closed):
    """One sampler with one window on chains of one number of steps; means of a chain."""

    sampler: str
    steps: Positive
    """K."""
    window: Positive
    chains: Positive
    calls: Amount
    calls_error: Amount | None
    """Standard error of the mean; null of one chain."""
    evaluations: Amount
    decided: Annotated[list[Amount], Len(BINS, BINS)]
    """Drafts decided upon, by fiftieths of the chain from its first step to its last."""
    rejected: Annotated[list[Amount], Len(BINS, BINS)]
    """Of these, drafts that were rejected."""


class Growth(Closed):
    """calls = factor · K^exponent, by least squares of their logarithms."""

    exponent: float
    factor: Amount
    steps: Annotated[list[Positive], Some]
    """K that it was fitted to."""
    window: Positive


class PicturesCalls(Closed):
    """Calls and evaluations of a picture by sampler, number of steps and window."""

    schema_version: Literal[1]
    settings: PicturesSettings
    growth: dict[str, Growth]
    """By sampler."""
    cells: list[CallsCell]


class Estimate(Closed):
    """A figure with its 95% bootstrap interval."""

    estimate: float
    ci95: Annotated[list[float], Two]


class Distance(Closed):
    """From a sampler's pictures to others."""

    estimate: float
    ci95: Annotated[list[float], Two]
    beyond: Estimate | None
    """More than what DDPM with another seed has, by which chance is judged; null for itself."""


class Distances(Closed):
    """Fréchet's, and the kernel's squared maximum mean discrepancy."""

    frechet: Distance
    kernel: Distance


class PicturesSampler(Closed):
    """A sampler's pictures."""

    pictures: Positive
    calls: Amount
    """Of a picture, the mean."""
    evaluations: Amount
    to_ddpm: Distances | None
    """null for DDPM itself, the reference."""
    to_data: Distances
    """The training pictures."""


class PicturesQuality(Closed):
    """Distances of samplers' pictures to DDPM's and to the training pictures."""

    schema_version: Literal[1]
    settings: PicturesSettings
    window: Positive
    features: str
    """What network gave them."""
    width: Positive
    """Numbers in a picture's features."""
    features_accuracy: Share | None
    """Share of held-out pictures that this network names rightly; null for Inception."""
    data: Count
    """Training pictures."""
    samplers: dict[str, PicturesSampler]


class ClockCell(Closed):
    """Pictures that are drawn together."""

    batch: Positive
    window: Positive
    """1: sequential DDPM."""
    auto: bool
    """Whether this window is the one that "auto" chose."""
    calls: Amount
    evaluations: Amount
    processor_s: list[Amount]
    """Of the process, for the whole batch, in each turn: what other work takes is not in it."""
    wall_s: list[Amount]


class PicturesClock(Closed):
    """Time of pictures drawn together, sequentially and by ASD, in turns."""

    schema_version: Literal[1]
    settings: PicturesSettings
    steps: Positive
    engine: NotRequired[str]
    """Left out: eager."""
    cells: list[ClockCell]
