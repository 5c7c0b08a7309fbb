"""The only module that imports MXNet: makes it importable, picks the device, shares memory.

MXNet 1.9.1 is older than today's numpy and CUDA packages; what its import needs from its
surroundings is set right here, for as long as it takes, and nothing else has to know.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fltrust_repro import machine
from fltrust_repro.errors import BadInput
from fltrust_repro.threads import environment

if TYPE_CHECKING:
    from mxnet.context import Context
    from mxnet.ndarray import NDArray

# numpy 1.24 dropped these names, which MXNet reads when it is imported and later.
_DROPPED = {
    "bool": bool,
    "int": int,
    "float": float,
    "object": object,
    "str": str,
    "complex": complex,
}


@functools.cache
def _mxnet() -> ModuleType:
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
    missing = machine.preload() if machine.CUDA_BUILD in builds else []
    # MXNet imports scikit-learn if it is there, which sets variables.
    with warnings.catch_warnings(), environment({}), _dropped_names():
        warnings.simplefilter("ignore")
        try:
            import mxnet
        except Exception as error:  # whatever a damaged or mismatched installation raises
            problem, advice = str(error), "install what it lacks, or all anew: `make clean setup`"
            if missing:
                problem, advice = f"{', '.join(missing)} not found", machine.remedy(missing)
            raise BadInput(f"MXNet does not load ({problem}); {advice}.") from error
    return mxnet


@contextlib.contextmanager
def _dropped_names() -> Iterator[None]:
    """Give numpy the names that it dropped, for MXNet's import; MXNet alone keeps them."""
    added = {name: type_ for name, type_ in _DROPPED.items() if name not in np.__dict__}
    for name, type_ in added.items():
        setattr(np, name, type_)
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


_PARTS: dict[str, Callable[[ModuleType], Any]] = {
    "mx": lambda mxnet: mxnet,
    "nd": lambda mxnet: mxnet.nd,
    "NDArray": lambda mxnet: mxnet.nd.NDArray,
    "Context": lambda mxnet: mxnet.context.Context,
}


def __getattr__(name: str) -> Any:
    """Return `mx`, `nd`, `NDArray` or `Context`; the first to ask imports MXNet.

    The import takes seconds, for which commands that train nothing need not wait.
    """
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _PARTS[name](_mxnet())


def gpu_count() -> int:
    """How many GPUs MXNet can use: 0 for the CPU build or where there is no driver."""
    try:
        return _mxnet().context.num_gpus()
    except _mxnet().base.MXNetError:
        return 0


def gpu_memory_share(index: int) -> float:
    """Share of a GPU's memory that is in use, in [0, 1]."""
    free, total = _mxnet().context.gpu_memory_info(index)
    return 1 - free / total


@functools.cache
def _workspace_of(index: int) -> int:
    _, total = _mxnet().context.gpu_memory_info(index)
    return total // 16


def workspace(ctx: Context) -> int:
    """Bytes that the intermediate arrays of one step may take: a sixteenth of a GPU's memory.

    Of all its memory and not of what is free, so that blocks, hence the order of floating point
    sums, do not depend on what else runs there.
    """
    return _workspace_of(ctx.device_id)


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
    """Turn `cpu`, `gpu` or `auto` into the device at hand, `cpu` or `gpu`.

    Raises `BadInput` for another name, and for `gpu` where MXNet sees none.
    """
    check_device(name)
    if name == "auto":
        return "gpu" if gpu_count() else "cpu"
    if name == "gpu" and not gpu_count():
        raise BadInput(
            "device is 'gpu', but MXNet sees no NVIDIA GPU; use --device cpu, or install its "
            "driver and `pip install -e '.[cuda]'`."
        )
    return name


def context(device: str, index: int = 0) -> Context:
    """Return MXNet's context for `cpu` or `gpu` number `index`."""
    return _mxnet().gpu(index) if device == "gpu" else _mxnet().cpu()


def is_gpu(ctx: Context) -> bool:
    """Whether a context is that of a GPU."""
    return ctx.device_type == "gpu"


def on_gpu(array: NDArray) -> bool:
    """Whether the array lies in a GPU's memory."""
    return is_gpu(array.ctx)


def host_view(array: NDArray) -> np.ndarray:
    """Return a numpy array over the memory of a float32 CPU NDArray: no copy, writable.

    Waits for what MXNet still computes on it. The view keeps the NDArray alive. `BadInput` for
    another type, whose memory would be read as what it is not.
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


def array_view(array: NDArray) -> tuple[Any, ModuleType]:
    """Return the same memory as an array with numpy's interface, and the module of its functions.

    numpy itself on the CPU, where NDArray operators are up to 60 times slower; `mx.np` on a GPU,
    where the data stay. A formula written against this pair runs on both.
    """
    if on_gpu(array):
        return array.as_np_ndarray(), _mxnet().np
    return host_view(array), np


def module_of(array: Any) -> ModuleType:
    """Return the module of the functions of an array that `array_view` or its module made."""
    return np if isinstance(array, np.ndarray) else _mxnet().np


def fetch(*arrays: Any) -> list[np.ndarray]:
    """Bring arrays, as `array_view` shows them and of one type, to the host.

    From a GPU in a single copy, which waits for all that was asked of it; this is the only way
    that numbers leave it. Arrays of the host come back as they are.
    """
    if isinstance(arrays[0], np.ndarray):
        return list(arrays)
    flat = [array.as_nd_ndarray().reshape(-1) for array in arrays if array.size]
    values = _mxnet().nd.concat(*flat, dim=0).asnumpy()
    ends = np.cumsum([array.size for array in arrays])
    return [part.reshape(a.shape) for part, a in zip(np.split(values, ends[:-1]), arrays)]


_COPIES = 8  # of a block of columns, its own included, while these are sorted or multiplied


def column_blocks(updates: NDArray) -> Iterator[Any]:
    """Cut a matrix on a GPU into blocks of columns, as many as keep within its `workspace`."""
    m, d = updates.shape
    width = max(1, workspace(updates.ctx) // (_COPIES * m * np.dtype(np.float32).itemsize))
    view, _ = array_view(updates)
    return (view[:, start : start + width] for start in range(0, d, width))


def off_diagonal(square: Any) -> Any:
    """Mark all entries of a square matrix but its diagonal, on the matrix's device."""
    n = square.shape[-1]
    if isinstance(square, np.ndarray):
        return ~np.eye(n, dtype=bool)
    return _mxnet().np.eye(n, ctx=square.ctx) == 0


def to_ndarray(array: Any) -> NDArray:
    """Turn an array made with `array_view`'s module into an NDArray; no copy of float32."""
    if isinstance(array, np.ndarray):
        whole = np.ascontiguousarray(array, dtype=np.float32)
        return _mxnet().nd.from_numpy(whole, zero_copy=True)
    return array.as_nd_ndarray()


def as_numbers(
    values: Any, shape: tuple[int | None, ...], user: str, what: str, ctx: Context | None = None
) -> NDArray:
    """Take what a user gave for an array of numbers: the one door to all rules and attacks.

    Parameters
    ----------
    values : NDArray, numpy array or what numpy makes an array of; integers or floats
        A float32 NDArray comes back as it is, all else as a copy in float32, where numbers beyond
        its range become infinite.
    shape : tuple
        What the shape has to be; None stands for any length from 1 on, m or d.
    user, what : str
        Who takes or gives the values, and what they are, for the message.
    ctx : MXNet context, optional
        Where a copy is made; by default on the CPU.

    Raises
    ------
    BadInput
        Another shape, or no real numbers.
    """
    letters = iter("md")
    lengths = [next(letters) if n is None else str(n) for n in shape]
    told = "(" + ", ".join(lengths) + ",)"[len(shape) > 1 :]
    if not isinstance(values, _mxnet().nd.NDArray):
        try:
            values = np.asarray(values)
        except (TypeError, ValueError, RuntimeError):  # a ragged list, a tensor of another device
            values = np.asarray(None)
    kind = np.dtype(values.dtype)
    fits = len(values.shape) == len(shape) and all(
        have > 0 and wanted in (None, have) for have, wanted in zip(values.shape, shape)
    )
    if not fits or kind.kind not in "fiu":
        given = "no array" if kind.kind == "O" else f"{kind} {tuple(values.shape)}"
        raise BadInput(f"{user}: {what} must be numbers of shape {told}, not {given}.")
    if isinstance(values, np.ndarray):
        with np.errstate(over="ignore"):
            return _mxnet().nd.array(values.astype(np.float32), ctx=ctx, dtype="float32")
    plain = values.as_nd_ndarray()
    return plain if kind == np.float32 else plain.astype("float32")


def as_updates(values: Any, user: str) -> NDArray:
    """Take a matrix of updates (m, d), m and d at least 1, as `as_numbers` does."""
    return as_numbers(values, (None, None), user, "updates")


def take_rows(array: NDArray, rows: Any) -> NDArray:
    """Copy some rows of an array (m, ...), in the order given, on its device.

    The rows' numbers are integers, of the host or of the same device.
    """
    if not on_gpu(array):
        return to_ndarray(host_view(array)[rows])
    nd = _mxnet().nd
    # Integers: in float32, the default, numbers beyond 2^24 would run together.
    there = nd.array(rows, ctx=array.ctx, dtype="int64") if module_of(rows) is np else rows
    return nd.take(array, there.as_nd_ndarray(), axis=0)


def uniform(rng: np.random.Generator, shape: tuple[int, ...], like: NDArray) -> Any:
    """Draw float32 from [0, 1) on the device of `like`, as `array_view` would show them."""
    if not on_gpu(like):
        return rng.random(shape, dtype=np.float32)
    _seed_device(rng, like)
    return _mxnet().nd.random.uniform(shape=shape, ctx=like.ctx).as_np_ndarray()


def normal(rng: np.random.Generator, shape: tuple[int, ...], like: NDArray) -> Any:
    """Draw standard normal float32 on the device of `like`, as `array_view` would show them."""
    if not on_gpu(like):
        return rng.standard_normal(shape, dtype=np.float32)
    _seed_device(rng, like)
    return _mxnet().nd.random.normal(shape=shape, ctx=like.ctx).as_np_ndarray()


def _seed_device(rng: np.random.Generator, like: NDArray) -> None:
    # MXNet keeps one generator per device; seeding it at each draw makes `rng` the only state.
    _mxnet().random.seed(int(rng.integers(2**31)), ctx=like.ctx)
