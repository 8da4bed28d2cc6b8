"""Numbers as people write them, for the page and for every figure."""

from __future__ import annotations

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


def _short(value: float) -> str:
    """One decimal below ten, none above; no decimal that is zero."""
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def _two(value: int, large: str, small: str) -> str:
    """Sixty of the small unit make a large one."""
    rest = f" {value % 60} {small}" if value % 60 else ""
    return f"{value // 60} {large}{rest}"
