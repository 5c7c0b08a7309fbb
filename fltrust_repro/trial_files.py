"""CSV files of trials: a line of column names, then one per trial; compressed, if named .gz.

What a file holds of another program's, or of a newer version, stays there byte for byte.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fltrust_repro.errors import BadInput, LeftOut, UnknownName
from fltrust_repro.files import is_file, write_bytes
from fltrust_repro.trials import ADDED_LATER, COLUMNS, Trial, TrialName, Unreadable, setting_reader

ENDING = ".trials.csv"  # of a file of trials, and with
PACKED = ".gz"  # behind it, of one that is compressed
_AWAY = "move it away, or give another file or folder."
_LONGEST_FIELD = 2**31 - 1  # csv's own limit is 131,072 characters: a curve of 33,000 iterations


def write_csv(path: Path, trials: Iterable[Trial]) -> None:
    """Write finished trials as CSV, atomically, in place of what was there; as .gz compressed."""
    _write(path, _line(COLUMNS) + _lines(COLUMNS, trials))


def add_to_csv(path: Path, trials: Sequence[Trial]) -> None:
    """Write finished trials, and columns that a file lacks, behind what it holds byte for byte."""
    content = _content(path) if is_file(path) else b""
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

    `left_out` takes the lines that hold no trial that this version understands, but for those of
    which the name is read and not wanted: they are not looked at. Raises `BadInput` where the file
    cannot be read, or is no file of trials at all.
    """
    # Line by line: to pandas a quote too few, or a byte that is no UTF-8, ends the whole file.
    left_out = LeftOut() if left_out is None else left_out
    content = _content(path)
    trials, setting_of = [], setting_reader()
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        columns = _columns_of(path, content) if content else []
        for number, line in enumerate(content.split(b"\n")[1:], 2):
            name = _name_of(columns, line)
            if name is not None and not wanted(name):
                continue
            try:
                row = _row(columns, line)
                if row and (name is not None or _is_wanted(row, wanted)):
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
    if twice := [name for name in COLUMNS if columns.count(name) > 1]:
        raise BadInput(f"{path} names {', '.join(twice)} twice in its first line; {_AWAY}")
    return columns


def _name_of(columns: Sequence[str], line: bytes) -> TrialName | None:
    """The name that a line begins with, as those of `write_csv` do; without reading its curve."""
    parts = line.split(b",", len(TrialName._fields))[:-1]
    if (*columns[: len(parts)],) != TrialName._fields or any(b'"' in part for part in parts):
        return None  # to be read as CSV
    key, seed, protocol = parts
    try:
        return TrialName(key.decode(), int(seed), protocol.decode())
    except ValueError:
        return None


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
