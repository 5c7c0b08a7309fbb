"""Errors that the user can mend: one sentence each, shown without a traceback (exit code 2)."""

from __future__ import annotations

import reprlib
from typing import Any


class BadInput(ValueError):
    """A value is wrong; the message names it, what is allowed, and what to do."""


class DataUnavailable(BadInput):
    """A data set is neither at hand nor to be had; other experiments can still run."""


class UnknownName(BadInput):
    """A name that nothing is registered under; a plug-in that is not loaded may have it."""


def shown(value: Any) -> str:
    """Return a value as an error message shows it: on one line, and short however long it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
