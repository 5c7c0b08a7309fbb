"""SQLite files that others may have written, opened to read nothing but plain tables."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def opened_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database without writing to it or leaving anything beside it.

    Without a log beside it the file is whole as it lies, on a read-only disk too. With a log, the
    command that writes it may be alive: its index of the log (-shm) then tells what is valid. A log
    without that index was copied here, or lies where nothing can be written; so the two are read
    from a copy.
    """
    path = path.resolve()
    logs = [log for end in ("wal", "journal") if (log := Path(f"{path}-{end}")).exists()]
    with contextlib.ExitStack() as stack:
        if not logs:
            connection = _connected(f"{path.as_uri()}?mode=ro&immutable=1")
        elif Path(f"{path}-shm").exists() and _reads(path):
            connection = _connected(f"{path.as_uri()}?mode=ro")
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for file in (path, *logs):
                shutil.copyfile(file, folder / file.name)
            connection = _connected((folder / path.name).as_uri())
        stack.callback(connection.close)
        connection.execute("PRAGMA trusted_schema = OFF")
        yield connection


def _connected(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)


def _reads(path: Path) -> bool:
    with contextlib.closing(_connected(f"{path.as_uri()}?mode=ro")) as connection:
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError:
            return False
    return True


def readable_text(content: bytes) -> str:
    """Text of a column; what is not UTF-8 must not end the reading of all rows."""
    return content.decode("utf-8", "replace")


def plain_columns(connection: sqlite3.Connection, table: str) -> list[str] | None:
    """Return a table's columns; an empty list where there is no such table.

    None for a view or a virtual table: reading one runs what its author wrote.
    """
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


def has_triggers(connection: sqlite3.Connection) -> bool:
    """Whether writing to the database would run what somebody wrote into it."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'trigger'")
    return found.fetchone() is not None
