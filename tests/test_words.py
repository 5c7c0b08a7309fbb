"""Counts and times as people read them."""

import pytest

from fltrust_repro.words import counted, either, lasting


@pytest.mark.parametrize(
    ("number", "noun", "told"),
    [
        (0, "trial", "0 trials"),
        (1, "trial", "1 trial"),
        (4500, "trial", "4,500 trials"),
        (1, "entry", "1 entry"),
        (2, "entry", "2 entries"),
        (2, "day", "2 days"),
    ],
)
def test_a_number_of_things(number, noun, told):
    assert counted(number, noun) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "1 second"),
        (59, "59 seconds"),
        (59.5, "1 minute"),
        (360, "6 minutes"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (12600, "3 h 30 min"),
        (62879, "18 h"),
        (49 * 3600, "3 days"),
        (1e9, "11,575 days"),
    ],
)
def test_a_time_in_units_that_people_read(seconds, told):
    assert lasting(seconds) == told


def test_names_of_which_one_is_meant():
    assert either(["a"]) == "'a'"
    assert either(["a", "b", "c"]) == "'a', 'b' or 'c'"
