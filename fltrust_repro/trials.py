"""A finished trial, and what a row must hold to be believed as one.

`checked` is the one reader of rows, of a store or of a file. What fails there never ends a command:
it is left out, named by its place, and told once.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from statistics import fmean
from typing import Any, NamedTuple

from fltrust_repro.doors import LAST_SEED
from fltrust_repro.errors import UnknownName, one_line
from fltrust_repro.settings import MOST, Setting
from fltrust_repro.training import PROTOCOL, TrialResult

FIRST_SEED = 10  # of what is reported; those before it chose the readings
MOST_TRIALS = 10_000  # of a setting
_WHERE = ("device", "versions", "finished")  # and when
TOOK_OVER = "; after iteration"  # in `versions`: between one machine and the next that went on


class TrialName(NamedTuple):
    """What makes a trial unique."""

    key: str  # of its setting
    seed: int
    protocol: str

    @classmethod
    def of(cls, setting: Setting, seed: int) -> TrialName:
        """Return the name of a setting's trial under today's protocol."""
        return cls(setting.key(), seed, protocol_of(setting))


def protocol_of(setting: Setting) -> str:
    """Return the version under which a setting's trials count: the code's, and its plug-ins'."""
    parts = str(PROTOCOL), "numbered" * setting.numbered, setting.plugin_key()
    return "+".join(filter(None, parts))


@dataclass(frozen=True)
class Trial:
    """A finished trial as the store holds it."""

    setting: Setting
    seed: int
    result: TrialResult
    device: str
    versions: str
    finished: str  # UTC, ISO 8601
    protocol: str

    @property
    def name(self) -> TrialName:
        """What makes the trial unique."""
        return TrialName(self.setting.key(), self.seed, self.protocol)

    def error(self, measure: str) -> float:
        """Return one of `experiments.MEASURES`.

        "late_error_rate" is the mean of those of the curve from 4/5 of the iterations on, which
        varies less than the final one.
        """
        result = self.result
        if measure != "late_error_rate":
            return getattr(result, measure)
        late = [error for i, error, _ in result.curve if 5 * i >= 4 * result.iterations]
        return fmean(late or [result.error_rate])

    def row(self) -> dict[str, Any]:
        """Return the trial as values of the columns `COLUMNS`."""

        def rounded(loss: float) -> float | None:
            return None if math.isnan(loss) else float(f"{loss:.5g}")

        result = self.result
        return {
            **asdict(result),
            **self.name._asdict(),
            **{name: getattr(self, name) for name in _WHERE},
            "diverged": int(result.diverged),
            "seconds": round(result.seconds, 3),
            "notes": json.dumps(result.notes, sort_keys=True),
            "curve": json.dumps([[i, e, rounded(loss)] for i, e, loss in result.curve]),
            "setting": json.dumps(self.setting.as_dict(), sort_keys=True),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], setting_of: Callable[[str], Setting]) -> Trial:
        """Rebuild a trial from values of the columns `COLUMNS`, as they stand in a file.

        `setting_of` is a `setting_reader`. `Unreadable` where a value is not allowed, or the key is
        not the setting's: it was written under other defaults, or changed by hand. `UnknownName`
        where a plug-in that is not loaded may know better.
        """
        values = checked(COLUMNS, {**ADDED_LATER, **row})
        setting = setting_of(values["setting"])
        if setting.key() != values["key"]:
            today = f"today's key of its setting is {setting.key()!r}"
            raise Unreadable(f"key is {values['key']!r}; {today}")
        result = TrialResult(**{name: values[name] for name in TrialResult.__dataclass_fields__})
        others = {name: values[name] for name in ("seed", "protocol", *_WHERE)}
        return cls(setting, result=result, **others)


Trials = Mapping[Setting, Sequence[Trial]]


def core_seconds(trials: Iterable[Trial]) -> list[float]:
    """Return how long those took that a CPU of one machine ran alone."""
    alone = (one for one in trials if one.device == "cpu" and TOOK_OVER not in one.versions)
    return [one.result.seconds for one in alone]


def setting_reader() -> Callable[[str], Setting]:
    """Return a function from a setting's JSON text to the setting, which remembers.

    Thousands of trials share a few settings; but a plug-in loaded later changes what a text means.
    """
    return lru_cache(maxsize=None)(_setting_of)


def _setting_of(text: str) -> Setting:
    try:
        return Setting.from_stored(_json(dict, text))
    except UnknownName:
        raise
    except _WRONG as error:
        told = str(error) or f"{reprlib.repr(text)} is no JSON object"
        raise Unreadable(f"its setting is not understood: {told}".rstrip(".")) from None


# ---- what a row must hold -----------------------------------------------------------------------

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
    return value if value.isprintable() else one_line(" ".join(value.split()))


def _within(kind: Callable[[Any], Any], least: float, most: float, value: Any) -> Any:
    number = kind(value) if isinstance(value, (str, int)) else value
    if type(number) is not kind or not least <= number <= most:
        raise ValueError
    return number


def _json(kind: type, text: Any) -> Any:
    value = json.loads(text) if isinstance(text, str) else None
    if not isinstance(value, kind):
        raise TypeError
    return value


def _notes(text: Any) -> dict[str, float]:
    notes = _json(dict, text)
    if not {*map(type, notes.values())} <= _NUMBERS:
        raise TypeError
    return notes


def _curve(text: Any) -> list[tuple[int, float, float]]:
    curve = [(i, e, math.nan if loss is None else loss) for i, e, loss in _json(list, text)]
    for iteration, error, loss in curve:
        if type(iteration) is not int or not {type(error), type(loss)} <= _NUMBERS:
            raise TypeError
        if not (0 <= iteration <= MOST and 0 <= error <= 1):
            raise ValueError
    if not curve:
        raise ValueError
    return [(iteration, error, float(loss)) for iteration, error, loss in curve]


def _whole(least: int, most: int) -> Column:
    allowed = f"a whole number from {least} to {most:,}"
    return Column("INTEGER NOT NULL", partial(_within, int, least, most), allowed)


_WORDS = Column("TEXT NOT NULL", _text, "a text")
_SECONDS = Column("REAL NOT NULL", partial(_within, float, 0.0, 1e12), "a number of seconds")
_PID = _whole(-1, 2**31 - 1)
_RATE = Column("REAL NOT NULL", partial(_within, float, 0.0, 1.0), "a number from 0 to 1")
_NAME = {"key": _WORDS, "seed": _whole(0, LAST_SEED), "protocol": _WORDS}
COLUMNS = {
    **_NAME,
    "setting": _WORDS,  # JSON
    "error_rate": _RATE,
    "lowest_error_rate": _RATE,
    "iterations": _whole(0, MOST),
    "diverged": Column("INTEGER NOT NULL", lambda v: bool(_within(int, 0, 1, v)), "0 or 1"),
    "seconds": _SECONDS,
    "empty_workers": _whole(0, MOST),
    "notes": Column("TEXT NOT NULL DEFAULT '{}'", _notes, "a JSON object of numbers"),
    "curve": Column("TEXT NOT NULL", _curve, "a JSON list of [iteration, error rate, loss]"),
    "device": _WORDS,
    "versions": _WORDS,
    "finished": _WORDS,
}
ADDED_LATER = {"notes": "{}"}  # what a trial without the column has in it
TABLES: dict[str, dict[str, Column]] = {  # of a store
    "trials": COLUMNS,
    "failures": {**_NAME, "message": _WORDS, "details": Column("TEXT NOT NULL", str, "a text")},
    "claims": {**_NAME, "owner": _WORDS, "host": _WORDS, "pid": _PID, "renewed": _SECONDS},
}


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
