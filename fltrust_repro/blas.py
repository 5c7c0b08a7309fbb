"""Products through scipy's BLAS: the newest at hand, which knows the CPU where older ones do not.

numpy 1.26 and MXNet 1.9 bring an OpenBLAS of their own; on a CPU newer than they are, these fall
back to kernels of 2004, several times slower. scipy offers its own to C, and numba's `np.dot`
calls it, too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address


@cache
def _ssyrk() -> Callable[..., None]:
    address = get_cython_function_address("scipy.linalg.cython_blas", "ssyrk")
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 10)(address)


def lower_gram(block: np.ndarray, out: np.ndarray) -> None:
    """Inner products of all rows of a block: the lower triangle of `out`, the rest untouched.

    Parameters
    ----------
    block : float32 (m, k)
        k >= 1; columns one after another in memory, rows at any distance. It is not copied.
    out : float32 (m, m), C-contiguous
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
