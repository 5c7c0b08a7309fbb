"""The store of trials as commands write it, and which trial is being run by whom.

A trial is written as it ends, and never replaced. Commands that share a store claim a trial before
they run it, so that none is run twice at the same time; the claim of a command that died is void.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fltrust_repro.archive import SAME_NAME, SCHEMA, Archive, Failure, reason, started
from fltrust_repro.errors import BadInput
from fltrust_repro.trials import COLUMNS, TABLES, Trial, TrialName

_WAIT_SECONDS = 60  # for another command that writes
_BATCH = 1000  # trials that are taken over in one transaction


class Store(Archive):
    """Trials in one SQLite file, created where there is none, to be written too.

    Raises `BadInput` for a path that cannot be opened or written, or is no such store.
    """

    def __init__(self, path: str | Path) -> None:
        self._pid = os.getpid()
        self._owner = f"{uuid.uuid4().hex}@{started(self._pid)}"
        super().__init__(path)
        self._place = _place(self.path)

    def _open(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Transactions are begun in so many words: sqlite3's own begin too late for `claim`.
        opened = sqlite3.connect(self.path.absolute(), timeout=_WAIT_SECONDS, isolation_level=None)
        return contextlib.closing(opened)

    def _unusable(self, error: OSError | sqlite3.Error) -> BadInput:
        do = "give --store another file, in a folder that you can write to"
        return BadInput(f"store {str(self.path)!r} cannot be used ({reason(error)}); {do}.")

    def _prepare(self) -> None:
        super()._prepare()
        found = self.checked_tables()
        self._log_ahead()
        with self._transaction():
            self._migrate(found)
            # A change that writes nothing, to learn now and not after hours of training that the
            # file cannot be written.
            self._connection.execute("DELETE FROM trials WHERE 0")

    def _log_ahead(self) -> None:
        """Let readers never wait for the writer, nor a writer's crash for a reader's recovery."""
        # Where several commands make the same store at once, SQLite does not wait by itself.
        for left in reversed(range(_WAIT_SECONDS * 20)):
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not left or "locked" not in str(error):
                    raise
            time.sleep(1 / 20)

    def _migrate(self, found: dict[str, list[str]]) -> None:
        for table, columns in TABLES.items():
            told = ", ".join(f"{name} {column.sql}" for name, column in columns.items())
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table} ({told}, PRIMARY KEY (key, seed, protocol))"
            )
            for name in sorted(set(columns) - set(found[table])) if found[table] else ():
                sql = columns[name].sql
                self._connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {sql}")
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
            self._check_place()
            do = "make room or rights for it and run the same command again, which goes on"
            why = f"store {str(self.path)!r} could not be written ({error})"
            raise BadInput(f"{why}; {do} where it stopped.") from error
        self._check_place()

    def _check_place(self) -> None:
        """Raise `BadInput` where the file was removed, moved or replaced; save its trials first."""
        if _place(self.path) != self._place:
            gone = f"store {str(self.path)!r} is no longer where this command found it"
            raise BadInput(f"{gone}; {self._rescue()}.")

    def _rescue(self) -> str:
        """Write what the open file holds to a new one; say where."""
        name = f"{self.path.stem}.rescued-{self._owner[:8]}.sqlite"
        for folder in (self.path.parent, Path(tempfile.gettempdir())):
            with contextlib.suppress(sqlite3.Error):
                # Else the log would be taken for that of the file that has its place now.
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                with contextlib.closing(sqlite3.connect(folder / name)) as copy:
                    self._connection.backup(copy)
                return f"its trials were written to {folder / name}: `import` them, or move it back"
        return "its trials could not be written to another place"

    def close(self) -> None:
        """Give back all claims and close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
        super().close()

    def add(self, *trials: Trial) -> set[TrialName]:
        """Write finished trials, all or none, end their claims and failures; return the new."""
        added = set()
        with self._writing():
            for trial in trials:
                if not self.has(trial.name):
                    # What else has this name is not understood: kept, and no longer in the way.
                    aside = f"UPDATE trials SET key = key || ' aside ' || rowid WHERE {SAME_NAME}"
                    self._connection.execute(aside, trial.name)
                    self._insert("trials", *map(trial.row().get, COLUMNS))
                    added.add(trial.name)
                self._forget(trial.name, "claims", "failures")
        return added

    def add_failure(self, failure: Failure) -> None:
        """Write that a trial failed, in place of an earlier failure of it. Ends its claim."""
        with self._writing():
            self._insert("failures", *failure.name, failure.message, failure.details)
            self._forget(failure.name, "claims")

    def _insert(self, table: str, *values: Any) -> None:
        """Write a row, in place of another of its name, but a trial in place of none."""
        insert = "INSERT" + " OR REPLACE" * (table != "trials")
        names, marks = ", ".join(TABLES[table]), ", ".join("?" * len(values))
        self._connection.execute(f"{insert} INTO {table} ({names}) VALUES ({marks})", values)

    def _forget(self, name: TrialName, *tables: str) -> None:
        for table in tables:
            self._connection.execute(f"DELETE FROM {table} WHERE {SAME_NAME}", name)

    def claim(self, name: TrialName) -> bool:
        """Take or keep a trial to run; False if it is finished, or claimed by a command alive."""
        with self._writing():
            others = self._claims(f"WHERE {SAME_NAME} AND owner <> ?", *name, self._owner)
            if self.has(name) or others:
                return False
            self._insert("claims", *name, self._owner, self._host, self._pid, time.time())
        return True

    def renew_claims(self) -> None:
        """Keep this command's claims alive; to be called at least every few seconds."""
        with self._writing():
            renewed = "UPDATE claims SET renewed = ? WHERE owner = ?"
            self._connection.execute(renewed, (time.time(), self._owner))

    def merge(self, path: Path) -> tuple[int, int]:
        """Take over the finished trials of another store, of a damaged one what can be read.

        Returns how many it has, and how many of these were new. Raises `BadInput` where the file is
        no store.
        """
        found = added = 0
        with Archive(path) as other:
            other.left_out = self.left_out
            trials = other.salvaged()
            while batch := list(islice(trials, _BATCH)):
                found, added = found + len(batch), added + len(self.add(*batch))
        return found, added


def _place(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that takes its path; None where there is no file."""
    try:
        found = path.stat()
        return found.st_dev, found.st_ino
    except OSError:
        return None
