"""One pass over all updates: how long each is, and their sum under weights of the workers.

What every rule ends with that keeps, shrinks or weighs updates: it decides m weights, and the d
parameters are added up once. Compiled loops that copy no row; sums are float64.
"""

from __future__ import annotations

import numpy as np

from fltrust_repro.compiled import Array, compiled

_COLUMNS = 2048  # their sums take 16 KiB, half of a core's first-level cache


@compiled(fastmath={"reassoc", "nsz", "contract"})
def _squared_lengths(updates: Array, origin: Array, out: Array) -> None:
    for i in range(len(updates)):
        row, total = updates[i], np.float64(0)
        for j in range(row.size):
            away = np.float64(row[j]) - origin[j]
            total += away * away
        out[i] = total


def lengths(updates: np.ndarray, origin: np.ndarray | None = None) -> np.ndarray:
    """Length of each update (m, d), or its distance from `origin` (d,): float64 (m,).

    A row that holds a non-finite value is infinitely long.
    """
    m, d = updates.shape
    out = np.empty(m)
    _squared_lengths(updates, np.zeros(d) if origin is None else origin.astype(np.float64), out)
    return np.sqrt(np.where(np.isfinite(out), out, np.inf))


def finite_rows(updates: np.ndarray) -> np.ndarray:
    """Which rows of updates (m, d) hold finite values only: bool (m,)."""
    return np.isfinite(lengths(updates))


def shortening(long: np.ndarray, most: float) -> np.ndarray:
    """Factors that bring lengths (m,) down to `most`, 0 for an infinite one: float64 (m,)."""
    factors = np.ones(len(long))
    np.divide(most, long, out=factors, where=long > most)
    factors[~np.isfinite(long)] = 0
    return factors


@compiled(fastmath={"contract"})
def _weighted_sum(updates: Array, weights: Array, first: int, out: Array) -> None:
    total = np.empty(_COLUMNS)
    for start in range(0, out.size, _COLUMNS):
        width = min(_COLUMNS, out.size - start)
        total[:] = 0.0
        for i in range(len(weights)):
            if weights[i] != 0:
                weight, row = weights[i], updates[i, first + start : first + start + width]
                for j in range(width):
                    total[j] += weight * row[j]
        for j in range(width):
            out[start + j] = total[j]


def weighted_sum(
    updates: np.ndarray, weights: np.ndarray, columns: slice | None = None
) -> np.ndarray:
    """Sum of each update (m, d) times the weight (m,) of its worker: float64 (d,).

    A row of weight 0 is not looked at: what it holds may be anything. `columns`, from one to
    another, are all unless given.
    """
    columns = columns or slice(0, updates.shape[1])
    out = np.empty(columns.stop - columns.start)
    _weighted_sum(updates, np.asarray(weights, dtype=np.float64), columns.start, out)
    return out


def weighted_mean(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of updates (m, d) under weights (m,) of at least 0: float32 (d,).

    NaN where no worker has any weight.
    """
    total = float(np.sum(weights))
    if total == 0:
        return np.full(updates.shape[1], np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):
        return (weighted_sum(updates, weights) / total).astype(np.float32)


@compiled
def _product(weights: Array, updates: Array, out: Array) -> None:
    np.dot(weights, updates, out)  # by scipy's BLAS, as in `distances.py`


def weighted_sums(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of updates (m, d) under each row of weights, float32 (k, m): float32 (k, d).

    By one product, summed in float32. NaN where a row that is not finite has a weight; it spoils no
    other sum.
    """
    finite = finite_rows(updates)
    rows = updates if finite.all() else np.where(finite[:, None], updates, np.float32(0))
    out = np.empty((len(weights), updates.shape[1]), dtype=np.float32)
    _product(weights, rows, out)
    out[weights[:, ~finite].any(axis=1)] = np.nan
    return out


@compiled
def _sign_votes(updates: Array, out: Array) -> None:
    m, d = updates.shape
    for start in range(0, d, _COLUMNS):
        width = min(_COLUMNS, d - start)
        votes = out[start : start + width]
        for i in range(m):
            row = updates[i, start : start + width]
            for j in range(width):
                votes[j] += np.int32(row[j] > 0) - np.int32(row[j] < 0)


def sign_votes(updates: np.ndarray) -> np.ndarray:
    """Workers whose update raises a parameter less those whose lowers it: int32 (d,).

    Zero and NaN vote for neither.
    """
    out = np.zeros(updates.shape[1], dtype=np.int32)
    _sign_votes(updates, out)
    return out
