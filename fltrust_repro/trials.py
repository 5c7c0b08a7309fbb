"""A finished trial, its name, and CSV files of trials that can be committed and read back."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fltrust_repro.errors import BadInput, UnknownName
from fltrust_repro.files import write_bytes
from fltrust_repro.records import ADDED_LATER, COLUMNS, LeftOut, Unreadable, checked, json_object
from fltrust_repro.settings import Setting
from fltrust_repro.training import PROTOCOL, TrialResult

_RESULT = tuple(TrialResult.__dataclass_fields__)
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

    def row(self) -> dict[str, Any]:
        """Return the trial as values of the columns `COLUMNS`."""
        result = asdict(self.result)
        return {
            **result,
            "diverged": int(result["diverged"]),
            "seconds": round(result["seconds"], 3),
            "notes": json.dumps(result["notes"], sort_keys=True),
            "curve": json.dumps([[i, e, _rounded(loss)] for i, e, loss in result["curve"]]),
            "key": self.setting.key(),
            "seed": self.seed,
            "protocol": self.protocol,
            "setting": json.dumps(self.setting.as_dict(), sort_keys=True),
            "device": self.device,
            "versions": self.versions,
            "finished": self.finished,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], setting_of: Callable[[str], Setting]) -> Trial:
        """Rebuild a trial from values of the columns `COLUMNS`, as they stand in a file.

        `setting_of` is a `setting_reader`. `Unreadable` where a value is not allowed, or where the
        key is not that of the setting: it was written under other defaults, or changed by hand.
        `UnknownName` where a plug-in that is not loaded may know better.
        """
        values = checked(COLUMNS, row)
        setting = setting_of(values["setting"])
        if setting.key() != values["key"]:
            raise Unreadable(
                f"key is {values['key']!r}; today's key of its setting is {setting.key()!r}"
            )
        result = TrialResult(**{name: values[name] for name in _RESULT})
        columns = ("seed", "device", "versions", "finished", "protocol")
        return cls(setting, result=result, **{name: values[name] for name in columns})


def setting_reader() -> Callable[[str], Setting]:
    """Return a function from a setting's JSON text to the setting.

    It remembers, since thousands of trials share a few settings; not beyond one reading, since a
    plug-in that is loaded later changes what a text means.
    """
    return lru_cache(maxsize=None)(_setting_of)


def _setting_of(text: str) -> Setting:
    try:
        return Setting.from_stored(json_object(text))
    except UnknownName:
        raise
    except (TypeError, ValueError) as error:
        raise Unreadable(f"its setting is not understood: {error}".rstrip(".")) from None


def _rounded(loss: float) -> float | None:
    return None if math.isnan(loss) else float(f"{loss:.5g}")


# ---- CSV files: a line of column names, then a line per trial -----------------------------------


def write_csv(path: Path, trials: Iterable[Trial]) -> None:
    """Write finished trials as CSV, atomically, in place of what was there."""
    write_bytes(path, _rows_text(COLUMNS, [dict(zip(COLUMNS, COLUMNS)), *_rows(trials)]))


def add_to_csv(path: Path, trials: Sequence[Trial]) -> None:
    """Write finished trials behind what a file holds, which stays as it is, byte for byte.

    The columns that the file lacks are added behind its own.
    """
    content = path.read_bytes() if path.is_file() else b""
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
        rows = _rows_text([*columns, *added], _rows(trials))
        write_bytes(path, b"\n".join([first, others + rows]))


def _rows(trials: Iterable[Trial]) -> Iterator[dict[str, Any]]:
    """Rows of trials, each of one line whatever a machine calls itself."""
    for trial in trials:
        row = trial.row()
        yield {**row, **{name: " ".join(row[name].split()) for name in ("device", "versions")}}


def _rows_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, list(columns), lineterminator="\n").writerows(rows)
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
    left_out = LeftOut() if left_out is None else left_out
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); make it readable.") from error
    if not content:
        return []
    trials, setting_of = [], setting_reader()
    with _long_fields():
        columns = _columns_of(path, content)
        for number, line in enumerate(content.split(b"\n")[1:], 2):
            try:
                row = _row(columns, line)
                if row is not None and _is_wanted(row, wanted):
                    trials.append(Trial.from_row({**ADDED_LATER, **row}, setting_of))
            except (Unreadable, UnknownName) as error:
                left_out.add(path, f"line {number}", error)
    return trials


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


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


def _row(columns: Sequence[str], line: bytes) -> dict[str, str] | None:
    """A line's values by column, without empty ones; None for an empty line.

    A trial never takes more than one line, so that a broken one breaks no other.
    """
    fields = _fields(line)
    if len(fields) > len(columns):
        raise Unreadable(f"it has {len(fields)} values for {len(columns)} columns")
    return {name: field for name, field in zip(columns, fields) if field} or None


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
