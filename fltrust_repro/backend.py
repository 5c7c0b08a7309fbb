"""The only module that imports MXNet: makes it importable, picks the device, shares memory.

MXNet 1.9.1 is older than today's numpy and CUDA packages; what its import needs is set right here,
for as long as it takes (what CUDA reads stays: `machine.preload`). Trials have one thread each, so
that sums have one order and numbers do not depend on a machine's cores: worker processes from their
start, a user's own while a trial runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import queue
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fltrust_repro import machine, nvidia
from fltrust_repro.errors import BadInput

if TYPE_CHECKING:
    from mxnet.context import Context
    from mxnet.ndarray import NDArray

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

# numpy 1.24 dropped these names, which MXNet reads when it is imported and later.
_DROPPED = {kind.__name__: kind for kind in (bool, int, float, object, str, complex)}


def _build() -> str:
    """Name of the one build of MXNet, "" if pip knows none; `BadInput` if none can be imported."""
    if sys.flags.optimize > 1:
        raise BadInput(
            "MXNet reads docstrings as it loads, and Python was told to drop them; unset "
            "PYTHONOPTIMIZE, or leave out -OO."
        )
    builds = machine.installed_builds()
    if len(builds) > 1:
        raise BadInput(
            f"{' and '.join(builds)} are both installed, and each overwrites the other; run "
            f"`pip uninstall -y {' '.join(builds)}`, then `pip install -e '.[cpu]'` or '.[cuda]'."
        )
    if importlib.util.find_spec("mxnet") is None:
        raise BadInput(
            "MXNet is not installed; run `make setup`, or `pip install -e '.[cpu]'` "
            "('.[cuda]' on a machine with an NVIDIA driver)."
        )
    return next(iter(builds), "")


@functools.cache
def _mxnet() -> ModuleType:
    missing = machine.preload() if _build() == machine.CUDA_BUILD else []
    with warnings.catch_warnings(), _hidden("sklearn", "scipy.stats"), _dropped_names():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("distutils") is None:  # left Python with 3.12
            with contextlib.suppress(ImportError):
                importlib.import_module("setuptools")  # brings it, where no .pth file does
        try:
            import mxnet
        except Exception as error:  # whatever a damaged or mismatched installation raises
            problem, advice = str(error), "install what it lacks, or all anew: `make clean setup`"
            if missing:
                problem, advice = f"{', '.join(missing)} not found", machine.remedy(missing)
            raise BadInput(f"MXNet does not load ({problem}); {advice}.") from error
    return mxnet


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Let no import find these modules, unless they are loaded.

    MXNet imports them if they are there, for parts that nobody uses here, and that takes as long as
    all the rest of it.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _dropped_names() -> Iterator[None]:
    """Give numpy the names that it dropped, for MXNet's import; MXNet alone keeps them."""
    added = {name: type_ for name, type_ in _DROPPED.items() if name not in np.__dict__}
    vars(np).update(added)
    try:
        yield
    finally:
        older = ModuleType("numpy")
        older.__dict__.update(np.__dict__)
        for name in added:
            delattr(np, name)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "mxnet":
                aliases = [alias for alias, value in vars(module).items() if value is np]
                module.__dict__.update(dict.fromkeys(aliases, older))


def __getattr__(name: str) -> Any:
    """Return `mx`, `nd` or `NDArray`; the first to ask imports MXNet.

    The import takes seconds, for which commands that train nothing need not wait.
    """
    if name not in ("mx", "nd", "NDArray"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    mxnet = _mxnet()
    return {"mx": mxnet, "nd": mxnet.nd, "NDArray": mxnet.nd.NDArray}[name]


def gpu_count() -> int:
    """How many GPUs MXNet can use: 0 for the CPU build or where there is no driver."""
    if _build() == machine.CPU_BUILD:  # and so is not loaded to be asked
        return 0
    try:
        return _mxnet().context.num_gpus()
    except _mxnet().base.MXNetError:
        return 0


def gpu_memory_share(index: int) -> float:
    """Share of a GPU's memory that is in use, in [0, 1]."""
    free, total = _mxnet().context.gpu_memory_info(index)
    return 1 - free / total


def workspace(ctx: Context) -> int:
    """Bytes that the intermediate arrays of one step may take: a sixteenth of a GPU's memory.

    Not of what is free, so that sums have one order whatever else runs there.
    """
    _, total = _mxnet().context.gpu_memory_info(ctx.device_id)
    return total // 16


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """Turn MXNet's error where a GPU's memory ran out into a `MemoryError` that says what to do."""
    try:
        yield
    except Exception as error:
        if "out of memory" not in str(error):
            raise
        raise MemoryError(
            "the GPU's memory cannot hold the trial beside what else runs there; run fewer trials "
            "at a time (--jobs), or take a smaller --batch-size, model or number of workers."
        ) from error


def check_device(name: str) -> None:
    """Raise `BadInput` unless `name` is `cpu`, `gpu` or `auto`."""
    if name not in ("cpu", "gpu", "auto"):
        raise BadInput(f"device is {name!r}; choose cpu, gpu or auto.")


def resolve_device(name: str) -> str:
    """Return the device at hand; `BadInput` for `gpu` where there is none, and for another name."""
    check_device(name)
    if name == "auto":
        return "gpu" if gpu_count() else "cpu"
    if name == "gpu" and not gpu_count():
        fault = nvidia.driver_fault()
        remedy = "install its driver and `pip install -e '.[cuda]'`"
        remedy = f"mend the driver ({fault})" if fault else remedy
        none = "device is 'gpu', but MXNet sees no NVIDIA GPU"
        raise BadInput(f"{none}; use --device cpu, or {remedy}.")
    return name


def context(device: str, index: int = 0) -> Context:
    """Return MXNet's context for a device's name, as `resolve_device` takes it: GPU number `index`.

    Raises `BadInput` for a GPU that there is not.
    """
    if resolve_device(device) == "cpu":
        return _mxnet().cpu()
    if index not in range(gpu_count()):
        raise BadInput(f"gpu is {index!r}; give a number from 0 to {gpu_count() - 1}.")
    return _mxnet().gpu(index)


def is_gpu(ctx: Context) -> bool:
    """Whether a context is that of a GPU."""
    return ctx.device_type == "gpu"


def host_view(array: NDArray) -> np.ndarray:
    """Return a numpy array over the memory of a float32 CPU NDArray: no copy, writable.

    Waits for what MXNet still computes on it, and keeps it alive. `BadInput` for another type.
    """
    if array.dtype != np.float32:
        raise BadInput(f"an NDArray of {np.dtype(array.dtype)} came where float32 is needed.")
    if array.size == 0:
        return np.empty(array.shape, dtype=np.float32)
    array.wait_to_read()
    address = ctypes.c_void_p()
    base = _mxnet().base
    base.check_call(base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    buffer = (ctypes.c_float * array.size).from_address(address.value)
    buffer.owner = array
    return np.frombuffer(buffer, dtype=np.float32).reshape(array.shape)


def pinned(shape: tuple[int, ...], index: int) -> NDArray:
    """Return memory of the host, not yet filled, from and to which a GPU copies quickly."""
    return _mxnet().nd.empty(shape, ctx=_mxnet().cpu_pinned(index))


def pinned_for(array: np.ndarray) -> int | None:
    """Number of the GPU from whose `pinned` memory an array was cut; None of all other memory."""
    while isinstance(array, np.ndarray):
        array = array.base  # type: ignore[assignment]
    ctx = getattr(getattr(array, "owner", None), "ctx", None)
    return ctx.device_id if ctx is not None and ctx.device_type == "cpu_pinned" else None


def to_ndarray(array: np.ndarray) -> NDArray:
    """Turn a numpy array into an NDArray of float32; one of float32 shares its memory."""
    whole = np.ascontiguousarray(array, dtype=np.float32)
    # MXNet makes what it is given read-only: a view, so that the array itself stays as it is.
    return _mxnet().nd.from_numpy(whole.view(), zero_copy=True)


# --- threads and environment


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while; then all is as before, whoever changed it."""
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

    BLAS, OpenMP, numba and the thread in which MXNet computes are told, whoever imported them when.
    Beyond it are several such threads (MXNET_CPU_WORKER_NTHREADS, by default 1), and operators that
    MXNet prepared with several threads before, and takes again for arrays of the same shapes.
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


class _EngineContext(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int), ("device_id", ctypes.c_int))


@functools.cache
def _teller() -> tuple[Any, queue.SimpleQueue[int]]:
    """Return what MXNet's engine calls with a number of threads for OpenMP, and the former ones.

    Kept for good: the engine may not have left it yet when its answer is there.
    """
    library, former = _mxnet().base._LIB, queue.SimpleQueue[int]()
    had, give = library.omp_get_max_threads, library.omp_set_num_threads

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    def tell(run_context: int | None, count: int | None) -> None:
        before = had()
        give(count)
        former.put(before)

    return tell, former


def _limit_mxnet(count: int) -> int:
    """Tell OpenMP its threads, in the thread in which MXNet computes; return the former number."""
    mx = _mxnet()
    try:
        tell, former = _teller()
    except AttributeError:  # a build without OpenMP
        return 1
    cpu = _EngineContext(mx.cpu().device_typeid, 0)
    nothing = (None, 0, None, 0, None, 0, None)
    given = ctypes.c_void_p(count), None, ctypes.byref(cpu), *nothing
    mx.base.check_call(mx.base._LIB.MXEnginePushSync(tell, *given))
    return former.get()
