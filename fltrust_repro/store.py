"""Finished and failed trials in SQLite, and which trial is being run by whom.

A trial is written in a transaction of its own as it ends, and never replaced. Commands that share
a store claim a trial before they run it, so that none is run twice at the same time; the claim of
a command that died is void.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from fltrust_repro.errors import BadInput, UnknownName
from fltrust_repro.settings import Setting
from fltrust_repro.trials import (
    ADDED_LATER,
    COLUMNS,
    Trial,
    TrialName,
    protocol_of,
    setting_reader,
)

SCHEMA = 1  # of the file, kept in it; 0 is a store from before there was a number
CLAIM_SECONDS = 60  # a claim that its owner has not renewed for so long is void
_NAME = ", ".join(TrialName._fields)
_NAME_COLUMNS = ", ".join(f"{name} {COLUMNS[name]}" for name in TrialName._fields)
_UNLESS_THERE = f"ON CONFLICT ({_NAME}) DO NOTHING"
_SAME = "key = ? AND seed = ? AND protocol = ?"


@dataclass(frozen=True)
class Failure:
    """A trial whose process crashed or raised an error each time it was tried."""

    name: TrialName
    message: str
    details: str  # the traceback, where there is one


class Store:
    """Trials in one SQLite file, created where there is none.

    Raises `BadInput` for a path that cannot be opened or written, or is no such store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._owner = uuid.uuid4().hex
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Transactions are begun in so many words: sqlite3's own begin too late for `claim`.
            self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._prepare()
        except sqlite3.DatabaseError as error:
            remedy = "give --store another file, in a folder that you can write to"
            raise BadInput(f"store {str(path)!r} cannot be used ({error}); {remedy}.") from error
        except OSError as error:
            raise BadInput(
                f"store {str(path)!r} cannot be made ({error.strerror}); give --store a file in a "
                "folder that you can write to."
            ) from error

    @classmethod
    def if_there(cls, path: Path) -> Store:
        """Open a store to look at it; where there is no file an empty one that makes none."""
        return cls(path if path.is_file() else ":memory:")

    def _prepare(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise self._refusal("was written by a newer version of this program")
        found = self._columns()
        if found and sorted({*found, *ADDED_LATER}) != sorted(COLUMNS):
            raise self._refusal("holds other columns than this version writes")
        # Readers then never wait for the writer, nor a writer's crash for a reader's recovery.
        self._connection.execute("PRAGMA journal_mode = WAL")
        with self._transaction():
            self._migrate(found)
            # A change that writes nothing, to learn now and not after hours of training that the
            # file cannot be written.
            self._connection.execute("DELETE FROM trials WHERE 0")

    def _columns(self) -> list[str]:
        return [row[1] for row in self._connection.execute("PRAGMA table_info(trials)")]

    def _refusal(self, problem: str) -> BadInput:
        return BadInput(
            f"store {str(self.path)!r} {problem}; give --store another file and keep the old one."
        )

    def _migrate(self, found: list[str]) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        key = "PRIMARY KEY (key, seed, protocol)"
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS trials ({columns}, {key})")
        for name in sorted(set(COLUMNS) - set(found)) if found else ():
            self._connection.execute(f"ALTER TABLE trials ADD COLUMN {name} {COLUMNS[name]}")
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS failures ({_NAME_COLUMNS}, message TEXT NOT NULL, "
            f"details TEXT NOT NULL, {key})"
        )
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS claims ({_NAME_COLUMNS}, owner TEXT NOT NULL, "
            f"host TEXT NOT NULL, pid INTEGER NOT NULL, renewed REAL NOT NULL, {key})"
        )
        self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; other writers wait from its start on."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._transaction():
                yield
        except sqlite3.Error as error:
            raise BadInput(
                f"store {str(self.path)!r} could not be written ({error}); make room or rights "
                "for it and run the same command again, which goes on where it stopped."
            ) from error

    def close(self) -> None:
        """Give back all claims and close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, *trials: Trial) -> set[TrialName]:
        """Write finished trials durably, all or none; return which the store did not have.

        Ends their claims and failures.
        """
        names = ", ".join(COLUMNS)
        values = ", ".join(f":{name}" for name in COLUMNS)
        insert = f"INSERT INTO trials ({names}) VALUES ({values}) {_UNLESS_THERE}"
        with self._writing():
            added = set()
            for trial in trials:
                if self._connection.execute(insert, trial.row()).rowcount == 1:
                    added.add(trial.name)
                self._forget(trial.name, "claims", "failures")
        return added

    def add_failure(self, failure: Failure) -> None:
        """Write that a trial failed, in place of an earlier failure of it. Ends its claim."""
        with self._writing():
            self._connection.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?)",
                (*failure.name, failure.message, failure.details),
            )
            self._forget(failure.name, "claims")

    def _forget(self, name: TrialName, *tables: str) -> None:
        for table in tables:
            self._connection.execute(f"DELETE FROM {table} WHERE {_SAME}", name)

    def failures(self) -> dict[TrialName, Failure]:
        """Return the trials that failed and have not been finished since."""
        rows = self._connection.execute(
            "SELECT key, seed, protocol, message, details FROM failures"
        )
        return {(name := TrialName(*row[:3])): Failure(name, *row[3:]) for row in rows}

    def claim(self, name: TrialName) -> bool:
        """Take a trial for this command to run, or keep it.

        False if it is finished by now, or if another command that is alive has claimed it.
        """
        with self._writing():
            row = self._connection.execute(
                f"SELECT host, pid, renewed FROM claims WHERE {_SAME} AND owner <> ?",
                (*name, self._owner),
            ).fetchone()
            if self.has(name) or (row is not None and self._alive(*row)):
                return False
            self._connection.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*name, self._owner, self._host, self._pid, time.time()),
            )
        return True

    def renew_claims(self) -> None:
        """Keep this command's claims alive; to be called at least every few seconds."""
        with self._writing():
            self._connection.execute(
                "UPDATE claims SET renewed = ? WHERE owner = ?", (time.time(), self._owner)
            )

    def claimed(self) -> set[TrialName]:
        """Return the trials that commands alive have claimed."""
        rows = self._connection.execute(
            "SELECT key, seed, protocol, host, pid, renewed FROM claims"
        )
        return {TrialName(*row[:3]) for row in rows if self._alive(*row[3:])}

    def _alive(self, host: str, pid: int, renewed: float) -> bool:
        if time.time() - renewed > CLAIM_SECONDS:
            return False
        return host != self._host or _runs(pid)

    def has(self, name: TrialName) -> bool:
        """Whether a trial is finished."""
        found = self._connection.execute(f"SELECT 1 FROM trials WHERE {_SAME}", name)
        return found.fetchone() is not None

    def names(self) -> set[TrialName]:
        """Return the names of all finished trials."""
        return {TrialName(*row) for row in self._connection.execute(f"SELECT {_NAME} FROM trials")}

    def find(self, setting: Setting, seeds: Container[int] | None = None) -> list[Trial]:
        """Return a setting's finished trials of today's protocol, by seed; all seeds by default."""
        cursor = self._connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM trials WHERE key = ? AND protocol = ? ORDER BY seed",
            (setting.key(), protocol_of(setting)),
        )
        rows = (dict(zip(COLUMNS, row)) for row in cursor)
        return [
            Trial.from_row(row, setting) for row in rows if seeds is None or row["seed"] in seeds
        ]

    def error_rates(
        self, setting: Setting, seeds: Container[int], measure: str = "error_rate"
    ) -> list[float]:
        """Return the final error rates of a setting's finished trials, or another column."""
        cursor = self._connection.execute(
            f"SELECT seed, {measure} FROM trials WHERE key = ? AND protocol = ? ORDER BY seed",
            (setting.key(), protocol_of(setting)),
        )
        return [error_rate for seed, error_rate in cursor if seed in seeds]

    def everything(self) -> Iterator[Trial]:
        """Yield all finished trials of every protocol, but for those of plug-ins not loaded."""
        setting_of = setting_reader()
        for values in self._connection.execute(f"SELECT {', '.join(COLUMNS)} FROM trials"):
            row = dict(zip(COLUMNS, values))
            with contextlib.suppress(UnknownName):
                yield Trial.from_row(row, setting_of(row["setting"]))

    def merge(self, path: Path) -> tuple[int, int]:
        """Take over the finished trials of another store, whatever protocol they are of.

        Returns how many trials it has, and how many of these were new. The other store is only
        read. Raises `BadInput` where the file is no store.
        """
        try:
            rows, names = _rows_of(path)
        except sqlite3.Error as error:
            raise BadInput(f"{str(path)!r} is not a store of trials ({error}).") from error
        with self._writing():
            before = self._connection.total_changes
            self._connection.executemany(
                f"INSERT INTO trials ({', '.join(names)}) "
                f"VALUES ({', '.join('?' * len(names))}) {_UNLESS_THERE}",
                rows,
            )
            added = self._connection.total_changes - before
        return len(rows), added


def _rows_of(path: Path) -> tuple[list[tuple], list[str]]:
    """All rows of another store's trials, and their columns; it may be an older one."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        found = {row[1] for row in db.execute("PRAGMA table_info(trials)")}
        if not set(COLUMNS) - set(ADDED_LATER) <= found:
            raise sqlite3.DatabaseError("its table of trials has other columns, or there is none")
        names = [name for name in COLUMNS if name in found]
        return db.execute(f"SELECT {', '.join(names)} FROM trials").fetchall(), names


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
