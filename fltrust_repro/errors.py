"""Errors in words: those the user can mend, and what went wrong in a user's code, and where.

A `BadInput` is one sentence, shown without a traceback (exit code 2).
"""

from __future__ import annotations

import difflib
import reprlib
import traceback
from collections.abc import Collection
from typing import Any, NamedTuple

_LONGEST = 1_000  # characters of an error's own message


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


def choose(name: object, known: Collection[str]) -> str:
    """Return what to say of a name that is not known: which there are, and the nearest."""
    folded = {one.casefold(): one for one in known}
    typed = name.casefold() if isinstance(name, str) else ""
    near = [folded[one] for one in difflib.get_close_matches(typed, folded, n=1)]
    return f"choose one of {', '.join(known)}." + "".join(f" Did you mean {n!r}?" for n in near)


def in_words(error: BaseException, files: Collection[str] = ()) -> str:
    """Return an error's kind and message in one line, and where in the user's `files` it arose.

    A `BadInput` is its message alone: it says all that the user needs.
    """
    try:
        text = " ".join(str(error).split())[:_LONGEST]
    except Exception:
        text = "(a message that cannot be printed)"
    if not isinstance(error, BadInput):
        text = ": ".join(filter(None, [type(error).__name__, text]))
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}, line {frame.lineno}" for frame in frames
              if frame.filename in files]  # fmt: skip
    return f"{text.rstrip('. ')} ({places[-1]})" if places else text


class Raised(NamedTuple):
    """An error that ended a call in another process; unlike the error itself, always to be sent.

    Attributes
    ----------
    message : str, in one line
    details : str, the traceback
    mendable : "bad input", "data unavailable" or None
        What the user can mend, and no other trial need be tried before.
    once_more : bool
        Whether it may go well another time: memory or a file failed, and not the user's code.
    """

    message: str
    details: str
    mendable: str | None
    once_more: bool

    @classmethod
    def of(cls, error: BaseException, files: Collection[str]) -> Raised:
        """Describe an error, `files` being the user's."""
        kinds = {DataUnavailable: "data unavailable", BadInput: "bad input"}
        mendable = next((kind for cls, kind in kinds.items() if isinstance(error, cls)), None)
        users = any(frame.filename in files for frame in traceback.extract_tb(error.__traceback__))
        return cls(
            in_words(error, files),
            "".join(traceback.format_exception(type(error), error, error.__traceback__)),
            mendable,
            isinstance(error, (MemoryError, OSError)) and not users,
        )

    def raise_if_mendable(self) -> None:
        """Raise what the user can mend as the error it was."""
        if self.mendable is not None:
            kind = DataUnavailable if self.mendable == "data unavailable" else BadInput
            raise kind(self.message)
