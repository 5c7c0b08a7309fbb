"""Squared distances between all updates, from inner products: what Krum and its attack look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fltrust_repro import backend
from fltrust_repro.backend import (
    as_updates,
    host_view,
    module_of,
    on_gpu,
    take_rows,
    to_ndarray,
)
from fltrust_repro.blas import lower_gram
from fltrust_repro.compiled import compiled

if TYPE_CHECKING:
    from fltrust_repro.backend import NDArray

_COLUMNS = 8192
_CROWD = 2.0**-4  # half of the rows lie within this share of a row's own squared length


def squared_distances(updates: NDArray) -> Any:
    """Squared Euclidean distances between all rows.

    Parameters
    ----------
    updates : NDArray of shape (m, d), float32

    Returns
    -------
    array of shape (m, m) as `array_view` shows it, float64, exactly symmetric, zero diagonal. A row
    that holds a non-finite value is at infinite distance from every other row. A distance comes
    from inner products, as |a|^2 + |b|^2 - 2 ab, and is within 1e-5 (|a|^2 + |b|^2) of the true
    one, where lengths are taken from one of the rows on if most rows share a large part: products
    of float32 blocks of columns are summed in float64, and where float32 is too narrow for the
    products these are float64 too; on a GPU a row that long is taken for a non-finite one.
    Allocates (m, m) numbers and one block of columns.

    Raises
    ------
    BadInput
        Not a matrix of numbers.
    """
    updates = as_updates(updates, "squared_distances")
    gram = _gram_operators if on_gpu(updates) else _gram_host
    products, finite = gram(updates, None)
    squared = distances_from(products, finite)
    # The host does not wait for a GPU to tell whether it is worth it.
    if on_gpu(updates) or _crowded(squared, np.diag(products)):
        squared = distances_from(*gram(updates, _middle(squared)))
    return squared


def distances_from(products: Any, finite: Any) -> Any:
    """Squared distances from the inner products (m, m) and which rows are finite.

    Only the lower triangle of `products` is looked at: a product routine may round an entry and
    its mirror image differently, and Krum would break a tie by that.
    """
    xp, norms = module_of(products), module_of(products).diag(products)
    squared = xp.maximum(norms[:, None] + norms[None, :] - 2.0 * products, 0.0)
    if xp is not np or not finite.all():
        squared = xp.where(finite[:, None] * finite[None, :], squared, np.inf)
    lower = xp.tril(squared, -1)
    return lower + lower.T


@compiled(fastmath={"reassoc", "nsz", "contract"})
def _wide_products(rows: np.ndarray, other: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(rows)):
        row, squares, across = rows[i], 0.0, 0.0
        for j in range(row.size):
            value = np.float64(row[j])
            squares += value * value
            across += value * other[j]
        out[0, i], out[1, i] = squares, across


def lengths_and_slopes(rows: Any, direction: Any) -> Any:
    """Squared length of each row, and its inner product with a direction: float64 (2, n).

    In float64 also inside the sums on the host: the Krum attack adds both up to distances that may
    be far smaller, and no length of float32 values overflows.
    """
    if module_of(rows) is np:
        out = np.empty((2, len(rows)))
        _wide_products(rows, direction, out)
        return out
    xp = module_of(rows)
    products = [xp.einsum("ij,ij->i", rows, rows), xp.dot(rows, direction)]
    return xp.stack(products).astype("float64")


def _crowded(squared: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether half of all rows lie so close to one that the difference of products cancels.

    Close by its squared length. Fewer than half, being an attacker's, can neither cause that nor
    prevent it.
    """
    near = squared < _CROWD * lengths[:, None]
    return bool((np.count_nonzero(near, axis=1) > len(squared) // 2).any())


def _middle(squared: Any) -> Any:
    """The row that half of all rows lie closest around, shape (1,): not far from most."""
    reach = module_of(squared).sort(squared, axis=1)[:, len(squared) // 2]
    return reach.reshape(1, -1).argmin(axis=1)


def _gram_host(updates: NDArray, origin: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of all rows, non-finite ones taken as 0, and which rows are finite.

    Of the rows' differences to row `origin`, unless that is None.
    """
    array = host_view(updates)
    m, d = array.shape
    finite = np.ones(m, dtype=bool)
    products = _gram_of_blocks(array, origin)
    if not np.isfinite(products).all():
        # A row is not finite, or float32 products overflowed.
        for block in _blocks(array, None):
            finite &= np.isfinite(block).all(axis=1)
        return _wide_gram_of_blocks(array, finite, origin), finite
    # Products of values as small as a row's are on average here are lost in float32. Rows of
    # zeros, from workers without examples, are right as they are.
    faint = np.diag(products) < d * np.finfo(np.float32).tiny
    zero = 0 if origin is None else array[origin][0]
    faint[faint] = [(array[i] != zero).any() for i in np.flatnonzero(faint)]
    if faint.any():
        pairs = np.ix_(faint, faint)
        products[pairs] = _wide_gram_of_blocks(array, faint, origin)[pairs]
    return products, finite


def _blocks(array: np.ndarray, origin: Any) -> Iterator[np.ndarray]:
    for start in range(0, array.shape[1], _COLUMNS):
        block = array[:, start : start + _COLUMNS]
        yield block if origin is None else block - block[origin]


def _gram_of_blocks(array: np.ndarray, origin: Any) -> np.ndarray:
    m = len(array)
    products, part = np.zeros((m, m)), np.zeros((m, m), dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for block in _blocks(array, origin):
            lower_gram(block, part)
            products += part
    return products


def _wide_gram_of_blocks(array: np.ndarray, rows: np.ndarray, origin: Any) -> np.ndarray:
    """Inner products in float64 of the rows marked, which are finite; 0 for the others."""
    products = np.zeros((len(array), len(array)))
    for block in _blocks(array, None):
        wide = np.where(rows[:, None], block, np.float32(0)).astype(np.float64)
        if origin is not None:
            wide = np.where(rows[:, None], wide - block[origin], 0.0)
        products += wide @ wide.T
    return products


def _gram_operators(updates: NDArray, origin: Any) -> tuple[Any, Any]:
    m, xp = len(updates), module_of(updates.as_np_ndarray())
    products = xp.zeros((m, m), dtype="float64", ctx=updates.ctx)
    finite = xp.ones((m,), dtype="bool", ctx=updates.ctx)
    for block in backend.column_blocks(updates):
        good = xp.isfinite(block)
        kept = to_ndarray(xp.where(good, block, xp.zeros_like(block)))
        if origin is not None:
            kept = kept - take_rows(kept, origin)
        gram = backend.nd.dot(kept, kept, transpose_b=True)
        products = products + gram.as_np_ndarray().astype("float64")
        finite = finite * good.min(axis=1)
    return products, finite * xp.isfinite(xp.diag(products))
