"""What numbers depend on beside setting and seed: the CPU, and the linear algebra at work on it.

A library picks its kernels, the innermost loops, by the CPU, and one that is older than the CPU may
pick those of a much older one: several times slower, and the last digit of a sum is another.
"""

from __future__ import annotations

import functools
import importlib.util
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_CPUINFO = Path("/proc/cpuinfo")
_OWNERS = ("numpy", "scipy", "mxnet")
_NAMES = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}


class _Vectors(NamedTuple):
    """Vector instructions: the CPU's flag for them, and OpenBLAS's kernels that use no wider."""

    flag: str
    kernels: str


# The widest first.
_VECTORS = {
    "AVX-512": _Vectors("avx512bw", "SkylakeX Cooperlake SapphireRapids"),
    "AVX2": _Vectors("avx2", "Haswell Zen Excavator"),
    "AVX": _Vectors("avx", "Sandybridge Bulldozer Piledriver Steamroller"),
    "SSE": _Vectors(
        "sse2",
        "Katmai Coppermine Northwood Prescott Banias Atom Core2 Penryn Dunnington Nehalem Athlon "
        "Opteron Opteron_SSE3 Barcelona Bobcat Nano",
    ),
}
_MODERN = {"AVX-512": "SkylakeX", "AVX2": "Haswell"}  # and what OPENBLAS_CORETYPE calls them
_CPU_NUMBERS = {  # of x86, then of ARM
    "cpu family": "family",
    "model": "model",
    "CPU implementer": "implementer",
    "CPU part": "part",
}


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
        known = (name for name, some in _VECTORS.items() if self.kernel in some.kernels.split())
        return next(known, None)


@functools.cache
def cpu() -> Cpu:
    """Name this machine's CPU, such as "AMD EPYC (family 26, model 2, AVX-512)"."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # The first core's, which come last here and win.
    told = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in reversed(lines))
    }
    flags = told.get("flags", "").split()
    vectors = next((name for name, some in _VECTORS.items() if some.flag in flags), None)
    numbers = [f"{short} {told[long]}" for long, short in _CPU_NUMBERS.items() if long in told]
    name = _short(told.get("model name") or platform.processor() or platform.machine())
    details = ", ".join(filter(None, (*numbers, vectors)))
    return Cpu(f"{name} ({details})" if details else name, vectors)


def _short(name: str) -> str:
    """Leave trademarks, speed and number of cores out of a CPU's name."""
    trifles = r"\((R|TM)\)|@.*|\b\d+-Core\b|\b(CPU|Processor)\b"
    return " ".join(re.sub(trifles, " ", name, flags=re.IGNORECASE).split())[:40]


@functools.cache
def libraries() -> tuple[Blas, ...]:
    """Name the linear algebra of numpy, scipy and MXNet, in this order.

    Imports them, since a library picks its kernels when it loads. One that came with none of them
    is named, last, where one of them brought none.
    """
    import scipy.linalg.blas  # noqa: F401
    from threadpoolctl import threadpool_info

    from fltrust_repro.backend import mx  # noqa: F401

    found = {
        Blas(
            _owner(Path(told["filepath"]).resolve()),
            _NAMES.get(told["internal_api"], told["internal_api"]),
            told["version"],
            told.get("architecture"),
        )
        for told in threadpool_info()
        if told["user_api"] == "blas"
    }
    order = _OWNERS if {*_OWNERS} <= {blas.owner for blas in found} else (*_OWNERS, "system")
    ours = (blas for blas in found if blas.owner in order)
    return tuple(sorted(ours, key=lambda blas: (order.index(blas.owner), str(blas))))


def _owner(library: Path) -> str:
    for owner in _OWNERS:
        package = Path(importlib.util.find_spec(owner).origin).resolve().parent
        if {package, package.with_name(f"{owner}.libs")} & {*library.parents}:
            return owner
    return "system"


def kind() -> str:
    """Name all of this machine that a trial's numbers may depend on; alike on machines alike."""
    return ", ".join((*(f"{blas.owner} {blas}" for blas in libraries()), str(cpu())))


def odd_ones(kinds: Mapping[str, str]) -> dict[str, str]:
    """Return those machines, by name, that are not of the kind that most are, with their kind."""
    [(usual, _)] = Counter(kinds.values()).most_common(1)
    return {name: kind for name, kind in kinds.items() if kind != usual}


def advice(cpu: Cpu, libraries: Sequence[Blas], coretype: str | None) -> str | None:
    """Say in a sentence which kernels are below the CPU, what it costs and what to set.

    `coretype` is the environment's OPENBLAS_CORETYPE. None where all is well or not known.
    """
    if cpu.vectors not in _MODERN:
        return None
    best = _MODERN[cpu.vectors]
    widths = list(_VECTORS)
    narrower = widths[widths.index(cpu.vectors) + 1 :]
    held = [blas for blas in libraries if blas.owner == "scipy" and blas.vectors in narrower]
    if coretype and held:
        return (
            f"OPENBLAS_CORETYPE={coretype} holds scipy's {held[0]}, which does the hot products, "
            f"at {held[0].vectors} on a CPU with {cpu.vectors}: slower, not wrong; unset it, or "
            f"set {best}"
        )
    far = [blas for blas in libraries if blas.vectors in narrower and blas.vectors not in _MODERN]
    if not far:
        return None
    named = " and ".join(f"{blas.owner}'s {blas}" for blas in far)
    little = ", and a little only, since scipy's does the hot products"
    if "scipy" in {blas.owner for blas in far}:
        little = ""
    return (
        f"{named}: kernels for {far[0].vectors}, far below a CPU with {cpu.vectors}; slower, not "
        f"wrong{little}; OPENBLAS_CORETYPE={best} mends it (the last digit of sums can differ, "
        "and trials name their kernels)"
    )
