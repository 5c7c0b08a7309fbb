"""How the suite measures: wall-clock time, a process's peak memory, a process of one's own."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fltrust_repro.backend import WORKER_ENVIRONMENT

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One measurement, or one that was skipped: then `median` is None and `note` says why."""

    section: str
    case: str
    who: str = "fltrust_repro"
    m: int | None = None
    d: int | None = None
    median: float | None = None  # seconds
    minimum: float | None = None
    repeats: int = 0
    memory: float | None = None  # MiB on top of what there was before
    limit: float | None = None  # seconds that the machine would need at least
    bound: str = ""  # what the limit comes from
    products: float | None = None  # seconds of its matrix products at the rates of their sizes
    note: str = ""


def figures(times: Sequence[float]) -> dict[str, float]:
    """Return what a row says of some times; the first counts only where there are few."""
    counted = times[1:] if len(times) > 3 else times
    return {
        "median": statistics.median(counted),
        "minimum": min(counted),
        "repeats": len(counted),
    }


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def timed(function: Callable[[], Any], budget: float, most: int = 21) -> dict[str, float]:
    """Call a function once, and again until `budget` seconds have passed."""
    times = [seconds(function)]
    while len(times) < most and sum(times) < budget:
        times.append(seconds(function))
    return figures(times)


@dataclass
class Peak:
    """The most memory that a process held, in MiB, on top of what it had; None where unknown."""

    memory: float | None = None


@contextmanager
def peak() -> Iterator[Peak]:
    """Watch this process's memory; the kernel keeps the peak, on Linux."""
    found = Peak()
    if not os.access("/proc/self/clear_refs", os.W_OK):
        yield found
        return
    gc.collect()
    # What was freed before goes back, or the next one would take it and seem to need nothing.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield found
    found.memory = max(_status("VmHWM") - before, 0) / MIB


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", text).group(1))


def free_memory() -> int | None:
    """Bytes that new processes can use; None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", text).group(1))


def one_thread() -> None:
    """Let this process's children compute with one thread each."""
    os.environ.update(WORKER_ENVIRONMENT)


def fresh_process() -> ProcessPoolExecutor:
    """A process of its own, so that nothing that ran before is in its memory."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def in_fresh_process(function: Callable, *args: Any) -> Any:
    """Call a function in a process of its own."""
    with fresh_process() as process:
        return process.submit(function, *args).result()
