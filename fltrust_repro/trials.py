"""A finished trial, what a row must hold to be believed as one, and CSV files of trials.

`checked` is the one reader of rows, of a store or of a file. What fails there never ends a command:
it is left out, named by its place, and told once.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import reprlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from fltrust_repro.errors import BadInput, LeftOut, UnknownName, one_line
from fltrust_repro.files import write_bytes
from fltrust_repro.settings import MOST, Setting
from fltrust_repro.training import PROTOCOL, TrialResult

FIRST_SEED = 10  # of what is reported; those before it chose the readings
LAST_SEED = 2**31 - 1
ENDING = ".trials.csv"  # of a file of trials, and with
PACKED = ".gz"  # behind it, of one that is compressed
_WHERE = ("device", "versions", "finished")  # and when
_AWAY = "move it away, or give another file or folder."
_LONGEST_FIELD = 2**31 - 1  # csv's own limit is 131,072 characters: a curve of 33,000 iterations


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
    return "+".join(part for part in (str(PROTOCOL), setting.plugin_key()) if part)


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


# ---- CSV files: a line of column names, then a line per trial -----------------------------------


def write_csv(path: Path, trials: Iterable[Trial]) -> None:
    """Write finished trials as CSV, atomically, in place of what was there; as .gz compressed."""
    _write(path, _line(COLUMNS) + _lines(COLUMNS, trials))


def add_to_csv(path: Path, trials: Sequence[Trial]) -> None:
    """Write finished trials, and columns that a file lacks, behind what it holds byte for byte."""
    content = _content(path) if path.is_file() else b""
    if not content:
        write_csv(path, trials)
    elif trials:
        columns = _columns_of(path, content)
        first, _, others = content.partition(b"\n")
        if added := [name for name in COLUMNS if name not in columns]:
            end = b"\r" * first.endswith(b"\r")
            first = first.removesuffix(b"\r") + ",".join(["", *added]).encode() + end
        if others and not others.endswith(b"\n"):
            others += b"\n"
        _write(path, first + b"\n" + others + _lines([*columns, *added], trials))


def _write(path: Path, content: bytes) -> None:
    write_bytes(path, gzip.compress(content, mtime=0) if path.suffix == PACKED else content)


def is_csv(path: Path) -> bool:
    """Whether a file's name is that of a CSV file, compressed or not."""
    return path.name.lower().removesuffix(PACKED).endswith(".csv")


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == PACKED else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path} is no file of trials: {error}; {_AWAY}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); make it readable.") from error


def _lines(columns: Iterable[str], trials: Iterable[Trial]) -> bytes:
    """A line of each trial, whatever a machine calls itself."""
    rows = [trial.row() for trial in trials]
    for row in rows:
        row.update({name: " ".join(row[name].split()) for name in ("device", "versions")})
    return b"".join(_line(row.get(name, "") for name in columns) for row in rows)


def _line(fields: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode("utf-8")


def read_csv(
    path: Path,
    left_out: LeftOut | None = None,
    wanted: Callable[[TrialName], bool] = lambda name: True,
) -> list[Trial]:
    """Read the trials of a file of `write_csv` whose names are wanted.

    `left_out` takes the lines that hold no trial that this version understands. Raises `BadInput`
    where the file cannot be read, or is no file of trials at all.
    """
    # Line by line: to pandas a quote too few, or a byte that is no UTF-8, ends the whole file.
    left_out = LeftOut() if left_out is None else left_out
    content = _content(path)
    trials, setting_of = [], setting_reader()
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        columns = _columns_of(path, content) if content else []
        for number, line in enumerate(content.split(b"\n")[1:], 2):
            try:
                row = _row(columns, line)
                if row and _is_wanted(row, wanted):
                    trials.append(Trial.from_row(row, setting_of))
            except (Unreadable, UnknownName) as error:
                left_out.add(path, f"line {number}", error)
    finally:
        csv.field_size_limit(before)
    return trials


def _columns_of(path: Path, content: bytes) -> list[str]:
    try:
        columns = _fields(content.partition(b"\n")[0].removeprefix(codecs.BOM_UTF8))
    except Unreadable as error:
        raise BadInput(f"{path} is no file of trials: it begins with {error}; {_AWAY}") from error
    if lacking := [name for name in COLUMNS if name not in {*columns, *ADDED_LATER}]:
        raise BadInput(
            f"{path} is no file of trials: nothing from line 2 on can be read, as the first "
            f"does not name {', '.join(lacking)}; {_AWAY}"
        )
    return columns


def _row(columns: Sequence[str], line: bytes) -> dict[str, str]:
    """A line's values by column, without empty ones."""
    fields = _fields(line)
    if len(fields) > len(columns):
        raise Unreadable(f"it has {len(fields)} values for {len(columns)} columns")
    return {name: field for name, field in zip(columns, fields) if field}


def _fields(line: bytes) -> list[str]:
    try:
        (fields,) = csv.reader([line.decode("utf-8")], strict=True)
    except (csv.Error, ValueError) as error:
        raise Unreadable(f"no line of CSV in UTF-8 ({error})") from error
    return fields


def _is_wanted(row: Mapping[str, str], wanted: Callable[[TrialName], bool]) -> bool:
    try:
        return wanted(TrialName(row["key"], int(row["seed"]), row["protocol"]))
    except (KeyError, ValueError):
        return True  # to learn what is wrong with it
