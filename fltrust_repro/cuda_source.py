"""Kernels in CUDA source, which MXNet compiles for the GPU at hand, be it newer than MXNet."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fltrust_repro import backend

if TYPE_CHECKING:
    from mxnet.context import Context

Launch = Callable[..., None]
"""`launch(name, *arguments, n)`: run a kernel in n threads."""

_THREADS = 256  # in a block
_PRELUDE = """
#define NUMBER_K_OF(n)                                   \\
    const int k = blockIdx.x * blockDim.x + threadIdx.x; \\
    if (k >= n) return;
"""


def source_of(file: Path) -> str:
    """Return a file's source, and before it what every kernel begins with: thread k is one of n."""
    return _PRELUDE + file.read_text(encoding="utf-8")


def signatures(source: str) -> dict[str, str]:
    """Return the parameters of each kernel in CUDA source, by its name."""
    found = re.findall(r"__global__ void (\w+)\(([^)]*)\)", source)
    return {name: " ".join(parameters.split()) for name, parameters in found}


def kernels_of(file: Path, ctx: Context) -> Launch:
    """Compile a file's kernels; the GPU's driver does the rest when one first runs there."""
    source = source_of(file)
    module = backend.mx.rtc.CudaModule(source)
    kernels = {name: module.get_kernel(name, told) for name, told in signatures(source).items()}

    def launch(name: str, *arguments: Any) -> None:
        blocks = -(-arguments[-1] // _THREADS)
        kernels[name].launch(list(arguments), ctx, (blocks, 1, 1), (_THREADS, 1, 1))

    return launch
