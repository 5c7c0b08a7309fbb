"""What a row of the store or of a results file must hold to be believed, and what is left out.

`checked` is the one reader of such rows, wherever they come from. What fails there is never an
end of the command: it is counted, named by its place, and told once.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click

from fltrust_repro.errors import UnknownName
from fltrust_repro.settings import MOST

LAST_SEED = 2**31 - 1
_LONGEST = 200  # characters of a reason that are told
_NAMED = 3  # places of a file that are named; the others are counted
_NUMBERS = {int, float}
_WRONG = (KeyError, TypeError, ValueError, OverflowError, RecursionError)


class Unreadable(ValueError):
    """A row that is no finished trial to this version; the message names the column and value."""


class Column(NamedTuple):
    """A column: its declaration in SQLite, how a value of it is read, and what that allows."""

    sql: str
    read: Callable[[Any], Any]
    allowed: str


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value if value.isprintable() else _printable(" ".join(value.split()))


def _printable(text: str) -> str:
    """Text without what breaks a line or steers a terminal."""
    return "".join(filter(str.isprintable, text))


def _within(kind: type, least: float, most: float) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        number = kind(value) if isinstance(value, (str, int)) else value
        if type(number) is not kind or not least <= number <= most:
            raise ValueError
        return number

    return read


def _flag(value: Any) -> bool:
    return bool(_within(int, 0, 1)(value))


def _json(text: Any, kind: type) -> Any:
    value = json.loads(text) if isinstance(text, str) else None
    if not isinstance(value, kind):
        raise TypeError
    return value


def _notes(text: Any) -> dict[str, float]:
    notes = _json(text, dict)
    if not {*map(type, notes.values())} <= _NUMBERS:
        raise TypeError
    return notes


def _curve(text: Any) -> list[tuple[int, float, float]]:
    curve = []
    for iteration, error, loss in _json(text, list):
        loss = math.nan if loss is None else loss
        if type(iteration) is not int or not {type(error), type(loss)} <= _NUMBERS:
            raise TypeError
        if not (0 <= iteration <= MOST and 0 <= error <= 1):
            raise ValueError
        curve.append((iteration, error, float(loss)))
    if not curve:
        raise ValueError
    return curve


def _whole(least: int, most: int) -> Column:
    allowed = f"a whole number from {least} to {most:,}"
    return Column("INTEGER NOT NULL", _within(int, least, most), allowed)


def _words() -> Column:
    return Column("TEXT NOT NULL", _text, "a text")


_RATE = Column("REAL NOT NULL", _within(float, 0.0, 1.0), "a number from 0 to 1")
_SECONDS = Column("REAL NOT NULL", _within(float, 0.0, 1e12), "a number of seconds")
_NAME = {"key": _words(), "seed": _whole(0, LAST_SEED), "protocol": _words()}

COLUMNS = {
    **_NAME,
    "setting": _words(),  # JSON
    "error_rate": _RATE,
    "lowest_error_rate": _RATE,
    "iterations": _whole(0, MOST),
    "diverged": Column("INTEGER NOT NULL", _flag, "0 or 1"),
    "seconds": _SECONDS,
    "empty_workers": _whole(0, MOST),
    "notes": Column("TEXT NOT NULL DEFAULT '{}'", _notes, "a JSON object of numbers"),
    "curve": Column("TEXT NOT NULL", _curve, "a JSON list of [iteration, error rate, loss]"),
    "device": _words(),
    "versions": _words(),
    "finished": _words(),
}
TABLES: dict[str, dict[str, Column]] = {
    "trials": COLUMNS,
    "failures": {**_NAME, "message": _words(), "details": Column("TEXT NOT NULL", str, "a text")},
    "claims": {
        **_NAME,
        "owner": _words(),
        "host": _words(),
        "pid": _whole(-1, 2**31 - 1),
        "renewed": _SECONDS,
    },
}
ADDED_LATER = {"notes": "{}"}  # what a trial without the column has in it


def checked(table: Mapping[str, Column], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's values as their columns read them; `Unreadable` where one is not allowed."""
    values = {}
    for name, column in table.items():
        try:
            values[name] = column.read(row[name])
        except _WRONG:
            found = f"is {reprlib.repr(row[name])}" if name in row else "is missing"
            raise Unreadable(f"{name} {found}; it must be {column.allowed}") from None
    return values


def json_object(text: str) -> dict[str, Any]:
    """Return what a JSON object's text holds; `Unreadable` where it is none."""
    try:
        return _json(text, dict)
    except _WRONG:
        raise Unreadable(f"{reprlib.repr(text)} is no JSON object") from None


def _short(error: ValueError) -> str:
    """Return an error's text for one line of a terminal, whatever a file made it say."""
    text = _printable(str(error).rstrip("."))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


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

    def tell(self) -> None:
        """Say on stderr what has been left out since it was last told, a line or two per file."""
        new = list(self._errors.items())[self._told :]
        self._told = len(self._errors)
        for file in dict.fromkeys(file for (file, _), _ in new):
            errors = {place: error for (at, place), error in new if at == file}
            unknown = [e for e in errors.values() if isinstance(e, UnknownName)]
            broken = {p: e for p, e in errors.items() if not isinstance(e, UnknownName)}
            if broken:
                named = [f"{place}: {_short(e)}" for place, e in islice(broken.items(), _NAMED)]
                named += [f"and {len(broken) - _NAMED:,} more"] * (len(broken) > _NAMED)
                what = "entry" if len(broken) == 1 else "entries"
                said = f"{len(broken):,} {what} not understood, left alone ({'; '.join(named)})"
                click.echo(f"Note: {file}: {said}.", err=True)
            if unknown:
                names = ", ".join(dict.fromkeys(_short(e).split(";")[0] for e in unknown))
                said = f"{len(unknown):,} trial{'s' * (len(unknown) > 1)} left out"
                click.echo(
                    f"Note: {file}: {said}, of plug-ins that are not loaded ({names}); give "
                    "--plugin to read them.",
                    err=True,
                )
