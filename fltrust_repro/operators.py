"""Means of each column's order statistics on a GPU: what `kernels.py` compiles for the CPU.

MXNet's array operators over blocks of columns: sorting takes several times the memory of what is
sorted, so that all columns of a large model at once would not fit. NaN counts as infinity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fltrust_repro.backend import column_blocks, module_of, take_rows, to_ndarray

if TYPE_CHECKING:
    from fltrust_repro.backend import NDArray


def middle_mean(updates: NDArray, first: int, stop: int) -> NDArray:
    """Mean of the order statistics first..stop-1 of each column."""
    return _by_blocks(lambda block: _sorted(block)[first:stop].mean(axis=0), updates)


def middle_means_without(updates: NDArray, first: int, stop: int) -> NDArray:
    """For each row, the mean of ranks first..stop-1 of the other rows, in each column."""

    def means(block: Any) -> Any:
        xp, kept = module_of(block), _sorted(block)[first : stop + 1]
        inner = kept.sum(axis=0) - block
        upper = xp.where(block >= kept[-1], kept[:-1].sum(axis=0), inner)
        return xp.where(block <= kept[0], kept[1:].sum(axis=0), upper) / (stop - first)

    return _by_blocks(means, updates)


def mean_around_median(updates: NDArray, rows: Any, keep: int) -> NDArray:
    """Mean of the `keep` values closest to the median, in each column of some rows."""

    def mean(block: Any) -> Any:
        xp, n = module_of(block), len(rows)
        ordered = _sorted(take_rows(to_ndarray(block), rows).as_np_ndarray())
        median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        # Kept values are neighbours in order: of all windows, the one whose farther end is nearest.
        starts = n - keep + 1
        reach = xp.maximum(median - ordered[:starts], ordered[keep - 1 :] - median)
        first = reach.argmin(axis=0).reshape(1, -1)
        rank = xp.arange(n, dtype="int64", ctx=block.ctx).reshape(-1, 1)  # argmin's type
        kept = (rank >= first) * (rank < first + keep)
        return xp.where(kept, ordered, xp.zeros_like(ordered)).sum(axis=0) / keep

    return _by_blocks(mean, updates)


def _by_blocks(of_columns: Callable[[Any], Any], updates: NDArray) -> NDArray:
    done = [of_columns(_without_nan(block)) for block in column_blocks(updates)]
    return to_ndarray(done[0] if len(done) == 1 else module_of(done[0]).concatenate(done, axis=-1))


def _without_nan(block: Any) -> Any:
    xp = module_of(block)
    # Not full_like(block, inf): MXNet reads that from text, and refuses it at random.
    infinity = -xp.log(xp.zeros_like(block))
    return xp.where(xp.isnan(block), infinity, block)


def _sorted(block: Any) -> Any:
    return module_of(block).sort(block, axis=0)
