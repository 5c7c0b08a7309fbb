"""Distances between all updates, by inner products: what Krum and its attack are made of.

Written so that a non-finite value in a row harms nothing but the distances from that row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fltrust_repro.backend import array_view, on_gpu

if TYPE_CHECKING:
    from fltrust_repro.backend import NDArray

_COLUMNS = 8192


def squared_distances(updates: NDArray) -> np.ndarray:
    """Squared Euclidean distances between all rows.

    Parameters
    ----------
    updates : NDArray of shape (m, d), float32

    Returns
    -------
    numpy array of shape (m, m), float64, zero diagonal. A row that holds a non-finite value is
    at infinite distance from every other row. A distance comes from inner products, as
    |a|^2 + |b|^2 - 2 ab, and is within 1e-5 (|a|^2 + |b|^2) of the true one: products of float32
    blocks of columns are summed in float64, and where float32 is too narrow for the products
    these are float64 too. Allocates (m, m) numbers and one block of columns; a GPU computes in
    float32, copies the updates once, and only the (m, m) products leave it.
    """
    products, finite = _gram_operators(updates) if on_gpu(updates) else _gram_host(updates)
    norms = np.diag(products)
    squared = np.maximum(norms[:, None] + norms[None, :] - 2.0 * products, 0.0)
    squared[~finite, :] = np.inf
    squared[:, ~finite] = np.inf
    np.fill_diagonal(squared, 0.0)
    return squared


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


def _gram_operators(updates: NDArray) -> tuple[np.ndarray, np.ndarray]:
    array, xp = array_view(updates)
    finite = xp.isfinite(array).min(axis=1)
    kept = xp.where(finite.reshape(-1, 1), array, xp.zeros_like(array))
    products = xp.dot(kept, kept.T).asnumpy().astype(np.float64)
    # A row too long for a float32 product counts as non-finite: it is far from every other.
    measurable = finite.asnumpy().astype(bool) & np.isfinite(np.diag(products))
    products[~measurable, :] = 0.0
    products[:, ~measurable] = 0.0
    return products, measurable
