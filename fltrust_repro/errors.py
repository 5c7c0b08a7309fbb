"""Errors in words: those the user can mend, and what went wrong in a user's code, and where.

A `BadInput` is one sentence, shown without a traceback (exit code 2).
"""

from __future__ import annotations

import difflib
import reprlib
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from fltrust_repro.words import counted, either

_LONGEST = 1_000  # characters of an error's own message
_LONGEST_REASON = 200  # characters that are told of why something is left out
_LISTED = 100  # characters of names that are told in full where one of them is near
_NAMED = 3  # places of a file that are named; the others are counted


class BadInput(ValueError):
    """A value is wrong; the message names it, what is allowed, and what to do."""


class BeyondLimit(BadInput):
    """m, c and beta are beyond what a rule or an attack is defined for; for others they may do."""


class WrongNumbers(BadInput):
    """Something is no array of numbers of the shape that is needed."""


class DataUnavailable(BadInput):
    """A data set is neither at hand nor to be had; other experiments can still run."""


class UnknownName(BadInput, KeyError):
    """A name that nothing is registered under; a plug-in that is not loaded may have it."""

    __str__ = BadInput.__str__  # and not KeyError's, which quotes the sentence


def shown(value: Any) -> str:
    """Return a value as an error message shows it: on one line, and short however long it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def choose(name: object, known: Collection[str]) -> str:
    """Return what to say of a name that is not known: the nearest, and which there are.

    Of many, all are told only where none is near.
    """
    folded = {one.casefold(): one for one in known}
    typed = name.casefold() if isinstance(name, str) else ""
    near = [folded[one] for one in difflib.get_close_matches(typed, folded, n=3)]
    if not near:
        return f"choose one of {', '.join(known)}."
    if len(every := ", ".join(known)) > _LISTED:
        return f"choose one of the {len(known)} there are. Did you mean {either(near)}?"
    return f"choose one of {every}. Did you mean {either(near[:1])}?"


def wrong_in(sentence: str) -> str:
    """Return what a sentence of ours says is wrong, without what to do about it.

    >>> from fltrust_repro.errors import wrong_in
    >>> wrong_in("c is 60; it must be less than half of the 100 workers.")
    'c is 60'
    """
    return sentence.partition(";")[0].rstrip(".")


def note(text: str) -> None:
    """Tell the user, on standard error, what costs nothing but should be known."""
    print(f"Note: {text}", file=sys.stderr)


def one_line(text: str) -> str:
    r"""Return text that a terminal, a table or a page shows as it is, in one line.

    Line breaks, escape sequences and other control characters are written as Python writes them.

    >>> from fltrust_repro.errors import one_line
    >>> print(one_line("two\nlines"))
    two\nlines
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _places(error: BaseException) -> list[str]:
    """Where in the user's code an error passed: in a plug-in's, a script's or a notebook's."""
    return [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == "__main__"
        or getattr(frame.f_globals.get("__loader__"), "of_a_plugin", False)
    ]


def in_words(error: BaseException) -> str:
    """Return an error's kind and message in one line, and where in the user's code it arose."""
    try:
        text = " ".join(str(error).split())[:_LONGEST]
    except Exception:
        text = "(a message that cannot be printed)"
    if not isinstance(error, BadInput):  # which says all that the user needs
        text = ": ".join(filter(None, [type(error).__name__, text]))
    places = _places(error)
    return f"{text.rstrip('. ')} ({places[-1]})" if places else text


class Raised(NamedTuple):
    """An error that ended a call in another process; unlike the error itself, always to be sent."""

    message: str  # in one line
    details: str  # the traceback
    mendable: str | None  # "bad input" or "data unavailable": no other trial need be tried before
    once_more: bool  # it may go well another time: memory or a file failed, not the user's code

    @classmethod
    def of(cls, error: BaseException) -> Raised:
        """Describe an error."""
        kinds = {DataUnavailable: "data unavailable", BadInput: "bad input"}
        mendable = next((word for kind, word in kinds.items() if isinstance(error, kind)), None)
        details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        once_more = isinstance(error, (MemoryError, OSError)) and not _places(error)
        # A name of a file may hold what no text to be stored can.
        message, details = (
            text.encode(errors="backslashreplace").decode() for text in (in_words(error), details)
        )
        return cls(message, details, mendable, once_more)

    def raise_if_mendable(self) -> None:
        """Raise what the user can mend as the error it was."""
        if self.mendable is not None:
            kind = DataUnavailable if self.mendable == "data unavailable" else BadInput
            raise kind(self.message)


class LeftOut:
    """What was read and could not be believed or understood, by file and place."""

    def __init__(self) -> None:
        self._errors: dict[tuple[Path, str], ValueError] = {}
        self._told = 0

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, file: Path, place: str, error: ValueError) -> None:
        """Leave out what lies at a place of a file; the same place counts once."""
        self._errors.setdefault((file, place), error)

    @property
    def of_plugins(self) -> int:
        """How many of them name what plug-ins bring that are not loaded."""
        return sum(isinstance(error, UnknownName) for error in self._errors.values())

    def tell(self) -> None:
        """Say on stderr what has been left out since it was last told, a line or two per file."""
        new = list(self._errors.items())[self._told :]
        self._told = len(self._errors)
        for file in dict.fromkeys(file for (file, _), _ in new):
            errors = [(place, error) for (at, place), error in new if at == file]
            unknown = [_short(e).split(";")[0] for _, e in errors if isinstance(e, UnknownName)]
            broken = [f"{p}: {_short(e)}" for p, e in errors if not isinstance(e, UnknownName)]
            if broken:
                more = [f"and {len(broken) - _NAMED:,} more"] * (len(broken) > _NAMED)
                named = "; ".join(broken[:_NAMED] + more)
                said = f"{counted(len(broken), 'entry')} not understood, left alone ({named})"
                note(f"{file}: {said}.")
            if unknown:
                which = f"plug-ins that are not loaded ({', '.join(dict.fromkeys(unknown))})"
                said = f"{counted(len(unknown), 'trial')} left out, of {which}"
                note(f"{file}: {said}; give --plugin to read them.")


def _short(error: ValueError) -> str:
    text = one_line(str(error).rstrip("."))
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
