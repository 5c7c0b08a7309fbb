"""Files of UCI's "Human Activity Recognition Using Smartphones": 30 users, 561 features, 6 classes.

Anguita, Ghio, Oneto, Parra, Reyes-Ortiz (ESANN 2013). Read from UCI's archive, from the archive
that lies in it, or from the folder of text files in that. The archives have a known checksum; of
the text files, which have none, sizes, labels, users and the range of all features are checked.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fltrust_repro import downloads
from fltrust_repro.readers import all_of, faults_of, frozen

ROWS = {"train": 7_352, "test": 2_947}  # by users; here they are divided anew
FEATURES, CLASSES, USERS = 561, 6, 30
INNER_CHECKSUM = "sha256:2045e435c955214b38145fb5fa00776c72814f01b203fec405152dac7d5bfeb0"
_MOST_BYTES = 80 * 2**20  # of a file; the largest has 66,006,256


class Activities(NamedTuple):
    """All examples, of both of the published parts; read-only."""

    x: np.ndarray  # float32 (n, 1, 1, 561), each from -1 to 1
    y: np.ndarray  # int32 (n,), 0..5
    users: np.ndarray  # int32 (n,), 1..30: whose an example is


@lru_cache(maxsize=1)
def read_har(path: Path) -> Activities:
    """Examples from a file that `downloads.locate` found; `BadInput` for wrong contents."""
    with faults_of(path, downloads.remedy_of("har")):
        if path.suffix == ".zip":
            return _parsed(_members(path))
        folder = path.parent.parent  # of X_train.txt
        return _parsed(lambda name: _content(folder / name))


def divided(path: Path, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Read-only `train_x, train_y, test_x, test_y` and whose each training example is.

    Of each user's examples 3/4 are for training, drawn at random (FLTrust, FoundationFL).
    """
    x, y, users = read_har(path)
    trains = np.zeros(len(y), dtype=bool)
    for user in np.unique(users):
        own = rng.permutation(np.flatnonzero(users == user))
        trains[own[: 3 * len(own) // 4]] = True
    parts = x[trains], y[trains], x[~trains], y[~trains], users[trains]
    return tuple(map(frozen, parts))


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return all_of(file, _MOST_BYTES)


def _members(path: Path) -> Callable[[str], bytes]:
    """Read the text files' contents by name, from either archive."""
    content = _content(path)
    if path.name == downloads.HAR_ZIP:
        content = _member(content, downloads.HAR_INNER)
    downloads.check([content], INNER_CHECKSUM)
    return lambda name: _member(content, f"UCI HAR Dataset/{name}")


def _member(content: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if name not in archive.namelist():
            raise ValueError(f"lacks {name!r}")
        with archive.open(name) as file:
            return all_of(file, _MOST_BYTES)


def _parsed(read: Callable[[str], bytes]) -> Activities:
    def numbers(kind: str, columns: int) -> np.ndarray:
        names = {f"{part}/{kind}_{part}.txt": (n, columns) for part, n in ROWS.items()}
        return np.concatenate([_numbers(read(name), name, form) for name, form in names.items()])

    x, y, users = (numbers(*form) for form in (("X", FEATURES), ("y", 1), ("subject", 1)))
    if not (np.abs(x) <= 1).all():
        raise ValueError("has features outside -1..1, or none in some place")
    for what, values, most in (("label", y, CLASSES), ("user", users, USERS)):
        if {*values.ravel().tolist()} != {*range(1, most + 1)}:
            raise ValueError(f"has not each {what} of 1..{most}, and no other")
    return Activities(
        frozen(x.astype(np.float32).reshape(-1, 1, 1, FEATURES)),
        frozen(y.astype(np.int32).ravel() - 1),
        frozen(users.astype(np.int32).ravel()),
    )


def _numbers(text: bytes, name: str, form: tuple[int, int]) -> np.ndarray:
    """A text file of numbers, float64 (lines, columns); missing ones are NaN."""
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(text), sep=r"\s+", header=None, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"holds a {name} that is no table of numbers, or is cut short") from error
    if table.shape != form:
        raise ValueError(f"holds a {name} of {table.shape} lines and columns, not {form}")
    return table.to_numpy()
