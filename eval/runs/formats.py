"""Numbers as people write them, for the page, every table and every figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = "–"


def duration(milliseconds: float | None) -> str:
    """A time with its unit: "40 µs", "0.4 ms", "76 ms", "1.9 s", "2 min 32 s", "1 h 5 min"."""
    if milliseconds is None:
        return MISSING
    if 0 < milliseconds < 0.095:
        return f"{_short(1e3 * milliseconds)} µs"
    if milliseconds < 999.5:
        return f"{_short(milliseconds)} ms"
    if milliseconds < 99_500:
        return f"{_short(1e-3 * milliseconds)} s"
    seconds = round(1e-3 * milliseconds)
    if seconds < 3600:
        return _two(seconds, "min", "s")
    return _two(round(seconds / 60), "h", "min")


def amount(value: float | None) -> str:
    """A count or the mean of counts: "9", "13.9", "100", "1234", never "1e+03"."""
    if value is None:
        return MISSING
    return f"{value:.1f}".removesuffix(".0") if abs(value) < 99.95 else f"{value:.0f}"


def tick(value: float) -> str:
    """A tick's label in full, whatever its size: "0.05", "2", "1000000", never "1e+06"."""
    return f"{value:.10f}".rstrip("0").rstrip(".") if value else "0"


def two_digits(value: float) -> str:
    """A quantity of any size to two digits: "0.0012", "0.34", "12", never "1.2e-03"."""
    return tick(float(f"{value:.1e}"))


def number(value: float | None) -> str:
    """A mean in a table: one decimal below a hundred, none above."""
    if value is None:
        return MISSING
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def times(ratio: float | None) -> str:
    """A speedup: "3.01x"."""
    return MISSING if ratio is None else f"{ratio:.2f}x"


def percent(share: float | None) -> str:
    """A share in a table: "97.5%"."""
    return MISSING if share is None else f"{100 * share:.1f}%"


def significant(value: float | None, digits: int = 2) -> str:
    """A number of any size to so many digits: "0.34", "1.2e-36"."""
    return MISSING if value is None else f"{value:.{digits}g}"


def success(rate: Mapping[str, Any]) -> str:
    """A success rate with its interval: "18/20 70–97%". `rate`: `count`, `n` and `ci95`."""
    if not rate["n"]:
        return MISSING
    low, high = rate["ci95"]
    return f"{rate['count']}/{rate['n']} {100 * low:.0f}–{100 * high:.0f}%"


def _short(value: float) -> str:
    """One decimal below ten, none above; no decimal that is zero."""
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def _two(value: int, large: str, small: str) -> str:
    """Sixty of the small unit make a large one."""
    rest = f" {value % 60} {small}" if value % 60 else ""
    return f"{value // 60} {large}{rest}"
