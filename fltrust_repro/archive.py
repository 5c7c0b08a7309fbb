"""Finished and failed trials in one SQLite file, to look at: nothing is written or left beside it.

What is read is checked by `trials`; what fails there stays where it is, and answers to no name.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fltrust_repro.databases import lies, logs_of, opened_to_read, plain_columns
from fltrust_repro.errors import BadInput, LeftOut, UnknownName
from fltrust_repro.settings import Setting
from fltrust_repro.trials import (
    ADDED_LATER,
    TABLES,
    Trial,
    TrialName,
    Unreadable,
    checked,
    protocol_of,
    setting_reader,
)

SCHEMA = 1  # of the file, kept in it; 0 is a store from before there was a number
CLAIM_SECONDS = 60  # a claim that its owner has not renewed for so long is void
MOST_ROWS = 1_000_000  # of a table that are read
SAME_NAME = "key = ? AND seed = ? AND protocol = ?"
Read = TypeVar("Read")
Own = TypeVar("Own", bound="Archive")


@dataclass(frozen=True)
class Failure:
    """A trial whose process crashed or raised an error each time it was tried."""

    name: TrialName
    message: str
    details: str  # the traceback, where there is one


class Archive:
    """Trials in one SQLite file, to look at; none where there is no file.

    `left_out` takes the rows that are not understood. Raises `BadInput` for a file that is no such
    store or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.left_out = Path(path), LeftOut()
        self._lent: dict[tuple[str, str], dict[int, Trial]] = {}  # by key and protocol, then seed
        self._host = socket.gethostname()
        self._lay: tuple[int, int, int] | None = None  # of a file that is read as it lay
        with contextlib.ExitStack() as self._opened:
            try:
                if self.path.exists() and not self.path.is_file():
                    raise BadInput(f"store {str(path)!r} is not a file; give --store a file.")
                self._connect()
            except (OSError, sqlite3.Error) as error:
                raise self._unusable(error) from error
            self._opened = self._opened.pop_all()

    def _connect(self) -> None:
        self._connection = self._opened.enter_context(self._open())
        # What is not UTF-8 must not end the reading of all rows.
        self._connection.text_factory = lambda content: content.decode("utf-8", "replace")
        self._prepare()

    def _open(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        if self.path.is_file():
            self._lay = None if logs_of(self.path) else lies(self.path)
            return opened_to_read(self.path)
        return contextlib.closing(sqlite3.connect(":memory:"))

    def _written_since(self) -> bool:
        """Whether a file without a log, which is read as it lay, has been written to.

        One that is gone is read on as it was.
        """
        return self._lay is not None and self.path.exists() and lies(self.path) != self._lay

    def _check_unwritten(self) -> None:
        if self._written_since():  # pages of before and after may be mixed
            why = "has been written to while it was read; run the same command again"
            raise BadInput(f"store {str(self.path)!r} {why}.")

    def _prepare(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise self._refusal("was written by a newer version of this program")
        self._columns("trials")

    def _unusable(self, error: OSError | sqlite3.Error) -> BadInput:
        why = f"is not a store of trials that can be read ({reason(error)})"
        return BadInput(f"{str(self.path)!r} {why}; give --store, or `import`, another file.")

    def _refusal(self, problem: str, with_trials: bool = False) -> BadInput:
        do = "give --store another file and keep the old one" + f"; {self._saving()}" * with_trials
        return BadInput(f"store {str(self.path)!r} {problem}; {do}.")

    def _saving(self) -> str:
        return f"`import {self.path} --store another.sqlite` saves the trials that can be read"

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def checked_tables(self) -> dict[str, list[str]]:
        """Return the columns of each table; `BadInput` where trials cannot be written to them."""
        query = "SELECT 1 FROM sqlite_master WHERE type = 'trigger'"
        if self._connection.execute(query).fetchone():
            raise self._refusal("holds triggers, which would run as trials are written", True)
        return {table: self._columns(table) for table in TABLES}

    def _columns(self, table: str) -> list[str]:
        """The columns of a table; none where it is not there. `BadInput` where it is not ours."""
        found = plain_columns(self._connection, table)
        if found is None:
            raise self._refusal(f"holds no plain table of {table}")
        ours = set(TABLES[table])
        if found and {*found, *(ours & set(ADDED_LATER))} != ours:
            other = f"holds other columns in its {table} than this version writes"
            raise self._refusal(other, with_trials=table != "trials")
        return found

    def _read(
        self, build: Callable[[dict[str, Any]], Read], table: str, rest: str = "", *values: Any
    ) -> Iterator[Read]:
        """Yield what is built of the first `MOST_ROWS` of a table, but for those that cannot be."""
        try:
            if self._lay is not None and (logs_of(self.path) or self._written_since()):
                self._connect()
            if not (columns := self._columns(table)):
                return
            query = f"SELECT rowid, {', '.join(columns)} FROM {table} {rest} LIMIT {MOST_ROWS + 1}"
            for count, row in enumerate(self._connection.execute(query, values)):
                place = f"row {row[0]}" + f" of its {table}" * (table != "trials")
                try:
                    if count == MOST_ROWS:
                        place = f"from {place} on"
                        raise Unreadable(f"{MOST_ROWS:,} of its {table} are read, no more")
                    built = build(dict(zip(["rowid", *columns], row)))
                except (Unreadable, UnknownName) as error:
                    self.left_out.add(self.path, place, error)
                else:
                    yield built
        except sqlite3.Error as error:
            self._check_unwritten()
            damaged = f"store {str(self.path)!r} is damaged ({error}); {self._saving()}."
            raise BadInput(damaged) from error
        self._check_unwritten()

    def _trials(self, rest: str = "", *values: Any) -> Iterator[Trial]:
        build = partial(Trial.from_row, setting_of=setting_reader())
        return self._read(build, "trials", rest, *values)

    def lend(self, trials: Iterable[Trial]) -> None:
        """Let `find` and `everything` answer with these too, behind the file's and earlier ones."""
        for trial in trials:
            named = self._lent.setdefault((trial.name.key, trial.protocol), {})
            named.setdefault(trial.seed, trial)

    def lent(self, name: TrialName) -> Trial | None:
        """Return the trial of a name that was lent, whatever the file holds."""
        return self._lent.get((name.key, name.protocol), {}).get(name.seed)

    def everything(self) -> Iterable[Trial]:
        """Return all finished trials of every protocol, but for those of plug-ins not loaded."""
        own = {trial.name: trial for trial in self._trials()}
        lent = {trial.name: trial for some in self._lent.values() for trial in some.values()}
        return {**own, **lent, **own}.values()

    def has(self, name: TrialName) -> bool:
        """Whether the file has a finished trial."""
        return any(True for _ in self._trials(f"WHERE {SAME_NAME}", *name))

    def find(self, setting: Setting, seeds: Container[int] | None = None) -> list[Trial]:
        """Return a setting's finished trials of today's protocol, by seed; all seeds by default."""
        of = setting.key(), protocol_of(setting)
        found = dict(self._lent.get(of, {}))
        found.update({t.seed: t for t in self._trials("WHERE key = ? AND protocol = ?", *of)})
        wanted = (trial for seed, trial in sorted(found.items()) if seeds is None or seed in seeds)
        return [trial for trial in wanted if trial.setting == setting]

    def salvaged(self) -> Iterator[Trial]:
        """Yield the file's trials; where it is damaged, what can be read before and after that."""
        last, setting_of = 0, setting_reader()

        def trial(row: dict[str, Any]) -> Trial:
            nonlocal last
            last = row["rowid"]
            return Trial.from_row(row, setting_of)

        try:
            yield from self._read(trial, "trials", "ORDER BY rowid")
        except BadInput as error:
            if not isinstance(error.__cause__, sqlite3.Error):
                raise
            self.left_out.add(self.path, f"after row {last}", Unreadable(str(error.__cause__)))
            with contextlib.suppress(BadInput):
                backwards = "WHERE rowid > ? ORDER BY rowid DESC"
                yield from self._read(trial, "trials", backwards, last)

    def failures(self) -> dict[TrialName, Failure]:
        """Return the trials that failed and have not been finished since."""
        rows = self._read(partial(checked, TABLES["failures"]), "failures")
        return {(name := _name(row)): Failure(name, row["message"], row["details"]) for row in rows}

    def _claims(self, rest: str = "", *values: Any) -> dict[TrialName, dict[str, Any]]:
        """The claims of commands that are alive."""
        rows = self._read(partial(checked, TABLES["claims"]), "claims", rest, *values)
        return {_name(row): row for row in rows if self._alive(row)}

    def claimed(self) -> set[TrialName]:
        """Return the trials that commands alive have claimed."""
        return set(self._claims())

    def owners(self, names: Iterable[TrialName]) -> list[str]:
        """Say which processes alive have claimed some of these trials."""
        claims = self._claims()
        rows = [claims[name] for name in names if name in claims]
        return sorted({f"process {row['pid']} on {row['host']}" for row in rows})

    def _alive(self, claim: dict[str, Any]) -> bool:
        # A clock that was set back must not make a claim that outlives its owner.
        if abs(time.time() - claim["renewed"]) > CLAIM_SECONDS:
            return False
        return claim["host"] != self._host or _runs(claim["pid"], claim["owner"])


def _name(row: dict[str, Any]) -> TrialName:
    return TrialName(row["key"], row["seed"], row["protocol"])


def reason(error: OSError | sqlite3.Error) -> str:
    """Return what went wrong, in the system's words."""
    # Python 3.9 drops SQLite's words where they quote what is no text.
    return str(getattr(error, "strerror", None) or error) or "it is malformed"


def _runs(pid: int, owner: str) -> bool:
    """Whether the process that an owner's claims name runs, and no other of the same number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    told = owner.partition("@")[2]
    return not told or started(pid) in ("", told)


def started(pid: int) -> str:
    """Return when a process began, in ticks since its machine did; empty where no /proc tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot} {ticks}"
