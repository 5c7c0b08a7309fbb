"""The decorator of all compiled functions, and where their machine code waits for the next process.

numba, which takes longer to load than most commands do their work, is loaded by the first call.
numba's own cache knows machine code by the file of its function alone, although it holds that of
the functions called; and a damaged file of it stops every process. Here it is known by the sources
of all that it can hold, and where it cannot be kept or read, the function is compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fltrust_repro.files import cache_folders, write_bytes
from fltrust_repro.imports import imports

if TYPE_CHECKING:
    from numba.core.compiler import CompileResult

Array = np.ndarray  # as compiled functions take them

_PACKAGE = Path(__file__).parent
_VERSIONS_KEPT = 4  # of a module
_DIGEST = 32  # bytes of SHA-256, ahead of the machine code


def compiled(function: Callable | None = None, *, fastmath: bool | set[str] = False) -> Any:
    """Compile a function with numba at its first call: `@compiled`, `@compiled(fastmath=True)`.

    The machine code of this package's functions is kept for other processes.
    """
    if function is None:
        return partial(CompiledFunction, fastmath=fastmath)
    return CompiledFunction(function, fastmath)


class CompiledFunction:
    """A function that numba compiles at its first call."""

    def __init__(self, function: Callable, fastmath: bool | set[str] = False) -> None:
        update_wrapper(self, function)
        self._function, self._fastmath = function, fastmath
        self._module = Path(function.__code__.co_filename)
        if self._module.parent == _PACKAGE:
            with contextlib.suppress(OSError):
                _sources()  # as they are now, when this one is imported

    def __call__(self, *arguments: Any) -> Any:
        """Compute with machine code."""
        return self.dispatcher(*arguments)

    @cached_property
    def dispatcher(self) -> Any:
        """What numba makes of the function."""
        from numba import njit

        dispatcher: Any = njit(self._function, fastmath=self._fastmath)
        if self._module.parent == _PACKAGE:
            with contextlib.suppress(OSError, LookupError, SyntaxError, ValueError):  # no source
                kept = f"{self._module.stem}-{version(self._module)}"
                dispatcher._cache = _MachineCode(kept, self._function)
        return dispatcher

    @property
    def _numba_type_(self) -> Any:
        """What numba asks for where another compiled function calls this one."""
        return self.dispatcher._numba_type_


class _MachineCode:
    """Machine code by the signature of a call, as numba asks for it; None where anything fails."""

    cache_path = None  # which numba's caches tell

    def __init__(self, version: str, function: Callable) -> None:
        self._version, self._name = version, function.__qualname__

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """Return the compiled function, or None where it has to be compiled."""
        from numba.core.compiler import CompileResult

        target_context.refresh()
        with contextlib.suppress(Exception):
            content = self._path(sig, target_context.codegen()).read_bytes()
            if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
                return CompileResult._rebuild(target_context, *pickle.loads(content[_DIGEST:]))
        return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Keep a compiled function, unless it holds addresses of this process."""
        from numba.core.serialize import dumps

        if cres.lifted or cres.library.has_dynamic_globals:
            return
        with contextlib.suppress(Exception):
            code, path = dumps(cres._reduce()), self._path(sig, cres.codegen)
            if not path.parent.exists():
                _remove_old(path.parent)
            write_bytes(path, hashlib.sha256(code).digest() + code)

    def _path(self, sig: Any, codegen: Any) -> Path:
        import numba

        made_for = (str(sig), codegen.magic_tuple(), numba.__version__, sys.version)
        return folder() / self._version / f"{self._name}-{_short_hash(repr(made_for).encode())}"


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@cache
def _sources() -> dict[Path, bytes]:
    # Kept as first seen, when the package was imported: that is what its functions do, even where
    # somebody edits a file while the process runs.
    return {file: file.read_bytes() for end in ("py", "cu") for file in _PACKAGE.glob(f"*.{end}")}


def _imported(module: Path) -> Iterator[Path]:
    for found in imports(_sources()[module]):
        for name in ".".join([found.module, *found.names]).split("."):
            if (file := _PACKAGE / f"{name}.py") in _sources():
                yield file


@cache
def version(module: Path) -> str:
    """Name the sources of a module and of those that it imports, directly or not."""
    found, waiting = set(), [module]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _imported(one)
    return _short_hash(b"\0".join(_sources()[one] for one in sorted(found)))


@cache
def program() -> str:
    """Name the sources of the whole package, kernels for a GPU among them."""
    return _short_hash(b"\0".join(content for _, content in sorted(_sources().items())))


@cache
def folder() -> Path:
    """Return the first folder that machine code can be kept in; OSError where there is none."""
    for place in _places():
        with contextlib.suppress(OSError):
            found = place / "machine-code"
            found.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=found).close()
            return found
    raise OSError("no folder for machine code can be written")


def _places() -> Iterator[Path]:
    import numba

    if chosen := vars(numba.config)["CACHE_DIR"]:
        yield Path(chosen)
    yield Path(importlib.util.cache_from_source(__file__)).parent
    yield from cache_folders(_PACKAGE.name)


def _remove_old(new: Path) -> None:
    """Make room for a new version of a module's machine code: only the latest others stay."""
    others = new.parent.glob(f"{new.name.rpartition('-')[0]}-{'[0-9a-f]' * 16}")
    by_age = sorted(others, key=lambda one: one.stat().st_mtime, reverse=True)
    for old in by_age[_VERSIONS_KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


@compiled
def aligned(rows: int, length: int) -> Array:
    """An array (rows, length) of float32, not set, that starts with a line of the core's cache.

    Where none does, each second vector of a core lies in two lines, and loops in the cache take a
    quarter longer.
    """
    memory = np.empty(rows * length + 16, dtype=np.float32)
    skipped = -(memory.ctypes.data // 4) % 16
    return memory[skipped : skipped + rows * length].reshape(rows, length)
