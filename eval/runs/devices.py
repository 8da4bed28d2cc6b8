"""The file of `python -m asd_policy.eval.studies.devices`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from asd_policy.eval.runs.forms import Above, Amount, Closed, Positive, Some


class Split(Closed):
    """One network call of a round, its rows split over so many processes."""

    ranks: Positive
    wall_ms: Above
    """The median, from the first rank's draft to its having all predictions."""
    processor_ms: Annotated[list[Amount], Some]
    """Of each rank, the mean: what it computed, sent and received."""
    message_ms: Amount
    """The same call, of a network that computes nothing: the median."""


class Devices(Closed):
    """What splitting a round's rows over devices gains."""

    schema_version: Literal[1]
    machine: dict[str, Any]
    """As env.json."""
    processor_wait_share: Amount | None
    """Of each second, spent waiting for a processor: where it is large, wall-clock times are not
    the machine's."""
    parameters: Positive
    rows: Positive
    numbers: Positive
    """Of a row."""
    calls: Positive
    """That were timed, of each."""
    splits: Annotated[list[Split], Some]
