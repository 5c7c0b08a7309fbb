"""What numbers depend on beside setting and seed: CPU, linear algebra, CUDA's libraries, versions.

A library that is older than the CPU may pick kernels, its innermost loops, of a much older one:
several times slower, and with other last digits. MXNet is looked at without importing it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fltrust_repro.compiled import folder
from fltrust_repro.nvidia import DRIVER_LIBRARY, capability, gpu_name

# ---- CPU and linear algebra

_CPUINFO = Path("/proc/cpuinfo")
# Vector instructions, widest first: the CPU's flag, and OpenBLAS's kernels that use no wider ones.
_VECTORS = {
    "AVX-512": ("avx512bw", "SkylakeX Cooperlake SapphireRapids"),
    "AVX2": ("avx2", "Haswell Zen Excavator"),
    "AVX": ("avx", "Sandybridge Bulldozer Piledriver Steamroller"),
    "SSE": ("sse2", "Katmai Coppermine Northwood Prescott Banias Atom Core2 Penryn Dunnington "
                    "Nehalem Athlon Opteron Opteron_SSE3 Barcelona Bobcat Nano"),
}  # fmt: skip
_MODERN = {"AVX-512": "SkylakeX", "AVX2": "Haswell"}  # and what OPENBLAS_CORETYPE calls them
_CPU_NUMBERS = {"cpu family": "family", "model": "model",  # x86
                "CPU implementer": "implementer", "CPU part": "part"}  # ARM  # fmt: skip
_OWNERS = ("numpy", "scipy", "mxnet")
_NAMES = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}


class Cpu(NamedTuple):
    """A CPU: its name, and its widest vector instructions, None where they are not known."""

    name: str
    vectors: str | None

    def __str__(self) -> str:
        return self.name


class Blas(NamedTuple):
    """A library of linear algebra, and the package it came with, "system" where with none."""

    owner: str
    name: str
    version: str | None
    kernel: str | None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.version, self.kernel)))

    @property
    def vectors(self) -> str | None:
        """The vector instructions of its kernels; None where they are not known."""
        known = (name for name, (_, some) in _VECTORS.items() if self.kernel in some.split())
        return next(known, None)


@functools.cache
def cpu() -> Cpu:
    """Name this machine's CPU, such as "AMD EPYC (family 26, model 2, AVX-512)"."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    # The first core's, which come last here and win.
    pairs = (line.partition(":") for line in reversed(lines))
    told = {name.strip(): value.strip() for name, _, value in pairs}
    flags = told.get("flags", "").split()
    vectors = next((name for name, (flag, _) in _VECTORS.items() if flag in flags), None)
    numbers = [f"{short} {told[long]}" for long, short in _CPU_NUMBERS.items() if long in told]
    name = told.get("model name") or platform.processor() or platform.machine()
    trifles = r"\((R|TM)\)|@.*|\b\d+-Core\b|\b(CPU|Processor)\b"
    name = " ".join(re.sub(trifles, " ", name, flags=re.IGNORECASE).split())[:40]
    details = ", ".join(filter(None, (*numbers, vectors)))
    return Cpu(f"{name} ({details})" if details else name, vectors)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def libraries() -> tuple[Blas, ...]:
    """Load and name the linear algebra of numpy, scipy and MXNet, last the system's if used."""
    import scipy.linalg.blas  # noqa: F401
    from threadpoolctl import threadpool_info

    specs = ((owner, importlib.util.find_spec(owner)) for owner in _OWNERS)
    folders = {o: Path(s.origin).resolve().parent for o, s in specs if s and s.origin}
    if "mxnet" in folders:
        if CUDA_BUILD in installed_builds():
            preload()
        with contextlib.suppress(OSError):  # which importing it will tell
            ctypes.CDLL(str(folders["mxnet"] / "libmxnet.so"))
    found = set()
    for told in (one for one in threadpool_info() if one["user_api"] == "blas"):
        parents, api = Path(told["filepath"]).resolve().parents, told["internal_api"]
        own = (o for o, f in folders.items() if {f, f.with_name(f"{o}.libs")} & {*parents})
        name = _NAMES.get(api, api)
        found.add(Blas(next(own, "system"), name, told["version"], told.get("architecture")))
    order = _OWNERS if {*_OWNERS} <= {blas.owner for blas in found} else (*_OWNERS, "system")
    ours = (blas for blas in found if blas.owner in order)
    return tuple(sorted(ours, key=lambda blas: (order.index(blas.owner), str(blas))))


def kind() -> str:
    """Name all of this machine that a trial's numbers may depend on; alike on machines alike."""
    return ", ".join((*(f"{blas.owner} {blas}" for blas in libraries()), str(cpu())))


def odd_ones(kinds: Mapping[str, str]) -> dict[str, str]:
    """Return those machines, by name, that are not of the kind that most are, with their kind."""
    [(usual, _)] = Counter(kinds.values()).most_common(1)
    return {name: kind for name, kind in kinds.items() if kind != usual}


def versions(gpu: int | None = None) -> str:
    """Return versions, kernels of linear algebra, CPU, and the GPU if one trains, in one line."""
    kernels: dict[str, list[str]] = {}
    for blas in libraries():
        kernels.setdefault(blas.owner, []).append(str(blas))
    found = [f"python {platform.python_version()}", platform.machine()]
    for name in ("fltrust_repro", CPU_BUILD, CUDA_BUILD, "numpy", "scipy", "numba"):
        if version := version_of(name):
            own = " and ".join(kernels.pop(name.partition("-")[0], []))
            found.append(f"{name} {version}" + (f" ({own})" if own else ""))
    found += [f"BLAS {text}" for texts in kernels.values() for text in texts]
    found.append(str(cpu()))
    if gpu is not None:
        found.append(gpu_name(gpu) or "GPU of unknown name")
    return ", ".join(found)


def version_of(package: str) -> str | None:
    """Return the version of a package that pip installed; None where it did not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def advice(cpu: Cpu, libraries: Sequence[Blas], coretype: str | None) -> str | None:
    """Say which kernels are below the CPU, its cost, what to set; `coretype` is OPENBLAS's now."""
    best, widths = _MODERN.get(cpu.vectors or ""), list(_VECTORS)
    below = widths[widths.index(str(cpu.vectors)) + 1 :] if best else []
    narrow = [blas for blas in libraries if blas.vectors in below]
    held = [blas for blas in narrow if blas.owner == "scipy"]
    far = [blas for blas in narrow if blas.vectors not in _MODERN]
    if coretype and held:
        return (
            f"OPENBLAS_CORETYPE={coretype} holds scipy's {held[0]}, which does the hot products, "
            f"at {held[0].vectors} on a CPU with {cpu.vectors}: slower, not wrong; unset it, or "
            f"set {best}"
        )
    if not far:
        return None
    named = " and ".join(f"{blas.owner}'s {blas}" for blas in far)
    little = ", and a little only, since scipy's does the hot products"
    little *= "scipy" not in [blas.owner for blas in far]
    return (
        f"{named}: kernels for {far[0].vectors}, far below a CPU with {cpu.vectors}; slower, not "
        f"wrong{little}; OPENBLAS_CORETYPE={best} mends it (the last digit of sums can differ, "
        "and trials name their kernels)"
    )


# ---- CUDA's libraries, to which MXNet's CUDA build links. pip puts them where the loader does not
# look; once they are loaded by their paths, MXNet finds them. Only the driver cannot come from pip.

CPU_BUILD, CUDA_BUILD = "mxnet", "mxnet-cu112"
# Compute capabilities that the latter has machine code for, and none (PTX) that the driver of a
# newer card could compile: `experiments/gpu/pack.py` prints what its libmxnet.so holds.
ARCHITECTURES = ((5, 0), (6, 0), (7, 0), (8, 0), (8, 6))
# What each library's pip package is called between "nvidia-" and "-cu11"; a library comes after
# those that it needs itself.
CUDA_LIBRARIES = {
    "libcudart.so.11.0": "cuda-runtime", "libnvrtc.so.11.2": "cuda-nvrtc",
    "libcublasLt.so.11": "cublas", "libcublas.so.11": "cublas", "libcufft.so.10": "cufft",
    "libcurand.so.10": "curand", "libcusolver.so.11": "cusolver", "libcudnn.so.8": "cudnn",
    "libnccl.so.2": "nccl", "libnvToolsExt.so.1": "nvtx",
}  # fmt: skip


def installed_builds() -> dict[str, str]:
    """Return the builds of MXNet that pip installed, with their versions: exactly one may be."""
    return {name: found for name in (CPU_BUILD, CUDA_BUILD) if (found := version_of(name))}


def has_code_for(capability: tuple[int, int]) -> bool:
    """Whether MXNet's build for CUDA has code for a GPU of this compute capability.

    Code runs on GPUs of its own major version and no smaller minor one.

    >>> from fltrust_repro.machine import has_code_for
    >>> has_code_for((7, 5)), has_code_for((9, 0))
    (True, False)
    """
    major, minor = capability
    return any(major == its_major and minor >= its_minor for its_major, its_minor in ARCHITECTURES)


def no_code(index: int, models: Sequence[str]) -> str | None:
    """Say that MXNet has no code for a GPU, and which models train on it; None where it has."""
    found = capability(index)
    if found is None or has_code_for(found):
        return None
    return (
        f"MXNet's build for CUDA has code for cards of compute capability {ARCHITECTURES[0][0]}.0 "
        f"to {ARCHITECTURES[-1][0]}.9, this one ({gpu_name(index)}) has {found[0]}.{found[1]}: the "
        f"models {' and '.join(models)} train on it, others need --device cpu"
    )


def cuda_environment() -> dict[str, str]:
    """Return the variables that CUDA's libraries shall find, unless the user has set them.

    Products of float32 in float32, not TF32, and of one order of sums; code loaded when it is
    first used, and compiled once for all processes.
    """
    found = {
        "NVIDIA_TF32_OVERRIDE": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CUDA_MODULE_LOADING": "LAZY",
        "CUDA_CACHE_MAXSIZE": str(2**32),  # bytes: CUDA's maximum
    }
    with contextlib.suppress(OSError):
        (folder() / "cuda").mkdir(exist_ok=True)
        found["CUDA_CACHE_PATH"] = str(folder() / "cuda")
    return found


def preload() -> list[str]:
    """Load the CUDA build's libraries and the driver's; return the names of those that do not.

    The process keeps `cuda_environment()`, its own variables first.
    """
    # Not for as long as it loads: the driver reads them at the first call on a GPU, cuBLAS and
    # cuDNN when MXNet first makes a handle, which may be in the midst of a trial.
    for variable, value in cuda_environment().items():
        os.environ.setdefault(variable, value)
    missing = []
    for library in [*CUDA_LIBRARIES, DRIVER_LIBRARY]:
        folders = (Path(folder, "nvidia") for folder in sys.path)
        own = (file for folder in folders for file in folder.glob(f"*/lib/{library}"))
        try:
            ctypes.CDLL(str(next(own, library)), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            missing.append(library)
    return missing


def remedy(missing: Sequence[str]) -> str:
    """Say what a user can do about missing libraries, one or several."""
    if DRIVER_LIBRARY in missing:
        return (
            "install NVIDIA's driver (in a container, pass the GPU in), or MXNet's CPU build: "
            f"`pip uninstall -y {CUDA_BUILD} && pip install -e '.[cpu]'`"
        )
    if len(missing) > 1:
        return "`pip install -e '.[cuda]'`"
    package, demanded = f"nvidia-{CUDA_LIBRARIES[missing[0]]}-cu11", []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        demanded = importlib.metadata.requires("fltrust_repro") or []
    texts = (text.split(";")[0].strip() for text in demanded)
    wanted = next((text for text in texts if re.match(rf"{package}\b(?!-)", text)), package)
    return f"`pip install '{wanted}'`"
