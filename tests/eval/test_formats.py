"""Numbers as people write them."""

import pytest

from asd_policy.eval.runs.formats import amount, duration, tick, two_digits


@pytest.mark.parametrize(
    ("milliseconds", "written"),
    [
        (1910, "1.9 s"), (76.4, "76 ms"), (0.42, "0.4 ms"), (0.04, "40 µs"), (0.0012, "1.2 µs"),
        (0, "0 ms"), (None, "–"), (5, "5 ms"), (5.04, "5 ms"), (9.94, "9.9 ms"), (9.96, "10 ms"),
        (0.0949, "95 µs"), (0.096, "0.1 ms"), (999.4, "999 ms"), (999.6, "1 s"), (1000, "1 s"),
        (9960, "10 s"), (13_300, "13 s"), (99_400, "99 s"), (99_600, "1 min 40 s"),
        (120_000, "2 min"), (152_300, "2 min 32 s"), (3_599_400, "59 min 59 s"),
        (3_599_600, "1 h"), (3_900_000, "1 h 5 min"),
    ],
)  # fmt: skip
def test_a_duration_has_the_unit_that_suits_it(milliseconds, written):
    assert duration(milliseconds) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(9, "9"), (9.02, "9"), (13.86, "13.9"), (99.94, "99.9"), (99.96, "100"), (100, "100"),
     (1234.5, "1234"), (1e6, "1000000"), (0.0, "0"), (None, "–")],
)  # fmt: skip
def test_a_count_has_no_exponent_and_no_empty_decimal(value, written):
    assert amount(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(1e6, "1000000"), (200, "200"), (0.05, "0.05"), (2.0, "2"), (0, "0"), (1e-3, "0.001")],
)
def test_a_tick_is_written_in_full(value, written):
    assert tick(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(1.23e-5, "0.000012"), (0.00118, "0.0012"), (0.34, "0.34"), (12.3, "12"), (1.0, "1")],
)
def test_two_digits_of_any_size(value, written):
    assert two_digits(value) == written
