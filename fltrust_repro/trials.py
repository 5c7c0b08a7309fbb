"""A finished trial, its name, and CSV files of trials that can be committed and read back."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fltrust_repro.errors import BadInput, UnknownName
from fltrust_repro.files import write_text
from fltrust_repro.results import PROTOCOL, TrialResult
from fltrust_repro.settings import Setting

COLUMNS = {
    "key": "TEXT NOT NULL",
    "seed": "INTEGER NOT NULL",
    "protocol": "TEXT NOT NULL",
    "setting": "TEXT NOT NULL",
    "error_rate": "REAL NOT NULL",
    "lowest_error_rate": "REAL NOT NULL",
    "iterations": "INTEGER NOT NULL",
    "diverged": "INTEGER NOT NULL",
    "seconds": "REAL NOT NULL",
    "empty_workers": "INTEGER NOT NULL",
    "notes": "TEXT NOT NULL DEFAULT '{}'",
    "curve": "TEXT NOT NULL",
    "device": "TEXT NOT NULL",
    "versions": "TEXT NOT NULL",
    "finished": "TEXT NOT NULL",
}
ADDED_LATER = {"notes": "{}"}  # what a trial without the column has in it
_CSV_KINDS = {"TEXT": str, "INTEGER": int, "REAL": float}


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
        """Return the trial as values of `COLUMNS`."""
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
    def from_row(cls, row: dict[str, Any], setting: Setting) -> Trial:
        """Rebuild a setting's trial from values of `COLUMNS`; an error where they make no sense."""
        result = TrialResult(
            error_rate=row["error_rate"],
            lowest_error_rate=row["lowest_error_rate"],
            iterations=row["iterations"],
            diverged=bool(row["diverged"]),
            seconds=row["seconds"],
            empty_workers=row["empty_workers"],
            notes=json.loads(row["notes"]),
            curve=StoredCurve(row["curve"]),
        )
        columns = ("device", "versions", "finished", "protocol")
        return cls(setting, row["seed"], result, **{name: row[name] for name in columns})


class StoredCurve(Sequence):
    """A trial's error curve as the store holds it, JSON text, read when it is first looked at.

    Most of what is done with thousands of trials looks at none.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _points(self) -> list[tuple[int, float, float]]:
        points = json.loads(self._text)
        return [(i, e, math.nan if loss is None else loss) for i, e, loss in points]

    def __getitem__(self, index: Any) -> Any:
        return self._points[index]

    def __len__(self) -> int:
        return len(self._points)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None


def setting_reader() -> Callable[[str], Setting]:
    """Return a function from a setting's JSON text to the setting.

    It remembers, since thousands of trials share a few settings; not beyond one reading, since a
    plug-in that is loaded later changes what a text means.
    """
    return lru_cache(maxsize=None)(lambda text: Setting.from_stored(json.loads(text)))


def _rounded(loss: float) -> float | None:
    return None if math.isnan(loss) else float(f"{loss:.5g}")


def write_csv(path: Path, trials: Iterable[Trial]) -> None:
    """Write finished trials as CSV, atomically; `read_csv` reads them back."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trial.row() for trial in trials)
    write_text(path, text.getvalue())


def names_in(path: Path) -> set[TrialName]:
    """Return the names of the trials that a file of `write_csv` holds, as they stand there."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return {TrialName(row["key"], int(row["seed"]), row["protocol"]) for row in rows}


def read_csv(path: Path, without: Container[TrialName] = ()) -> list[Trial]:
    """Read the trials that `write_csv` wrote, but for those named and those of unknown plug-ins.

    `BadInput` names the file and line that is wrong.
    """
    trials, setting_of = [], setting_reader()
    with path.open(newline="", encoding="utf-8") as file:
        for row in (reader := csv.DictReader(file)):
            try:
                if TrialName(row["key"], int(row["seed"]), row["protocol"]) in without:
                    continue
                told = {**ADDED_LATER, **row}
                values = {
                    name: _CSV_KINDS[kind.split()[0]](told[name]) for name, kind in COLUMNS.items()
                }
                trials.append(Trial.from_row(values, setting_of(values["setting"])))
                len(trials[-1].result.curve)  # reads it now, while its line can be named
            except UnknownName:
                continue
            except (KeyError, TypeError, ValueError) as error:
                raise BadInput(
                    f"{path}, line {reader.line_num}, is not a finished trial ({error}); restore "
                    "the file, or delete it to run its trials again."
                ) from error
    return trials
