"""What this machine can do at best: the limits that the suite holds its times against.

Three rates on one core: bytes copied from memory to memory, operations of a large matrix product
by the faster of numpy's library and MXNet's, and comparators, the min and max of two numbers, on
data in the first-level cache.
A stage can take no less than its bytes need, nor than its operations and comparators together:
memory and arithmetic can overlap, the two kinds of arithmetic share a core.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from measure import Row, timed
from numba import njit

from fltrust_repro.backend import nd

_COPIED = 2**27  # bytes; several times the last-level cache
_SIDE = 1024
_COMPARED = 512, 20_000

# Products (rows, inner, columns) of single workers, far from a large one's rate.
SMALL = {
    "LR, scores of a batch": (32, 784, 10),
    "LR, gradient of a batch": (10, 32, 784),
    "CNN, second convolution": (50, 270, 32 * 121),
    "CNN, its weight's gradient": (50, 32 * 121, 270),
    "CNN, first dense layer": (32, 1250, 200),
    "distances, a block of 100 workers": (100, 8192, 100),
}


class Work(NamedTuple):
    """What a stage has to do at least, by its formula."""

    moved: float = 0  # bytes read and written
    flops: float = 0
    comparators: float = 0


class Machine(NamedTuple):
    """Rates per second on one core."""

    copy: float
    gemm: float
    comparators: float

    def limit(self, work: Work) -> dict[str, float | str]:
        """Seconds that the work takes at least, and what decides it; fields of a row."""
        seconds = {
            "memory": work.moved / self.copy,
            "products": work.flops / self.gemm,
            "comparators": work.comparators / self.comparators,
        }
        arithmetic = seconds["products"] + seconds["comparators"]
        if arithmetic < seconds["memory"]:
            return {"limit": seconds["memory"], "bound": "memory"}
        del seconds["memory"]
        return {"limit": arithmetic, "bound": max(seconds, key=seconds.get)}


def product_seconds(rows: int, inner: int, columns: int, budget: float = 0.05) -> float:
    """Seconds of one float32 matrix product of this size, as numpy's library does it."""
    a, b = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    out = np.empty((rows, columns), np.float32)
    calls = max(1, int(2e8 / (2 * rows * inner * columns)))

    def products() -> None:
        for _ in range(calls):
            np.dot(a, b, out)

    return timed(products, budget)["minimum"] / calls


def _mxnet_product_seconds(budget: float) -> float:
    a, b = nd.ones((_SIDE, _SIDE)), nd.ones((_SIDE, _SIDE))

    def product() -> None:
        nd.FullyConnected(a, b, num_hidden=_SIDE, no_bias=True).wait_to_read()

    return timed(product, budget)["minimum"]


def products_seconds(products: Iterable[tuple[int, int, int]]) -> float:
    """Seconds of some products, one after another, each at the rate of its own size."""
    return sum(product_seconds(*product) for product in products)


@njit(cache=True)
def _compare(low: np.ndarray, high: np.ndarray, times: int) -> None:
    for _ in range(times):
        for j in range(low.size):
            a, b = low[j], high[j]
            smaller = a if a < b else b
            low[j], high[j] = smaller, a ^ b ^ smaller


def measure(budget: float) -> tuple[Machine, list[Row]]:
    """Measure the rates, for about `budget` seconds each."""
    source, target = np.ones(_COPIED, np.uint8), np.ones(_COPIED, np.uint8)
    width, times = _COMPARED
    low, high = np.zeros((2, width), np.int32)
    _compare(low, high, 1)  # compiles
    copying = timed(lambda: np.copyto(target, source), budget)
    comparing = timed(lambda: _compare(low, high, times), budget)
    by_numpy = product_seconds(_SIDE, _SIDE, _SIDE, budget)
    by_mxnet = _mxnet_product_seconds(budget)
    # At their best: a limit is what nothing can beat.
    machine = Machine(
        copy=2 * _COPIED / copying["minimum"],
        gemm=2 * _SIDE**3 / min(by_numpy, by_mxnet),
        comparators=width * times / comparing["minimum"],
    )
    rows = [
        _row("copy", f"{machine.copy / 1e9:.1f} GB/s read and written", **copying),
        _product_row("large matrix product, numpy", (_SIDE, _SIDE, _SIDE), by_numpy),
        _product_row("large matrix product, MXNet", (_SIDE, _SIDE, _SIDE), by_mxnet),
        _row("comparators in cache", f"{machine.comparators / 1e9:.2f} G/s", **comparing),
    ]
    for name, sizes in SMALL.items():
        rows.append(_product_row(name, sizes, product_seconds(*sizes, budget / 4)))
    return machine, rows


def _product_row(case: str, sizes: tuple[int, int, int], seconds: float) -> Row:
    a, b, c = sizes
    rate = 2e-9 * a * b * c / seconds
    return _row(case, f"{rate:.1f} Gflop/s at ({a} x {b}) ({b} x {c})", median=seconds)


def _row(case: str, rate: str, **figures: float) -> Row:
    return Row("machine", case, "machine", note=rate, **figures)
