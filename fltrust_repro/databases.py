"""SQLite files that others may have written, or write: read without leaving anything beside."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fltrust_repro.errors import BadInput


def lies(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is written to, or is another one."""
    told = path.stat()
    return told.st_ino, told.st_size, told.st_mtime_ns


def logs_of(path: Path) -> list[Path]:
    """Return the logs beside a database: where there are any, a command may be writing to it."""
    path = path.resolve()
    return [log for end in ("wal", "journal") if (log := Path(f"{path}-{end}")).exists()]


@contextlib.contextmanager
def opened_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database without writing to it or leaving anything beside it.

    Without a log beside it the file is whole as it lies, until somebody writes to it. With a log,
    the command that writes it may be alive: its index of the log (-shm) then tells what is valid.
    A log without that index was copied here, or lies where nothing can be written; so the two are
    read from a copy. `BadInput` where none can be made; `OSError` for a file that may not be read.
    """
    path = path.resolve()
    path.open("rb").close()  # SQLite would not say why it cannot
    logs = logs_of(path)
    with contextlib.ExitStack() as stack:
        if not logs:
            uri = f"{path.as_uri()}?mode=ro&immutable=1"
        elif Path(f"{path}-shm").exists() and _reads(path):
            uri = f"{path.as_uri()}?mode=ro"
        else:
            uri = stack.enter_context(_copied(path, logs)).as_uri()
        connection = stack.enter_context(_connected(uri))
        connection.execute("PRAGMA trusted_schema = OFF")
        yield connection


@contextlib.contextmanager
def _copied(path: Path, logs: Iterable[Path]) -> Iterator[Path]:
    """Copy a database and its logs for as long as it is read."""
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for file in (path, *logs):
                shutil.copyfile(file, folder / file.name)
        except OSError as error:
            beside = ", ".join(log.name for log in logs)
            raise BadInput(
                f"store {str(path)!r} has a log beside it ({beside}) and is read from a copy; it "
                f"cannot be made ({error}); set TMPDIR to a folder with room that you can write to."
            ) from error
        yield folder / path.name


def _connected(uri: str) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None))


def _reads(path: Path) -> bool:
    with _connected(f"{path.as_uri()}?mode=ro") as connection:
        try:
            return bool(connection.execute("PRAGMA schema_version").fetchone())
        except sqlite3.OperationalError:
            return False


def plain_columns(connection: sqlite3.Connection, table: str) -> list[str] | None:
    """Return a table's columns, none where there is no such table; None for a view and the like."""
    # To read a view or a virtual table runs what its author wrote.
    query = "SELECT type, rootpage FROM sqlite_master WHERE name = ? COLLATE NOCASE"
    try:
        found = connection.execute(query, (table,)).fetchone()
    except UnicodeDecodeError:  # in SQLite's own message, which quotes what is wrong
        raise sqlite3.DatabaseError("malformed database schema") from None
    if found is None:
        return []
    if found[0] != "table" or not found[1]:
        return None
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
