"""One thread per trial, so that sums have one order and numbers do not depend on a machine's cores.

Trials run in parallel, a process each: worker processes have one thread from their start, and a
trial in a process of a user's own has one while it runs. Nothing else of that process changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator, Mapping

# What MXNet must do alike in every trial; it reads them whenever it prepares an operator.
_MXNET = {
    "MXNET_ENFORCE_DETERMINISM": "1",
    "MXNET_CUDNN_AUTOTUNE_DEFAULT": "0",
    "MXNET_STORAGE_FALLBACK_LOG_VERBOSE": "0",
}
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MXNET_CPU_WORKER_NTHREADS": "1",
    **_MXNET,
}
"""Environment of a process that does nothing but trials; libraries read it when they load."""


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, such as that in which processes start.

    Then the environment is as before, whatever changed it meanwhile.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, also where libraries were loaded with more; then restore theirs.

    It does not matter who imported numpy, numba or MXNet, when, and with what environment: BLAS,
    OpenMP, numba and the thread in which MXNet computes are told. Two things are beyond it: several
    such threads (MXNET_CPU_WORKER_NTHREADS, by default 1), and operators that MXNet prepared with
    several threads before, which it takes again for arrays of the very same shapes.
    """
    import numba
    import scipy.linalg.cython_blas  # noqa: F401  (numba's products call it: a BLAS to be limited)
    from threadpoolctl import threadpool_limits

    threads_of_mxnet, threads_of_numba = _limit_mxnet(1), numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(limits=1), environment(_MXNET):
            yield
    finally:
        numba.set_num_threads(threads_of_numba)
        _limit_mxnet(threads_of_mxnet)


_EngineFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class _EngineContext(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int), ("device_id", ctypes.c_int))


def _limit_mxnet(count: int) -> int:
    """Give the thread in which MXNet computes on the CPU that many of OpenMP's; return how many.

    OpenMP counts for each thread by itself, so that it has to be told in that very thread.
    """
    from fltrust_repro.backend import mx

    library, told, former = mx.base._LIB, threading.Event(), []
    try:
        had, give = library.omp_get_max_threads, library.omp_set_num_threads
    except AttributeError:  # a build without OpenMP
        return 1

    @_EngineFunction
    def tell(run_context: int | None, parameter: int | None) -> None:
        former.append(had())
        give(count)
        told.set()

    cpu = _EngineContext(mx.cpu().device_typeid, 0)
    nothing = (None, 0, None, 0, None, 0, None)
    mx.base.check_call(library.MXEnginePushSync(tell, None, None, ctypes.byref(cpu), *nothing))
    told.wait()
    return former[0]
