"""Distances between all updates, by inner products: what Krum and its attack are made of.

Written so that a non-finite value in a row harms nothing but the distances from that row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fltrust_repro import backend
from fltrust_repro.backend import array_view, module_of, off_diagonal, on_gpu, to_ndarray

if TYPE_CHECKING:
    from fltrust_repro.backend import NDArray

_COLUMNS = 8192


def squared_distances(updates: NDArray) -> Any:
    """Squared Euclidean distances between all rows.

    Parameters
    ----------
    updates : NDArray of shape (m, d), float32

    Returns
    -------
    array of shape (m, m) as `array_view` shows it, float64, zero diagonal. A row that holds a
    non-finite value is at infinite distance from every other row. A distance comes from inner
    products, as |a|^2 + |b|^2 - 2 ab, and is within 1e-5 (|a|^2 + |b|^2) of the true one: products
    of float32 blocks of columns are summed in float64, and where float32 is too narrow for the
    products these are float64 too; on a GPU a row that long is taken for a non-finite one.
    Allocates (m, m) numbers and one block of columns.
    """
    products, finite = _gram_operators(updates) if on_gpu(updates) else _gram_host(updates)
    xp, norms = module_of(products), module_of(products).diag(products)
    squared = xp.maximum(norms[:, None] + norms[None, :] - 2.0 * products, 0.0)
    squared = xp.where(finite[:, None] * finite[None, :], squared, np.inf)
    return xp.where(off_diagonal(squared), squared, 0.0)


def _gram_host(updates: NDArray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of all rows, non-finite ones taken as 0, and which rows are finite."""
    array, _ = array_view(updates)
    m, d = array.shape
    finite = np.ones(m, dtype=bool)
    products = _gram_of_blocks(array)
    if not np.isfinite(products).all():
        # A row is not finite, or float32 products overflowed.
        for block in _blocks(array):
            finite &= np.isfinite(block).all(axis=1)
        return _wide_gram_of_blocks(array, finite), finite
    # Products of values as small as a row's are on average here are lost in float32. Rows of
    # zeros, from workers without examples, are right as they are.
    faint = np.diag(products) < d * np.finfo(np.float32).tiny
    faint[faint] = [array[i].any() for i in np.flatnonzero(faint)]
    if faint.any():
        pairs = np.ix_(faint, faint)
        products[pairs] = _wide_gram_of_blocks(array, faint)[pairs]
    return products, finite


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, array.shape[1], _COLUMNS):
        yield array[:, start : start + _COLUMNS]


def _gram_of_blocks(array: np.ndarray) -> np.ndarray:
    products = np.zeros((len(array), len(array)))
    with np.errstate(invalid="ignore", over="ignore"):
        for block in _blocks(array):
            products += block @ block.T
    return products


def _wide_gram_of_blocks(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products in float64 of the rows marked, which are finite; 0 for the others."""
    products = np.zeros((len(array), len(array)))
    for block in _blocks(array):
        wide = np.where(rows[:, None], block, np.float32(0)).astype(np.float64)
        products += wide @ wide.T
    return products


def _gram_operators(updates: NDArray) -> tuple[Any, Any]:
    m, (_, xp) = len(updates), array_view(updates)
    products = xp.zeros((m, m), dtype="float64", ctx=updates.ctx)
    finite = xp.ones((m,), dtype="bool", ctx=updates.ctx)
    for block in backend.column_blocks(updates):
        good = xp.isfinite(block)
        kept = to_ndarray(xp.where(good, block, xp.zeros_like(block)))
        gram = backend.nd.dot(kept, kept, transpose_b=True)
        products = products + gram.as_np_ndarray().astype("float64")
        finite = finite * good.min(axis=1)
    return products, finite * xp.isfinite(xp.diag(products))
