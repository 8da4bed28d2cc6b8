"""What the types of kept files are made of, and the parts that several files share.

A file is a `TypedDict`: its JSON Schema is made from that (`asd_policy.eval.runs.schemas`), what is
written and read is held against it, and a type checker knows its keys. Importing this is quick:
pydantic, which does the work, comes with the first file.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, MinLen
from typing_extensions import TypedDict

from asd_policy.errors import InputError


class Closed(TypedDict):
    """An object with these keys and no others."""


class Open(TypedDict):
    """An object that may have other keys beside these, such as options of another version."""


# Set here, for in the class a type checker would take it for a key.
_WORDS = {"use_attribute_docstrings": True}
Closed.__pydantic_config__ = {"extra": "forbid"} | _WORDS  # type: ignore[attr-defined]
Open.__pydantic_config__ = {"extra": "allow"} | _WORDS  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Also:
    """What a value must be besides its type: `holds`, or `schema` in JSON Schema's words."""

    schema: tuple[tuple[str, Any], ...]
    holds: Callable[[Any], bool]
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def check(value: Any) -> Any:
            if not self.holds(value):
                raise InputError(f"must be {self.words}")
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> Any:
        return handler(core) | dict(self.schema)


def pattern(text: str) -> Also:
    """Text in which the regular expression is found."""
    return Also((("pattern", text),), lambda value: bool(re.search(text, value)), f"as {text}")


def _is_moment(value: str) -> bool:
    try:
        return bool(datetime.datetime.fromisoformat(value))
    except ValueError:
        return False


Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Amount = Annotated[float, Ge(0)]
Above = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Signed = Annotated[float, Ge(-1), Le(1)]
Two = Len(2, 2)
Some = MinLen(1)
Unique = Also(
    (("uniqueItems", True),), lambda v: len(set(v)) == len(v), "different from each other"
)
Sha256 = Annotated[str, pattern("^[0-9a-f]{64}$")]
Moment = Annotated[str, Also((("format", "date-time"),), _is_moment, "a date and time (ISO 8601)")]
Precision = Literal["fp32", "tf32", "bf16"]
Window = Literal["auto"] | Positive
Delay = Literal["measured"] | Amount | Annotated[list[Amount], Some]  # one, or one a sampler


class Machine(Closed):
    """What figures depend on besides the settings: versions and machine."""

    python: str
    platform: str
    versions: dict[str, str | None]
    git_commit: str | None
    cpu: str
    cpu_count: Count | None
    cpus_usable: Count | None
    threads: Count
    gpu: str | None
    mujoco_gl: str | None


class Cluster(Closed):
    """Of --ray: what the cluster had."""

    version: str
    nodes: Positive
    cpus: Count
    gpus: Count


class Success(Closed):
    """How many of how many episodes succeeded."""

    count: Count
    n: Count
    rate: Share | None
    ci95: Annotated[list[Share], Two] | None
    """Wilson's interval."""


class Difference(Closed):
    """Of the success rates, a minus b."""

    estimate: Signed
    ci95: Annotated[list[Signed], Two]
    """Tango's score interval."""


class Pair(Closed):
    """Two samplers on the seeds that both have done."""

    n: Count
    both: Count
    only_a: Count
    only_b: Count
    neither: Count
    p_value: Share | None
    """Exact McNemar, two-sided."""
    difference: Difference | None
    """null without common seeds."""


class Seeds(Closed):
    """Of the episodes of each sampler."""

    first: Count
    last: Count
    count: Count


class Quantiles(Closed):
    """Milliseconds."""

    mean: Amount | None
    p50: Amount | None
    p95: Amount | None
    p99: Amount | None
    max: Amount | None


class Latency(Quantiles):
    """Milliseconds. `first`, which pays for warm-up, is left out of the others."""

    first: Amount | None


class Deadlines(Closed):
    """Of a loop with delays (--delay, --realtime)."""

    delay: str | float
    """measured, or milliseconds."""
    control_rate_hz: Above
    chunks: Count
    delay_ms: Quantiles
    delay_steps_mean: Amount | None
    late_chunks: Count
    """That came later than one control period."""
    useless_chunks: Count
    """Whose actions' time had all passed."""
    steps: Count
    held_steps: Count
    """In which the robot held still for want of an action."""
    held_steps_at_start: Count
    """Of these, before an episode's first chunk."""
