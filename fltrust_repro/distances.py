"""Squared distances between all updates, from inner products: what Krum and its attack look at.

The products are those of scipy's BLAS, the newest at hand, which numba's `np.dot` calls too: on a
CPU newer than they are, numpy 1.26's and MXNet 1.9's fall back to kernels of 2004, several times
slower.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fltrust_repro.compiled import compiled
from fltrust_repro.doors import Numbers, as_updates
from fltrust_repro.weighing import finite_rows

_COLUMNS = 8192
_CROWD = 2.0**-4  # half of the rows lie within this share of a row's own squared length


def squared_distances(updates: Numbers, factors: np.ndarray | None = None) -> np.ndarray:
    """Squared Euclidean distances between all rows of updates (m, d), times their factors (m,).

    Returns float64 (m, m), exactly symmetric with a zero diagonal. A row that holds a non-finite
    value is at infinite distance from every other. A distance comes from inner products, as
    |a|^2 + |b|^2 - 2 ab, and is within 1e-5 (|a|^2 + |b|^2) of the true one, where lengths are
    taken from one of the rows on if most rows share a large part: products of float32 blocks of
    columns are summed in float64, and where float32 is too narrow for the products these are
    float64 too. Allocates (m, m) numbers and one block of columns.
    """
    return distances_from(*products_amid(as_updates(updates, "squared_distances"), factors))


def products_amid(
    updates: np.ndarray, factors: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return `inner_products` as seen from zero, or from amid the rows where these lie far from it.

    That is where most of them share so large a part that their distances would cancel; then they
    are seen from one of them. What depends on differences of rows alone is the same.
    """
    products, finite = inner_products(updates, factors=factors)
    squared = distances_from(products, finite)
    near = squared < _CROWD * np.diag(products)[:, None]
    # Whether half of all rows lie so close to one that products cancel: fewer, being an attacker's,
    # can neither cause nor prevent it.
    if (np.count_nonzero(near, axis=1) > len(squared) // 2).any():
        # From the row that half of all rows lie closest around: it is not far from most.
        middle = np.sort(squared, axis=1)[:, len(squared) // 2].argmin()
        factor = np.float32(1 if factors is None else factors[middle])
        return inner_products(updates, factor * updates[middle], factors)
    return products, finite


def distances_from(products: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Squared distances from the inner products (m, m) and which rows are finite.

    Only the lower triangle is looked at: a product routine may round an entry and its mirror image
    differently, and Krum would break a tie by that.
    """
    norms = np.diag(products)
    squared = np.maximum(norms[:, None] + norms[None, :] - 2.0 * products, 0.0)
    if not finite.all():
        squared = np.where(finite[:, None] & finite[None, :], squared, np.inf)
    lower = np.tril(squared, -1)
    return lower + lower.T


def cosines(products: np.ndarray) -> np.ndarray:
    """Cosines from inner products (m, m), rounded as these are: float64; 0 where a row is zeros."""
    squared = np.diag(products)
    scale = np.sqrt(squared[:, None] * squared)
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)


def nearest(squared: np.ndarray, count: int) -> np.ndarray:
    """Return each row's `count` nearest, itself first, of equally near ones the first: int (m, k).

    `squared` is float64 (m, m), as `squared_distances` returns it.
    """
    itself_first = squared - np.eye(len(squared))
    return np.argsort(itself_first, axis=1, kind="stable")[:, :count]


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

    Also summed in float64: the Krum attack adds both up to distances that may be far smaller, and
    no length of float32 values overflows.
    """
    out = np.empty((2, len(rows)))
    _wide_products(rows, direction, out)
    return out


def inner_products(
    array: np.ndarray, origin: np.ndarray | None = None, factors: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of all rows, times `factors`, less `origin`, and which rows are finite.

    float64 (m, m), exactly symmetric, and bool (m,). A row that is not finite counts as zeros. Rows
    are multiplied and shifted a block of columns at a time, and not kept.
    """
    products, finite = _gram(array, origin, factors)
    lower = np.tril(products, -1)
    return lower + lower.T + np.diag(np.diag(products)), finite


def _gram(
    array: np.ndarray, origin: np.ndarray | None, factors: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    m, d = array.shape
    products = _gram_of_blocks(array, origin, factors)
    if not np.isfinite(products).all():
        # A row is not finite, and counts as 0, or float32 products overflowed.
        finite = finite_rows(array)
        return _gram_of_blocks(array, origin, factors, finite), finite
    # Products of values as small as a row's are on average here are lost in float32. Rows of
    # zeros, from workers without examples, are right as they are.
    faint = np.diag(products) < d * np.finfo(np.float32).tiny
    zero = 0 if origin is None else origin
    faint[faint] = [(array[i] != zero).any() for i in np.flatnonzero(faint)]
    if faint.any():
        pairs = np.ix_(faint, faint)
        products[pairs] = _gram_of_blocks(array, origin, factors, faint)[pairs]
    return products, np.ones(m, dtype=bool)


def _gram_of_blocks(
    array: np.ndarray,
    origin: np.ndarray | None,
    factors: np.ndarray | None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Inner products of all rows; or in float64, of those marked, which are finite, else 0."""
    m, d = array.shape
    products, part = np.zeros((m, m)), np.zeros((m, m), dtype=np.float32)
    shares = None if factors is None else factors.astype(np.float32)[:, None]
    for start in range(0, d, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        block, shift = array[:, columns], np.float32(0) if origin is None else origin[columns]
        with np.errstate(invalid="ignore", over="ignore"):
            block = block if shares is None else block * shares
            if rows is None:
                lower_gram(block if origin is None else block - shift, part)
                products += part
                continue
        wide = np.zeros(block.shape)
        np.subtract(block, shift, out=wide, where=rows[:, None], dtype=np.float64)
        products += wide @ wide.T
    return products


@cache
def _ssyrk() -> Callable[..., None]:
    from numba.extending import get_cython_function_address  # which takes a while to load

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
