"""The files of `asd-policy verify`: verify.json, and the config.json beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, Le, Lt
from typing_extensions import NotRequired

from asd_policy.eval.runs.forms import (
    Above,
    Also,
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
)

Versioned = Also((("prefixItems", [{"type": "string"}]),), lambda v: bool(v[0]), "a version first")


class VerifySettings(Closed):
    """The options of `asd-policy verify` by name, the code and the checkpoint's hash."""

    sampler: str
    task: str | None
    oracle: bool
    chunks: Positive
    observations: Positive
    source: str
    """auto, episodes, synthetic, or a file of demonstrations."""
    controls: bool
    alpha: Annotated[float, Gt(0), Lt(0.5)]
    detect: Annotated[float, Gt(0), Le(8)]
    gripper: int | None
    window: Positive
    steps: Positive | None
    ddim_steps: Positive
    eta: Share
    tolerance: Above
    seed: Count
    batch: Positive
    engine: Literal["auto", "eager", "cuda_graph", "openvino", "distributed"]
    precision: Precision | Literal["fp64"]
    device: NotRequired[str]
    """Missing in what older versions kept."""
    code: Annotated[list[str | None], Two, Versioned]
    """Version of the package, and its commit where it is a checkout."""
    checkpoint_sha256: Sha256 | None


class VerifyConfig(Closed):
    """What a verification was asked. (That of an evaluation: config.json.)"""

    schema_version: Literal[1]
    command: str
    started: Moment
    settings: VerifySettings


class VerifySubject(Closed):
    """What is sampled."""

    kind: Literal["checkpoint", "oracle"]
    name: str
    checkpoint: str | None
    sha256: Sha256 | None
    parameters: Count
    observations: Positive
    observations_from: str


class VerifyResolved(Closed):
    """What "auto" and the defaults came to."""

    device: str
    gpu: str | None
    threads: Positive
    engine: str
    kernels: str
    precision: Precision | Literal["fp64"]
    steps: Positive
    trained_steps: Positive
    gripper: Count | None


class DrawnChunks(Closed):
    """What a sampler drew, and what that cost."""

    name: str
    chunks: Positive
    chunks_per_observation: Positive
    calls_per_chunk: Above
    evaluations_per_chunk: Above
    seconds: Amount


class BothSamplers(Closed):
    """The sampler under test, and its reference."""

    sample: DrawnChunks
    reference: DrawnChunks


class OneTest(Closed):
    """One test of equality."""

    name: str
    family: str
    statistic: float
    p_value: Share
    p_holm: Share
    """After Holm's correction."""
    differs: bool


class Shift(Closed):
    """The smallest shift of one action number that would have been caught."""

    action: Count
    """Its column."""
    deviation: Amount
    """Standard deviation given the observation, in action units."""
    shift_deviations: Amount | None
    """null: not even the largest that is tried is caught."""
    shift: Amount | None
    """The same in action units."""


class Power(Closed):
    """What would have been noticed."""

    probability: Share
    detect_deviations: Above
    enough: bool
    chunks_needed: Positive
    hardest: Shift
    by_action: Annotated[list[Shift], Some]


class Control(Closed):
    """What the tests say of samples whose distribution is known to be equal or different."""

    name: str
    expected: Literal["equal", "differs"]
    found: Literal["equal", "differs"]
    as_expected: bool
    rejecting: Count
    tests: Positive
    smallest_p: Share
    smallest_p_holm: Share
    most_telling: str
    """A test's name."""


class VerifyVerdict(Closed):
    """What came of it."""

    status: Literal[0, 1, 2]
    """The exit status."""
    word: Literal[
        "EQUAL AS FAR AS COULD BE TOLD",
        "DIFFERS",
        "COULD NOT TELL, TOO FEW CHUNKS",
        "COULD NOT TELL, A CONTROL FAILED",
    ]
    sentence: str


class Verify(Closed):
    """Whether a sampler draws from its reference's distribution, and what would have been
    noticed."""

    schema_version: Literal[1]
    command: str
    settings: VerifySettings
    subject: VerifySubject
    resolved: VerifyResolved
    machine: Machine
    samplers: BothSamplers
    tests: Annotated[list[OneTest], Some]
    power: Power
    controls: list[Control]
    """Empty without --controls."""
    verdict: VerifyVerdict
