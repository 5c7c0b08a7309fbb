"""Finished trials in SQLite, and as CSV files that can be committed and read back.

A trial is known by its setting's key, its seed and the protocol version under which it ran; it is
written in a transaction of its own as it ends, and never replaced.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sqlite3
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fltrust_repro.errors import BadInput, UnknownName
from fltrust_repro.files import write_text
from fltrust_repro.settings import Setting
from fltrust_repro.training import PROTOCOL, TrialResult

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
_ADDED_LATER = {"notes": "{}"}  # what a trial without the column has in it
_CSV_KINDS = {"TEXT": str, "INTEGER": int, "REAL": float}


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
    def name(self) -> tuple[str, int, str]:
        """What makes the trial unique: setting key, seed, protocol."""
        return self.setting.key(), self.seed, self.protocol

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
    def from_row(cls, row: dict[str, Any]) -> Trial:
        """Rebuild a trial from values of `COLUMNS`; `BadInput` where they make no sense."""
        result = TrialResult(
            error_rate=row["error_rate"],
            lowest_error_rate=row["lowest_error_rate"],
            iterations=row["iterations"],
            diverged=bool(row["diverged"]),
            seconds=row["seconds"],
            empty_workers=row["empty_workers"],
            notes=json.loads(row["notes"]),
            curve=[
                (i, e, math.nan if loss is None else loss)
                for i, e, loss in json.loads(row["curve"])
            ],
        )
        setting = Setting.from_dict(json.loads(row["setting"]))
        columns = ("device", "versions", "finished", "protocol")
        return cls(setting, row["seed"], result, **{name: row[name] for name in columns})


def _rounded(loss: float) -> float | None:
    return None if math.isnan(loss) else float(f"{loss:.5g}")


class Store:
    """Finished trials in one SQLite file, created where there is none.

    Raises `BadInput` for a path that cannot be opened or written, or is no such store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60)
            columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
            with self._connection:
                self._connection.execute(
                    f"CREATE TABLE IF NOT EXISTS trials ({columns}, "
                    "PRIMARY KEY (key, seed, protocol))"
                )
                # A change that writes nothing, to learn now and not after hours of training
                # that the file cannot be written.
                self._connection.execute("DELETE FROM trials WHERE 0")
            self._check_columns()
        except sqlite3.DatabaseError as error:
            remedy = "give --store another file, in a folder that you can write to"
            raise BadInput(f"store {str(path)!r} cannot be used ({error}); {remedy}.") from error
        except OSError as error:
            raise BadInput(
                f"store {str(path)!r} cannot be made ({error.strerror}); give --store a file in a "
                "folder that you can write to."
            ) from error

    def _check_columns(self) -> None:
        found = [row[1] for row in self._connection.execute("PRAGMA table_info(trials)")]
        if sorted({*found, *_ADDED_LATER}) == sorted(COLUMNS):
            for name in sorted(set(COLUMNS) - set(found)):
                self._connection.execute(f"ALTER TABLE trials ADD COLUMN {name} {COLUMNS[name]}")
                found.append(name)
        if sorted(found) != sorted(COLUMNS):
            raise BadInput(
                f"store {str(self.path)!r} holds other columns than this version writes; give "
                "--store another file and keep the old one."
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, trial: Trial) -> bool:
        """Write one finished trial durably; False if the store had it."""
        row = trial.row()
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        try:
            with self._connection:
                cursor = self._connection.execute(
                    f"INSERT OR IGNORE INTO trials ({names}) VALUES ({values})", row
                )
        except sqlite3.Error as error:
            raise BadInput(
                f"store {str(self.path)!r} could not be written ({error}); make room or rights "
                "and run the same command again, it goes on where it stopped."
            ) from error
        return cursor.rowcount == 1

    def find(self, setting: Setting, seeds: Container[int] | None = None) -> list[Trial]:
        """Return the finished trials of a setting by seed: those among `seeds`, or all."""
        cursor = self._connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM trials WHERE key = ? AND protocol = ? ORDER BY seed",
            (setting.key(), protocol_of(setting)),
        )
        rows = (dict(zip(COLUMNS, row)) for row in cursor)
        return [Trial.from_row(row) for row in rows if seeds is None or row["seed"] in seeds]

    def everything(self) -> Iterator[Trial]:
        """Yield all finished trials of every protocol, but for those of plug-ins not loaded."""
        for row in self._connection.execute(f"SELECT {', '.join(COLUMNS)} FROM trials"):
            with contextlib.suppress(UnknownName):
                yield Trial.from_row(dict(zip(COLUMNS, row)))


def write_csv(path: Path, trials: Iterable[Trial]) -> None:
    """Write finished trials as CSV, atomically; `read_csv` reads them back."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trial.row() for trial in trials)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[Trial]:
    """Read the trials that `write_csv` wrote, but for those of plug-ins that are not loaded.

    `BadInput` names the file and line that is wrong.
    """
    trials = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in (reader := csv.DictReader(file)):
            try:
                told = {**_ADDED_LATER, **row}
                values = {
                    name: _CSV_KINDS[kind.split()[0]](told[name]) for name, kind in COLUMNS.items()
                }
                trials.append(Trial.from_row(values))
            except UnknownName:
                continue
            except (KeyError, TypeError, ValueError) as error:
                raise BadInput(
                    f"{path}, line {reader.line_num}, is not a finished trial ({error}); restore "
                    "the file, or delete it to run its trials again."
                ) from error
    return trials
