"""What files may be called; files written whole or not at all, that outlast a power cut."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fltrust_repro.errors import BadInput, shown

_LONGEST_NAME = 100  # bytes; files beside it have longer ones, and 255 is the system's limit


def check_name(what: str, name: str) -> None:
    """Raise `BadInput` unless `name` can be part of the name of a file, in the folder meant."""
    # NAME.trials.csv is the file of trials of another name.
    right = re.fullmatch(r"\w[\w.-]*", name) and not name.lower().endswith(".trials")
    if not right or len(name.encode()) > _LONGEST_NAME:
        raise BadInput(
            f"{what} is {shown(name)}; give at most {_LONGEST_NAME} letters, digits, '-', '_' and "
            "'.', a letter or digit first, and no '.trials' at the end."
        )


def in_name(text: str, most: int | None = None) -> str:
    """Return a text as it can stand in a file's name, cut to so many bytes.

    >>> from fltrust_repro.files import in_name
    >>> in_name("gas:base=krum + clip", most=10)
    'gas-base-k'
    """
    return re.sub(r"[^\w.-]+", "-", text).encode()[:most].decode(errors="ignore")


def path_of(text: str | Path) -> Path:
    """Return the path that a user typed, with ~ replaced; `BadInput` where it cannot be one."""
    text = str(text)
    if not text or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        wanted = "one of UTF-8 without line breaks and the like"
        raise BadInput(f"{shown(text)} is no path; give {wanted}.")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{shown(text)} is in the home of no user; write the path out.") from error
    try:
        path.exists()  # whether the system can look for it at all
        path.resolve()
    except (OSError, RuntimeError) as error:  # the latter of Python before 3.13
        fault = getattr(error, "strerror", None) or "a loop of links"
        told = f"{shown(text)} cannot be looked for ({fault}); give another path."
        raise BadInput(told) from error
    return path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and hold its lock: of several commands one at a time adds to its files."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some systems of files have no locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def is_there(path: Path) -> bool:
    """Whether there is anything at a path, and the system can look for it."""
    with contextlib.suppress(OSError):
        return path.exists()
    return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, and the system can look for it."""
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def is_file(path: Path) -> bool:
    """Whether there is such a file, and the system can look for it."""
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def check_writable(folder: Path, option: str = "--out") -> None:
    """Raise `BadInput` where no file can be written to a folder, made where there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(folder, error, option) from error


def _not_writable(path: Path, error: OSError, option: str = "--out") -> BadInput:
    remedy = f"give {option} a folder that you can write to"
    return BadInput(f"{path} cannot be written ({error.strerror}); {remedy}.")


def writable(folder: Path) -> bool:
    """Whether files may be made in `folder`."""
    # Root may write anywhere, so the mode decides too: who marks data read-only means it.
    return os.access(folder, os.W_OK | os.X_OK) and bool(folder.stat().st_mode & 0o222)


def can_hold(folder: Path) -> bool:
    """Whether files may be made in `folder`, which may have to be made itself; makes nothing."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        return there.is_dir() and writable(there)
    except OSError:
        return False


def cache_folders(program: str) -> Iterator[Path]:
    """Yield where a program may keep what it can make again, first choice first.

    In $XDG_CACHE_HOME, else ~/.cache; then a temporary folder that is the user's alone, which is
    made when it is asked for. OSError where that cannot be made.
    """
    with contextlib.suppress(RuntimeError):  # a user without a home
        chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
        yield (chosen if chosen.is_absolute() else Path("~/.cache").expanduser()) / program
    # What is read from there may be run, so that nobody else may be able to write it.
    shared = Path(tempfile.gettempdir(), f"{program}-{os.getuid()}")
    shared.mkdir(mode=0o700, exist_ok=True)
    state = shared.lstat()
    if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077:
        yield shared


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; `BadInput` where the folder cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; `BadInput` where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # before the name points to it
            Path(name).chmod(0o644)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error
    with contextlib.suppress(OSError):  # some systems and disks know no such thing
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
