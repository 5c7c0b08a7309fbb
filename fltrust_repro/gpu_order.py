"""Order statistics and means of columns on a GPU: `kernels.py` for what lies where one copies from.

The same comparators and sums in the same order: the numbers are those of the CPU. The kernels are
in `order.cu`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fltrust_repro import backend
from fltrust_repro.compiled import Array
from fltrust_repro.cuda_source import Launch, kernels_of

if TYPE_CHECKING:
    from mxnet.context import Context

SOURCE = Path(__file__).with_name("order.cu")


class Passes:
    """What `kernels.py` does with float32 updates (m, d), on the GPU that is `ctx`.

    Takes memory for one more copy of the updates there, for as long as a call lasts.
    """

    def __init__(self, ctx: Context, launch: Launch | None = None) -> None:
        self._ctx, self._launch = ctx, launch or kernels_of(SOURCE, ctx)

    def middle_mean(self, updates: Array, network: Array, first: int, stop: int) -> Array:
        """Means (d,) of ranks first..stop-1, which the network brings to their places."""
        nd, (m, d) = backend.nd, updates.shape
        pairs = nd.array(network, ctx=self._ctx, dtype="int32")
        out = nd.empty(d, ctx=self._ctx)
        told = (m, len(network), first, stop, d)
        self._launch("middle_mean", self._copied(updates), pairs, out, *told)
        return out.asnumpy()

    def mean(self, updates: Array) -> Array:
        """Means (d,)."""
        m, d = updates.shape
        out = backend.nd.empty(d, ctx=self._ctx)
        self._launch("mean", self._copied(updates), out, m, d)
        return out.asnumpy()

    def extremes(self, updates: Array, sides: Array) -> Array:
        """Largest values (d,) where `sides` (d,) is 1, smallest ones where it is -1."""
        m, d = updates.shape
        out = backend.nd.empty(d, ctx=self._ctx)
        given = self._copied(updates), self._copied(sides), out
        self._launch("extremes", *given, m, d)
        return out.asnumpy()

    def _copied(self, array: Array) -> backend.NDArray:
        there = backend.nd.empty(array.shape, ctx=self._ctx)
        return backend.to_ndarray(array).copyto(there)


@cache
def _passes(index: int) -> Passes:
    return Passes(backend.context("gpu", index))


def beside(updates: Array) -> Passes | None:
    """The passes of the GPU that quickly copies from these updates; None of other memory."""
    index = backend.pinned_for(updates)
    return None if index is None else _passes(index)
