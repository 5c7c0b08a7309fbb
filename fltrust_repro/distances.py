"""Squared distances between all updates, from inner products: what Krum and its attack look at.

The products are scipy's BLAS's: the newest at hand, which knows the CPU where older ones do not.
numpy 1.26 and MXNet 1.9 bring an OpenBLAS of their own; on a CPU newer than they are, these fall
back to kernels of 2004, several times slower. scipy offers its own to C, and numba's `np.dot`
calls it, too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address

from fltrust_repro.compiled import compiled
from fltrust_repro.doors import Numbers, as_updates

_COLUMNS = 8192
_CROWD = 2.0**-4  # half of the rows lie within this share of a row's own squared length


def squared_distances(updates: Numbers) -> np.ndarray:
    """Squared Euclidean distances between all rows of updates (m, d).

    Returns float64 (m, m), exactly symmetric with a zero diagonal. A row that holds a non-finite
    value is at infinite distance from every other. A distance comes from inner products, as
    |a|^2 + |b|^2 - 2 ab, and is within 1e-5 (|a|^2 + |b|^2) of the true one, where lengths are
    taken from one of the rows on if most rows share a large part: products of float32 blocks of
    columns are summed in float64, and where float32 is too narrow for the products these are
    float64 too. Allocates (m, m) numbers and one block of columns.
    """
    array = as_updates(updates, "squared_distances")
    products, finite = _gram(array, None)
    squared = distances_from(products, finite)
    near = squared < _CROWD * np.diag(products)[:, None]
    # Whether half of all rows lie so close to one that products cancel: fewer, being an attacker's,
    # can neither cause nor prevent it.
    if (np.count_nonzero(near, axis=1) > len(squared) // 2).any():
        # From the row that half of all rows lie closest around: it is not far from most.
        middle = np.sort(squared, axis=1)[:, len(squared) // 2].argmin()
        squared = distances_from(*_gram(array, array[middle]))
    return squared


def distances_from(products: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Squared distances from the inner products (m, m) and which rows are finite.

    Only the lower triangle of `products` is looked at: a product routine may round an entry and
    its mirror image differently, and Krum would break a tie by that.
    """
    norms = np.diag(products)
    squared = np.maximum(norms[:, None] + norms[None, :] - 2.0 * products, 0.0)
    if not finite.all():
        squared = np.where(finite[:, None] & finite[None, :], squared, np.inf)
    lower = np.tril(squared, -1)
    return lower + lower.T


@compiled(fastmath={"reassoc", "nsz", "contract"})
def _wide_products(rows: np.ndarray, other: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(rows)):
        row = rows[i]
        squares = across = np.float64(0)
        for j in range(row.size):
            value = np.float64(row[j])
            squares += value * value
            across += value * other[j]
        out[0, i], out[1, i] = squares, across


def lengths_and_slopes(rows: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Squared length of each row, and its inner product with a direction: float64 (2, n).

    In float64 also inside the sums: the Krum attack adds both up to distances that may be far
    smaller, and no length of float32 values overflows.
    """
    out = np.empty((2, len(rows)))
    _wide_products(rows, direction, out)
    return out


def _gram(array: np.ndarray, origin: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of all rows, or of their differences to `origin`, and which rows are finite.

    Non-finite rows are taken as 0.
    """
    m, d = array.shape
    finite = np.ones(m, dtype=bool)
    products = _gram_of_blocks(array, origin)
    if not np.isfinite(products).all():
        # A row is not finite, or float32 products overflowed.
        for block, _ in _blocks(array, None):
            finite &= np.isfinite(block).all(axis=1)
        return _wide_gram_of_blocks(array, finite, origin), finite
    # Products of values as small as a row's are on average here are lost in float32. Rows of
    # zeros, from workers without examples, are right as they are.
    faint = np.diag(products) < d * np.finfo(np.float32).tiny
    zero = 0 if origin is None else origin
    faint[faint] = [(array[i] != zero).any() for i in np.flatnonzero(faint)]
    if faint.any():
        pairs = np.ix_(faint, faint)
        products[pairs] = _wide_gram_of_blocks(array, faint, origin)[pairs]
    return products, finite


def _blocks(
    array: np.ndarray, origin: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray | np.float32]]:
    """Blocks of columns, and what of `origin` belongs to them."""
    for start in range(0, array.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        yield array[:, columns], np.float32(0) if origin is None else origin[columns]


def _gram_of_blocks(array: np.ndarray, origin: np.ndarray | None) -> np.ndarray:
    m = len(array)
    products, part = np.zeros((m, m)), np.zeros((m, m), dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for block, start in _blocks(array, origin):
            lower_gram(block if origin is None else block - start, part)
            products += part
    return products


def _wide_gram_of_blocks(
    array: np.ndarray, rows: np.ndarray, origin: np.ndarray | None
) -> np.ndarray:
    """Inner products in float64 of the rows marked, which are finite; 0 for the others."""
    products = np.zeros((len(array), len(array)))
    for block, start in _blocks(array, origin):
        wide = np.where(rows[:, None], block, np.float32(0)).astype(np.float64)
        wide = np.where(rows[:, None], wide - start, 0.0)
        products += wide @ wide.T
    return products


@cache
def _ssyrk() -> Callable[..., None]:
    address = get_cython_function_address("scipy.linalg.cython_blas", "ssyrk")
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 10)(address)


def lower_gram(block: np.ndarray, out: np.ndarray) -> None:
    """Inner products of all rows of a block: the lower triangle of `out`, the rest untouched.

    `block`, float32 (m, k), k >= 1, has rows at any distance and is not copied; `out` is float32
    (m, m), row after row.
    """
    m, k = block.shape
    rows = ctypes.c_int(block.strides[0] // block.itemsize)

    def number(value: int) -> Any:
        return ctypes.byref(ctypes.c_int(value))

    one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
    # To Fortran a C-contiguous matrix is its transpose, so that its upper triangle is our lower.
    _ssyrk()(
        ctypes.c_char_p(b"U"), ctypes.c_char_p(b"T"), number(m), number(k), ctypes.byref(one),
        ctypes.c_void_p(block.ctypes.data), ctypes.byref(rows), ctypes.byref(zero),
        ctypes.c_void_p(out.ctypes.data), number(m),
    )  # fmt: skip
