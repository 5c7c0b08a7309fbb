"""Imports numpy with the OpenBLAS kernels that `--numpy-kernel` names, before anything else does.

A library chooses its kernels when it loads, by OPENBLAS_CORETYPE where that is set. So the variable
is set for numpy's library alone and is as it was again when scipy's and MXNet's load: as on a
machine whose processor is newer than numpy's library, and not newer than scipy's.
"""

import os

CHOSEN = "BENCHMARKS_NUMPY_KERNEL"  # set by the suite for the processes that it starts
_READ = "OPENBLAS_CORETYPE"

if CHOSEN in os.environ:
    _before = os.environ.pop(_READ, None)
    os.environ[_READ] = os.environ[CHOSEN]
    import numpy  # noqa: F401

    del os.environ[_READ]
    if _before is not None:
        os.environ[_READ] = _before
