"""Counts, times and lists of names as people read them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def counted(number: int, noun: str) -> str:
    """Return a number of things.

    >>> from fltrust_repro.words import counted
    >>> counted(1, "trial"), counted(1200, "trial"), counted(2, "entry")
    ('1 trial', '1,200 trials', '2 entries')
    """
    several = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else several}"


def spanning(numbers: Collection[int], noun: str) -> str:
    """Return how many things there are where that differs from place to place.

    >>> from fltrust_repro.words import spanning
    >>> spanning([20, 3, 5], "trial"), spanning([1, 1], "trial")
    ('3 to 20 trials', '1 trial')
    """
    least, most = min(numbers), max(numbers)
    return f"{least:,} to " * (least < most) + counted(most, noun)


def cut(name: str, width: int) -> str:
    """Return a name of at most so many letters: what is cut is its middle, for the ends differ.

    >>> from fltrust_repro.words import cut
    >>> cut("trimmed-mean: label-flip", 18)
    'trimm...label-flip'
    """
    if len(name) <= width:
        return name
    tail = min(max((width - 3) * 2 // 3, 1), width)
    return f"{name[: max(width - 3 - tail, 0)]}...{name[-tail:]}"


def lasting(seconds: float) -> str:
    """Return a time in the units in which it is short; up to the next second, minute or hour.

    >>> from fltrust_repro.words import lasting
    >>> lasting(0.2), lasting(200), lasting(7800), lasting(40000), lasting(1e6)
    ('1 second', '4 minutes', '2 h 10 min', '12 h', '12 days')
    """
    if (whole := max(math.ceil(seconds), 1)) < _MINUTE:
        return counted(whole, "second")
    if (minutes := math.ceil(seconds / _MINUTE)) < 60:
        return counted(minutes, "minute")
    if minutes < 600:
        return f"{minutes // 60} h" + f" {minutes % 60} min" * (minutes % 60 > 0)
    hours = math.ceil(seconds / _HOUR)
    return f"{hours} h" if hours <= 48 else counted(math.ceil(seconds / _DAY), "day")


def either(names: Sequence[str]) -> str:
    """Return names of which one is meant.

    >>> from fltrust_repro.words import either
    >>> either(["krum"]), either(["a", "b", "c"])
    ("'krum'", "'a', 'b' or 'c'")
    """
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last
