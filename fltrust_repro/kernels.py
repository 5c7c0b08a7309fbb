"""The hot primitives of rules and defenses: means of order statistics, and distances.

On the CPU they are compiled loops over blocks of columns that stay in the cache; on a GPU they
are array operators that never leave the device. Both are written so that a non-finite value in
a row harms nothing but what depends on that row.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from fltrust_repro.backend import array_view, on_gpu, to_ndarray

if TYPE_CHECKING:
    from fltrust_repro.backend import NDArray

_COLUMNS = 512  # a block of 100 rows then takes 200 KiB, within a core's second-level cache
_GRAM_COLUMNS = 8192


@lru_cache(maxsize=64)
def sorting_network(n: int) -> np.ndarray:
    """Batcher's odd-even merge sort of n values: the (comparators, 2) pairs to compare in turn."""
    pairs = []
    length = 1
    while length < n:
        step = length
        while step >= 1:
            for start in range(step % length, n - step, 2 * step):
                for i in range(start, start + min(step, n - start - step)):
                    if i // (2 * length) == (i + step) // (2 * length):
                        pairs.append((i, i + step))
            step //= 2
        length *= 2
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@njit(cache=True)
def _ordered(values: np.ndarray) -> None:
    # Turns float32 bits into integers of the same order (and back: it is its own inverse). NaN
    # lands beyond the infinities, so that it counts as an extreme value.
    for j in range(values.size):
        values[j] ^= (values[j] >> np.int32(31)) & np.int32(0x7FFFFFFF)


@njit(cache=True)
def _sort_rows(block: np.ndarray, network: np.ndarray) -> None:
    # Sorts every column of an int32 block: a comparator works on two whole rows at once.
    for k in range(network.shape[0]):
        low, high = block[network[k, 0]], block[network[k, 1]]
        for j in range(low.size):
            a, b = low[j], high[j]
            smaller = a if a < b else b
            low[j] = smaller
            high[j] = a ^ b ^ smaller  # the larger one, in a form that compiles to vector code


@njit(cache=True)
def _sorted_block(
    updates: np.ndarray, network: np.ndarray, start: int, width: int, block: np.ndarray
) -> None:
    # Columns start..start + width - 1 of the updates, sorted, as floats over the block's memory.
    bits = updates.view(np.int32)
    for i in range(len(updates)):
        block[i, :width] = bits[i, start : start + width]
        _ordered(block[i])
    _sort_rows(block, network)
    for i in range(len(updates)):
        _ordered(block[i])


@njit(cache=True)
def _middle_mean(
    updates: np.ndarray, network: np.ndarray, first: int, stop: int, columns: int, out: np.ndarray
) -> None:
    m, d = updates.shape
    block = np.zeros((m, columns), dtype=np.int32)
    values = block.view(np.float32)
    total = np.empty(columns, dtype=np.float64)
    for start in range(0, d, columns):
        width = min(columns, d - start)
        _sorted_block(updates, network, start, width, block)
        total[:] = 0.0
        for i in range(first, stop):
            row = values[i]
            for j in range(columns):
                total[j] += row[j]
        for j in range(width):
            out[start + j] = total[j] / (stop - first)


def middle_mean(updates: NDArray, first: int, stop: int) -> NDArray:
    """Mean of the order statistics first..stop-1 of each column.

    Parameters
    ----------
    updates : NDArray of shape (m, d), float32
    first, stop : int
        0 <= first < stop <= m; rank 0 is the smallest value of a column.

    Returns
    -------
    NDArray of shape (d,), float32, summed in float64 on the CPU. NaN ranks beyond the infinities.
    Allocates d numbers and one block of columns.
    """
    array, xp = array_view(updates)
    if on_gpu(updates):
        return to_ndarray(_sorted_columns(array, xp)[first:stop].mean(axis=0))
    m, d = array.shape
    out = np.empty(d, dtype=np.float32)
    _middle_mean(array, sorting_network(m), first, stop, _COLUMNS, out)
    return to_ndarray(out)


def _sorted_columns(array: Any, xp: ModuleType) -> Any:
    return xp.sort(xp.where(xp.isnan(array), xp.full_like(array, np.inf), array), axis=0)


@njit(cache=True)
def _middle_means_without(
    updates: np.ndarray, network: np.ndarray, first: int, stop: int, columns: int, out: np.ndarray
) -> None:
    m, d = updates.shape
    block = np.zeros((m, columns), dtype=np.int32)
    values = block.view(np.float32)
    total = np.empty(columns, dtype=np.float64)
    scale = 1.0 / (stop - first)
    for start in range(0, d, columns):
        width = min(columns, d - start)
        _sorted_block(updates, network, start, width, block)
        low, high = values[first], values[stop]
        total[:] = 0.0
        for i in range(first, stop + 1):
            row = values[i]
            for j in range(columns):
                total[j] += row[j]
        for i in range(m):
            row, target = updates[i, start : start + width], out[i, start : start + width]
            for j in range(width):
                value = row[j]
                value = value if value < high[j] else high[j]
                value = value if value > low[j] else low[j]
                target[j] = (total[j] - value) * scale


def middle_means_without(updates: NDArray, first: int, stop: int) -> NDArray:
    """For each row, the `middle_mean` of ranks first..stop-1 of the other m - 1 rows.

    All from one sort: with the order statistics S of all m rows, leaving row i out removes from
    S[first] + ... + S[stop] the row's own value if it is among these, else the end that it
    moves out of the ranks: clip(delta_i, S[first], S[stop]) in every case.

    Parameters
    ----------
    updates : NDArray of shape (m, d), float32
    first, stop : int
        0 <= first < stop <= m - 1.

    Returns
    -------
    NDArray of shape (m, d), float32; allocates no more.
    """
    array, xp = array_view(updates)
    if on_gpu(updates):
        ordered = _sorted_columns(array, xp)
        total = ordered[first : stop + 1].sum(axis=0)
        clipped = xp.minimum(xp.maximum(array, ordered[first]), ordered[stop])
        return to_ndarray((total - clipped) / (stop - first))
    m = len(array)
    out = np.empty_like(array)
    _middle_means_without(array, sorting_network(m), first, stop, _COLUMNS, out)
    return to_ndarray(out)


@njit(cache=True)
def _mean_around_median(
    updates: np.ndarray, network: np.ndarray, keep: int, columns: int, out: np.ndarray
) -> None:
    n, d = updates.shape
    block = np.zeros((n, columns), dtype=np.int32)
    values = block.view(np.float32)
    for start in range(0, d, columns):
        width = min(columns, d - start)
        _sorted_block(updates, network, start, width, block)
        for j in range(width):
            median = (np.float64(values[(n - 1) // 2, j]) + np.float64(values[n // 2, j])) / 2
            low, high = 0, n - 1
            while high - low + 1 > keep:
                if values[high, j] - median >= median - values[low, j]:
                    high -= 1
                else:
                    low += 1
            total = 0.0
            for i in range(low, high + 1):
                total += values[i, j]
            out[start + j] = total / keep


def mean_around_median(updates: NDArray, keep: int) -> NDArray:
    """Mean of the `keep` values of each column that lie closest to the column's median.

    Of two values equally far from the median, the smaller one is kept.

    Parameters
    ----------
    updates : NDArray of shape (n, d), float32, finite
    keep : int, 1 <= keep <= n

    Returns
    -------
    NDArray of shape (d,), float32, summed in float64 on the CPU.
    """
    array, xp = array_view(updates)
    n, d = array.shape
    if on_gpu(updates):
        ordered = _sorted_columns(array, xp)
        median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        # Kept values are neighbours in order: of all windows, the one whose farther end is nearest.
        starts = n - keep + 1
        reach = xp.maximum(median - ordered[:starts], ordered[keep - 1 :] - median)
        first = reach.argmin(axis=0).reshape(1, -1)
        rank = xp.arange(n, ctx=updates.context).reshape(-1, 1)
        kept = (rank >= first) * (rank < first + keep)
        return to_ndarray(xp.where(kept, ordered, xp.zeros_like(ordered)).sum(axis=0) / keep)
    out = np.empty(d, dtype=np.float32)
    _mean_around_median(array, sorting_network(n), keep, _COLUMNS, out)
    return to_ndarray(out)


def squared_distances(updates: NDArray) -> np.ndarray:
    """Squared Euclidean distances between all rows.

    Parameters
    ----------
    updates : NDArray of shape (m, d), float32

    Returns
    -------
    numpy array of shape (m, m), float64, zero diagonal. A row that holds a non-finite value is
    at infinite distance from every other row. Products of float32 blocks are summed in float64;
    of a GPU only the (m, m) products leave it.
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
    finite = np.ones(len(array), dtype=bool)
    products = _gram_of_blocks(array)
    if not np.isfinite(products).all():
        # A row is not finite, or float32 products overflowed: the careful way, in float64.
        finite = np.isfinite(array).all(axis=1)
        kept = np.where(finite[:, None], array, np.float32(0))
        products = _gram_of_blocks(kept.astype(np.float64))
    return products, finite


def _gram_of_blocks(array: np.ndarray) -> np.ndarray:
    m, d = array.shape
    products = np.zeros((m, m))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, d, _GRAM_COLUMNS):
            block = array[:, start : start + _GRAM_COLUMNS]
            products += block @ block.T
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
