"""What this machine can do at best: the limits that the suite holds its times against.

Rates on one core: bytes copied from memory to memory, operations of a large matrix product by the
library that the stage calls, and comparators, the min and max of two numbers, on data in the
first-level cache. Compiled code and distances call scipy's library; models without compiled code
MXNet's; numpy's is measured beside them.
A stage can take no less than its bytes need, nor than its operations and comparators together:
memory and arithmetic can overlap, the two kinds of arithmetic share a core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numba
import numpy as np
from measure import Row, timed
from scipy.linalg.blas import sgemm

from fltrust_repro.backend import nd
from fltrust_repro.machine import versions

_COPIED = 2**27  # bytes; several times the last-level cache
_SIDE = 1024
_COMPARED = 512, 20_000

# Products (rows, inner, columns) of workers, some far from a large one's rate.
SMALL = {
    "LR, scores of a batch": (32, 784, 10),
    "LR, gradient of a batch": (10, 32, 784),
    "CNN, first convolution of an example": (676, 10, 32),
    "CNN, second convolution of four": (400, 288, 50),
    "CNN, first dense layer of eight workers": (256, 1250, 200),
    "CNN, its weight's gradient": (200, 32, 1250),
    "distances, a block of 100 workers": (100, 8192, 100),
}


class Work(NamedTuple):
    """What a stage has to do at least, by its formula."""

    moved: float = 0  # bytes read and written
    flops: float = 0
    comparators: float = 0
    by_mxnet: bool = False  # whose library makes the products


class Machine(NamedTuple):
    """Rates per second on one core."""

    copy: float
    gemm: float  # scipy's library
    comparators: float
    mxnet_gemm: float = 0

    def limit(self, work: Work) -> dict[str, float | str]:
        """Seconds that the work takes at least, and what decides it; fields of a row."""
        seconds = {
            "memory": work.moved / self.copy,
            "products": work.flops / (self.mxnet_gemm if work.by_mxnet else self.gemm),
            "comparators": work.comparators / self.comparators,
        }
        arithmetic = seconds["products"] + seconds["comparators"]
        if arithmetic < seconds["memory"]:
            return {"limit": seconds["memory"], "bound": "memory"}
        del seconds["memory"]
        return {"limit": arithmetic, "bound": max(seconds, key=seconds.get)}


def product_seconds(rows: int, inner: int, columns: int, budget: float = 0.05) -> float:
    """Seconds of one float32 matrix product of this size, as scipy's library does it."""
    a, b = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    out = np.empty((rows, columns), np.float32)
    # Transposed, since the library takes columns first and would copy anything else.
    return _seconds_of(
        lambda: sgemm(1.0, b.T, a.T, c=out.T, overwrite_c=True),
        2.0 * rows * inner * columns,
        budget,
    )


def _seconds_of(product: Callable[[], object], flops: float, budget: float) -> float:
    calls = max(1, int(2e8 / flops))

    def products() -> None:
        for _ in range(calls):
            product()

    return timed(products, budget)["minimum"] / calls


def _large_product_seconds(budget: float) -> dict[str, float]:
    """Seconds of a large matrix product by library."""
    a, b = np.ones((_SIDE, _SIDE), np.float32), np.ones((_SIDE, _SIDE), np.float32)
    out, flops = np.empty_like(a), 2.0 * _SIDE**3
    left, right = nd.array(a), nd.array(b)

    def by_mxnet() -> None:
        nd.FullyConnected(left, right, num_hidden=_SIDE, no_bias=True).wait_to_read()

    return {
        "scipy": product_seconds(_SIDE, _SIDE, _SIDE, budget),
        "numpy": _seconds_of(lambda: np.dot(a, b, out), flops, budget),
        "MXNet": _seconds_of(by_mxnet, flops, budget),
    }


def products_seconds(products: Iterable[tuple[int, int, int]]) -> float:
    """Seconds of some products, one after another, each at the rate of its own size."""
    return sum(product_seconds(*product) for product in products)


@numba.njit
def _compare(low: np.ndarray, high: np.ndarray, times: int) -> None:
    for _ in range(times):
        for j in range(low.size):
            a, b = low[j], high[j]
            smaller = a if a < b else b
            low[j], high[j] = smaller, a ^ b ^ smaller


def measure(budget: float) -> tuple[str, Machine, list[Row]]:
    """Describe the machine, and measure its rates, for about `budget` seconds each."""
    source, target = np.ones(_COPIED, np.uint8), np.ones(_COPIED, np.uint8)
    width, times = _COMPARED
    low, high = np.zeros((2, width), np.int32)
    _compare(low, high, 1)  # compiles
    copying = timed(lambda: np.copyto(target, source), budget)
    comparing = timed(lambda: _compare(low, high, times), budget)
    large = _large_product_seconds(budget)
    # At their best: a limit is what nothing can beat.
    machine = Machine(
        copy=2 * _COPIED / copying["minimum"],
        gemm=2 * _SIDE**3 / large["scipy"],
        comparators=width * times / comparing["minimum"],
        mxnet_gemm=2 * _SIDE**3 / large["MXNet"],
    )
    rows = [
        _row("copy", f"{machine.copy / 1e9:.1f} GB/s read and written", **copying),
        *(
            _product_row(f"large matrix product, {library}", (_SIDE, _SIDE, _SIDE), seconds)
            for library, seconds in large.items()
        ),
        _row("comparators in cache", f"{machine.comparators / 1e9:.2f} G/s", **comparing),
    ]
    for name, sizes in SMALL.items():
        rows.append(_product_row(name, sizes, product_seconds(*sizes, budget / 4)))
    return described(), machine, rows


def _product_row(case: str, sizes: tuple[int, int, int], seconds: float) -> Row:
    a, b, c = sizes
    rate = 2e-9 * a * b * c / seconds
    return _row(case, f"{rate:.1f} Gflop/s at ({a} x {b}) ({b} x {c})", median=seconds)


def _row(case: str, rate: str, **figures: float) -> Row:
    return Row("machine", case, "machine", note=rate, **figures)


def described() -> str:
    """Versions, CPU, and each library of matrix products with the kernels that it chose."""
    return f"{versions()}; {os.cpu_count()} cores, one thread"
