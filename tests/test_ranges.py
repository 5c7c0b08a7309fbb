"""Numbers as one types them: lists, ranges with and without a step, shares."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fltrust_repro.errors import BadInput
from fltrust_repro.ranges import GROWS, MOST_STEPS, MOST_VALUES, values_of

RANGES = {
    "5..30": [5, 10, 15, 20, 25, 30],  # the paper's c
    "25..150": [25, 50, 75, 100, 125, 150],  # its m
    "1..10": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    "7..20": [7, 9, 11, 13, 15, 17, 19, 20],  # no step fits, and both ends are in
    "1..100": [1, 2, 5, 10, 20, 50, 100],
    "1..50": [1, 2, 5, 10, 20, 50],  # from fifty times on, as figures have it
    "5:30:5": [5, 10, 15, 20, 25, 30],
    "5..32:5": [5, 10, 15, 20, 25, 30],
    "5, 10..12 ,20": [5, 10, 11, 12, 20],
    "1e3": [1000],
}


@pytest.mark.parametrize("text", RANGES)
def test_ranges_of_whole_numbers(text):
    found = values_of(text, whole=True)
    assert found == RANGES[text]
    assert {*map(type, found)} == {int}


def test_ranges_of_other_numbers_are_exact():
    assert values_of("0.1..0.9:0.2") == [0.1, 0.3, 0.5, 0.7, 0.9]  # 0.1 + 0.2 is not 0.3
    assert values_of("0..0.5") == [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
    assert values_of("0.01..2") == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]
    assert values_of("0.5,0.5000001") == [0.5, 0.5000001]


def test_shares_are_of_workers_or_of_one():
    assert values_of("0%,10%,25%", whole=True, hundred=20) == [0, 2, 5]
    assert values_of("0%:40%:10%", whole=True, hundred=50) == [0, 5, 10, 15, 20]
    assert values_of("10%..50%:20%", hundred=1) == [0.1, 0.3, 0.5]
    with pytest.raises(
        BadInput, match=r"5%, which is 1.5 of 30 workers; give a share that is a wh"
    ):
        values_of("5%", "c", whole=True, hundred=30)
    with pytest.raises(BadInput, match="not known what 100% of rounds are; give a number"):
        values_of("5%", "rounds", whole=True)


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 6), st.booleans())
def test_a_range_has_both_its_ends_and_few_even_steps_between(start, span, point, whole):
    low, high = (Decimal(n).scaleb(-point * (not whole)) for n in (start, start + span))
    found = values_of(f"{low:f}..{high:f}", whole=whole)
    assert (found[0], found[-1]) == (float(low), float(high))
    assert found == sorted({*found})
    if low and high >= GROWS * low:
        assert all(f"{value:e}"[0] in "125" for value in found[1:-1])
    else:
        assert 2 <= len(found) <= MOST_STEPS + 1
        steps = {round(b - a, point + 3) for a, b in zip(found, found[1:-1])}
        assert len(steps) <= 1
    if whole:
        assert {*map(type, found)} == {int}


@given(st.text(alphabet="0123456789.,:%-e n", max_size=12))
def test_anything_typed_is_read_or_refused_in_a_sentence(text):
    try:
        found = values_of(text, "c", hundred=100)
    except BadInput as error:
        assert "--values" in str(error)
        assert str(error)[-1] in ".?"
    else:
        assert 1 <= len(found) <= MOST_VALUES


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_as_it_was_printed(number):
    assume(number >= 0)
    assert values_of(repr(number)) == [number]
