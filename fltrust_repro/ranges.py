"""Numbers as one types them: `5,10,20`, the range `5..30`, its step `5:30:5`, `10%`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from itertools import islice, takewhile
from typing import Any

from fltrust_repro.errors import BadInput, shown

MOST_VALUES = 1_000
MOST_STEPS = 10  # of a range without a step
GROWS = 50  # a range to so many times its start has steps that grow with its values
_LARGEST = 300  # exponent of a number of a range


def values_of(
    text: str, name: str = "values", whole: bool = False, hundred: int | None = None
) -> list[float]:
    """Read the values of the parameter `name`, and of ranges both ends.

    `whole` are its values only as whole numbers; `hundred` is what 100% of it are, None where that
    is not known. Raises `BadInput`.

    >>> from fltrust_repro.ranges import values_of
    >>> values_of("5..30", whole=True)
    [5, 10, 15, 20, 25, 30]
    >>> values_of("0.01..1")
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    >>> values_of("0,10%:30%:10%", whole=True, hundred=50)
    [0, 5, 10, 15]
    """
    found: list[float] = []
    for part in text.split(","):
        try:
            found += islice(_values(part, name, whole, hundred), MOST_VALUES + 1)
        except BadInput:
            raise
        except (ValueError, InvalidOperation):
            raise BadInput(_wrong(text, part)) from None
        if len(found) > MOST_VALUES:
            wrong = f"--values is {shown(text)}, more than {MOST_VALUES:,} values"
            raise BadInput(f"{wrong}; give fewer, or a greater step.")
    return found


def _values(part: str, name: str, whole: bool, hundred: int | None) -> Iterable[float]:
    words = [word.strip() for word in part.replace("..", ":").split(":")]
    if len(words) == 3 or (len(words) == 2 and ".." in part):
        numbers = [_number(word, name, hundred) for word in words]
        return map(_plain, _range(part.strip(), numbers, whole))
    (word,) = words
    if word.endswith("%"):
        return [_plain(_number(word, name, hundred))]
    return [int(word) if word.isdigit() else _plain(float(word))]


def _wrong(text: str, part: str) -> str:
    range_ = re.fullmatch(r"\s*([\d.]+%?)\s*[-:]\s*([\d.]+%?)\s*", part)
    hint = f" Did you mean {range_[1]}..{range_[2]}?" if range_ else ""
    allowed = "numbers with commas between, as 5,10,20, or a range, as 5..30, or 5:30:5"
    return f"--values is {shown(text)}; give {allowed} with a step.{hint}"


def _number(word: str, name: str, hundred: int | None) -> Decimal:
    """A number, or a share of what 100% are."""
    share = word.endswith("%")
    number = Decimal(word[:-1] if share else word)
    if not number.is_finite() or abs(number.adjusted()) > _LARGEST:
        raise ValueError
    if not share:
        return number
    if hundred is None:
        unknown = f"it is not known what 100% of {name} are"
        raise BadInput(f"--values has {word}, but {unknown}; give a number.")
    number = number * hundred / 100
    if hundred > 1 and number != number.to_integral_value():
        wrong = f"--values has {word}, which is {number.normalize():f} of {hundred} workers"
        raise BadInput(f"{wrong}; give a share that is a whole number of them.")
    return number


def _plain(number: Any) -> float:
    """The number as Python has it, whole numbers as such."""
    whole = abs(number) < 2**53 and number == int(number)
    return int(number) if whole else float(number)


def grows(values: Sequence[float]) -> bool:
    """Whether numbers span so much that equal ratios of them tell more than equal differences."""
    return 0 < GROWS * min(values) <= max(values)


def _range(part: str, numbers: list[Decimal], whole: bool) -> Iterable[Decimal]:
    start, stop, *steps = numbers
    if not start < stop:
        wrong = f"--values has the range {part}, which does not go up"
        raise BadInput(f"{wrong}; give its smaller end first, or a single number.")
    if not steps:
        growing = 0 < GROWS * start <= stop
        return _growing(start, stop) if growing else _even(start, stop, _step(stop - start, whole))
    if not steps[0] > 0:
        wrong = f"--values has the range {part}, whose step is {steps[0]}"
        raise BadInput(f"{wrong}; give a step above 0.")
    return takewhile(
        lambda value: value <= stop, (start + k * steps[0] for k in range(MOST_VALUES + 1))
    )


def _even(start: Decimal, stop: Decimal, step: Decimal) -> Iterator[Decimal]:
    """From the start by steps, and the end."""
    while start < stop:
        yield start
        start += step
    yield stop


def _step(span: Decimal, whole: bool) -> Decimal:
    """The smallest step of 1, 2, 2.5 or 5 times a power of ten that makes few, and fits if any."""
    powers = (Decimal(10) ** (span.adjusted() + k) for k in (-1, 0, 1))
    round_ = [power * factor for power in powers for factor in map(Decimal, ("1", "2", "2.5", "5"))]
    few = [one for one in round_ if span <= MOST_STEPS * one and not (whole and one % 1)]
    return next((step for step in few if span % step == 0 and step < span), few[0])


def _growing(start: Decimal, stop: Decimal) -> Iterator[Decimal]:
    """From the start by 1, 2 and 5 times powers of ten to the end."""
    yield start
    for power in range(start.adjusted(), stop.adjusted() + 1):
        for factor in (1, 2, 5):
            if start < (round_ := Decimal(10) ** power * factor) < stop:
                yield round_
    yield stop
