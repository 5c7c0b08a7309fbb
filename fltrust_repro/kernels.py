"""Means of each column's order statistics: what trimmed mean, median and Bulyan are made of.

Compiled loops over one block of columns that stays in the cache. NaN ranks beyond the infinities,
at the end of its sign; sums are float64, but for those of `column_mean` and `moments`. Of updates
that a GPU has computed, `gpu_order.py` takes some of them there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fltrust_repro import gpu_order
from fltrust_repro.compiled import Array, aligned, compiled
from fltrust_repro.doors import Numbers, as_updates
from fltrust_repro.errors import BadInput

_COLUMNS = 512  # a block of 100 rows then takes 200 KiB, within a core's second-level cache
_LONG = 4096  # columns; where rows are read once, longer runs of memory come faster
_CANCELS = 2.0**20  # a value this much larger than all others leaves them too few of 53 digits


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


@lru_cache(maxsize=64)
def selection_network(n: int, first: int, stop: int) -> np.ndarray:
    """The comparators of `sorting_network` that bring ranks first..stop-1 to their places.

    There they are in any order. From the last on, one is left out if whatever comes after it treats
    its two places alike: both below these ranks, both among them or both above.
    """
    below, among, above, told_apart = range(4)
    place = [below] * first + [among] * (stop - first) + [above] * (n - stop)
    pairs = []
    for low, high in sorting_network(n)[::-1].tolist():
        if place[low] == place[high] != told_apart:
            continue
        place[low] = place[high] = told_apart
        pairs.append((low, high))
    return np.array(pairs[::-1], dtype=np.int64).reshape(-1, 2)


@compiled
def _order(bits: np.int32) -> Any:
    # Turns float32 bits into an integer of the same order (and back: it is its own inverse). NaN
    # lands beyond the infinities, so that it counts as an extreme value.
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@compiled
def _ordered(values: Array) -> None:
    for j in range(values.size):
        values[j] = _order(values[j])


@compiled
def _sort_rows(block: Array, network: Array) -> None:
    # Sorts every column of an int32 block: a comparator works on two whole rows at once.
    for k in range(network.shape[0]):
        low, high = block[network[k, 0]], block[network[k, 1]]
        for j in range(low.size):
            a, b = low[j], high[j]
            smaller = a if a < b else b
            low[j] = smaller
            high[j] = a ^ b ^ smaller  # the larger one, in a form that compiles to vector code


@compiled
def _sorted_block(
    updates: Array, rows: Array, network: Array, start: int, width: int, block: Array
) -> None:
    # Columns start..start + width - 1 of some rows, sorted as far as the network does, as floats
    # over the block's memory.
    bits = updates.view(np.int32)
    for i in range(len(rows)):
        row, target = bits[rows[i], start : start + width], block[i]
        for j in range(width):  # as an assignment of slices it takes four times as long
            target[j] = _order(row[j])
    _sort_rows(block, network)
    for i in range(len(rows)):
        _ordered(block[i])


@compiled
def _middle_mean(updates: Array, network: Array, first: int, stop: int, out: Array) -> None:
    m, d = updates.shape
    values, total, rows = aligned(m, _COLUMNS), np.empty(_COLUMNS), np.arange(m)
    block = values.view(np.int32)
    for start in range(0, d, _COLUMNS):
        width = min(_COLUMNS, d - start)
        _sorted_block(updates, rows, network, start, width, block)
        total[:] = 0.0
        for i in range(first, stop):
            row = values[i]
            for j in range(_COLUMNS):
                total[j] += row[j]
        for j in range(width):
            out[start + j] = total[j] / (stop - first)


def _ranks(first: int, stop: int, n: int, user: str) -> None:
    if not 0 <= first < stop <= n:
        raise BadInput(f"{user}: ranks {first} to {stop - 1} are not among those of {n} values.")


def middle_mean(updates: Numbers, first: int, stop: int) -> np.ndarray:
    """Mean of the order statistics first..stop-1 of each column of updates (m, d): float32 (d,).

    Rank 0 is the smallest value. Raises `BadInput` for what is no matrix of numbers, or ranks that
    it does not have, 0 <= first < stop <= m; the other two likewise.
    """
    array = as_updates(updates, "middle_mean")
    m, d = array.shape
    _ranks(first, stop, m, "middle_mean")
    network = selection_network(m, first, stop)
    if (on_gpu := gpu_order.beside(array)) is not None:
        return on_gpu.middle_mean(array, network, first, stop)
    out = np.empty(d, dtype=np.float32)
    _middle_mean(array, network, first, stop, out)
    return out


@compiled
def _middle_means_without(
    updates: Array, network: Array, first: int, stop: int, out: Array
) -> None:
    m, d = updates.shape
    values, total, rows = aligned(m, _COLUMNS), np.empty(_COLUMNS), np.arange(m)
    block = values.view(np.int32)
    scale = 1.0 / (stop - first)
    for start in range(0, d, _COLUMNS):
        width = min(_COLUMNS, d - start)
        _sorted_block(updates, rows, network, start, width, block)
        low, high = values[first], values[stop]
        total[:] = 0.0
        for i in range(first, stop + 1):
            row = values[i]
            for j in range(_COLUMNS):
                total[j] += row[j]
        for i in range(m):
            row, target = updates[i, start : start + width], out[i, start : start + width]
            for j in range(width):
                value = row[j]
                value = value if value < high[j] else high[j]
                value = value if value > low[j] else low[j]
                target[j] = (total[j] - value) * scale
        for j in range(width):
            # Above, a negative NaN was taken for a value at the upper end.
            if np.isnan(values[0, j]) or _an_end_cancels(values[first : stop + 1, j], total[j]):
                _sum_without_ends(updates[:, start + j], block[first : stop + 1, j], scale,
                                  out[:, start + j])  # fmt: skip


@compiled
def _an_end_cancels(kept: Array, total: float) -> bool:
    # Whether one of these sorted values so exceeds the others that total - value is not their sum.
    low, high = abs(kept[0]), abs(kept[-1])
    if low > high:
        largest, rest = low, max(abs(kept[1]), high)
    else:
        largest, rest = high, max(abs(kept[-2]), low)
    return not np.isfinite(total) or largest > _CANCELS * rest


@compiled
def _sum_without_ends(column: Array, kept: Array, scale: float, target: Array) -> None:
    # Replaces the means of the rows whose leaving out takes one of the ends from the kept values,
    # given by their bits, by means of sums that never had it in them.
    bits, values = column.view(np.int32), kept.view(np.float32)
    lowest, highest = _order(kept[0]), _order(kept[-1])
    without_low, without_high = 0.0, 0.0
    for k in range(1, len(values)):
        without_low += values[k]
        without_high += values[k - 1]
    for i in range(len(bits)):
        if _order(bits[i]) <= lowest:
            target[i] = without_low * scale
        elif _order(bits[i]) >= highest:
            target[i] = without_high * scale


def middle_means_without(updates: Numbers, first: int, stop: int) -> np.ndarray:
    """For each row, the `middle_mean` of ranks first..stop-1 of the other rows: float32 (m, d).

    All from one sort: with the order statistics S of all m rows, leaving row i out removes from
    S[first] + ... + S[stop] the row's own value if it is among these, else the end that it
    moves out of the ranks: clip(delta_i, S[first], S[stop]) in every case. Where one end is so
    large, or not finite, that it does not cancel, the sum is taken without it: each mean is within
    float32 rounding of the largest value in it.
    """
    array = as_updates(updates, "middle_means_without")
    m = len(array)
    _ranks(first, stop, m - 1, "middle_means_without")
    out = np.empty_like(array)
    _middle_means_without(array, sorting_network(m), first, stop, out)
    return out


@compiled
def _mean_around_middle(
    updates: Array, rows: Array, network: Array, trim: int, keep: int, out: Array
) -> None:
    n, d = len(rows), updates.shape[1]
    values, middle, total = aligned(n, _COLUMNS), np.empty(_COLUMNS), np.empty(_COLUMNS)
    block, first = values.view(np.int32), np.empty(_COLUMNS, dtype=np.int32)
    for start in range(0, d, _COLUMNS):
        width = min(_COLUMNS, d - start)
        _sorted_block(updates, rows, network, start, width, block)
        middle[:], total[:], first[:] = 0.0, 0.0, 0
        for i in range(trim, n - trim):
            row = values[i]
            for j in range(_COLUMNS):
                middle[j] += row[j]
        for j in range(_COLUMNS):
            middle[j] /= n - 2 * trim
        # Those kept are consecutive: from the first on that is no farther than the next after them.
        for i in range(n - keep):
            low, high = values[i], values[i + keep]
            for j in range(_COLUMNS):
                below, above = middle[j] - low[j], high[j] - middle[j]
                first[j] += (above < below) | (below != below)
        for i in range(n):
            row = values[i]
            for j in range(_COLUMNS):
                kept = (first[j] <= i) & (i < first[j] + keep)
                total[j] += row[j] if kept else np.float32(0)
        for j in range(width):
            out[start + j] = total[j] / keep


def mean_around_middle(updates: Numbers, rows: np.ndarray, trim: int, keep: int) -> np.ndarray:
    """Mean of the `keep` values closest to the trimmed mean, in each column of some rows.

    The trimmed mean is that without the `trim` largest and smallest values; with (n - 1) // 2 it is
    the median. Of two values equally far from it, the smaller one is kept. `rows`, int (n,), are
    those that take part, not copied; in each column their trimmed mean and at least `keep` of their
    values must be finite. Returns float32 (d,).
    """
    array, n = as_updates(updates, "mean_around_middle"), len(rows)
    _ranks(trim, n - trim, n, "mean_around_middle")
    _ranks(0, keep, n, "mean_around_middle")
    if not np.isin(rows, np.arange(len(array))).all():
        raise BadInput(f"mean_around_middle: rows {rows} are not all among {len(array)} updates.")
    out = np.empty(array.shape[1], dtype=np.float32)
    _mean_around_middle(array, rows, sorting_network(n), trim, keep, out)
    return out


def mean_around_median(updates: Numbers, rows: np.ndarray, keep: int) -> np.ndarray:
    """Mean of the `keep` values closest to the median: `mean_around_middle` with all else cut."""
    return mean_around_middle(updates, rows, (len(rows) - 1) // 2, keep)


def column_mean(updates: Numbers) -> np.ndarray:
    """Mean of each column of updates (m, d): float32 (d,).

    Summed in float32, from the first row on, or in float64 where that overflows.
    """
    array = as_updates(updates, "column_mean")
    on_gpu = gpu_order.beside(array)
    with np.errstate(over="ignore", invalid="ignore"):
        out = array.mean(axis=0) if on_gpu is None else on_gpu.mean(array)
        lost = ~np.isfinite(out)
        if lost.any():
            np.copyto(out, array.mean(axis=0, dtype=np.float64), where=lost, casting="same_kind")
    return out


@compiled
def _extremes(updates: Array, sides: Array, out: Array) -> None:
    for start in range(0, out.size, _LONG):
        side, best = sides[start : start + _LONG], out[start : start + _LONG]
        for j in range(best.size):
            best[j] = side[j] * updates[0, start + j]
        for i in range(1, len(updates)):
            row = updates[i, start : start + _LONG]
            for j in range(best.size):
                value = side[j] * row[j]
                # NaN stays, as no number is at least as large as it.
                best[j] = best[j] if best[j] >= value or best[j] != best[j] else value
        for j in range(best.size):
            best[j] *= side[j]


def extremes(updates: Numbers, sides: np.ndarray) -> np.ndarray:
    """The largest value of each column of updates (m, d), or the smallest: float32 (d,).

    `sides`, float32 (d,), has 1 for the columns whose largest value is asked for, -1 for others.
    NaN where a column has it.
    """
    array = as_updates(updates, "extremes")
    if (on_gpu := gpu_order.beside(array)) is not None:
        return on_gpu.extremes(array, sides)
    out = np.empty(array.shape[1], dtype=np.float32)
    _extremes(array, sides, out)
    return out


@compiled
def _moments(updates: Array, mean: Array, deviation: Array) -> None:
    m, d = updates.shape
    count = np.float32(m)
    for start in range(0, d, _COLUMNS):
        centre, spread = mean[start : start + _COLUMNS], deviation[start : start + _COLUMNS]
        centre[:], spread[:] = 0, 0
        for i in range(m):
            row = updates[i, start : start + _COLUMNS]
            for j in range(centre.size):
                centre[j] += row[j]
        for j in range(centre.size):
            centre[j] /= count
        for i in range(m):
            row = updates[i, start : start + _COLUMNS]
            for j in range(centre.size):
                spread[j] += (row[j] - centre[j]) ** 2
        for j in range(centre.size):
            spread[j] = np.sqrt(spread[j] / count)


def moments(updates: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of updates (m, d): float32 (d,) both, as numpy's.

    Summed in float32, from the first row on.
    """
    array = as_updates(updates, "moments")
    mean, deviation = np.empty((2, array.shape[1]), dtype=np.float32)
    _moments(array, mean, deviation)
    return mean, deviation
