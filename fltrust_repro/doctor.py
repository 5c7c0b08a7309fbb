"""The command `doctor`: what is installed and at hand, what is wrong, and what to do about it.

Nothing here imports MXNet, so that it works where MXNet is what is wrong: whether trials can run
is tried in a process of its own, which may fail as it likes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import click

from fltrust_repro import cuda, machine
from fltrust_repro.errors import BadInput
from fltrust_repro.threads import WORKER_ENVIRONMENT, environment

_SHARED = Path("/dev/shm")
_SHARED_BY_PROCESS = 2**15  # bytes: a page for each lock of its queues


class Finding(NamedTuple):
    """One line of the report; a fault is what keeps trials from running."""

    topic: str
    text: str
    is_fault: bool = False


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Looked in first.")
@click.option("--store", "store_path", default="trials.sqlite", show_default=True,
              type=click.Path(path_type=Path), help="File of finished trials.")  # fmt: skip
def doctor(data_dir: Path | None, store_path: Path) -> None:
    """Say what is installed and at hand, and what is wrong; exit code 1 if trials cannot run."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": python,
        "cpu": cpu,
        "packages": packages,
        "mxnet": mxnet,
        "driver": driver,
        "cuda": libraries,
        "data": lambda: data(data_dir),
        "store": lambda: store(store_path),
        "cache": cache,
        "processes": processes,
        "device": device,
    }
    faults = []
    for topic, check in checks.items():
        for finding in _findings(topic, check):
            click.echo(f"{finding.topic:9} {finding.text}")
            if finding.is_fault:
                faults.append(finding.topic)
    if faults:
        click.echo(f"\nTrials cannot run here; see above: {', '.join(dict.fromkeys(faults))}.")
        sys.exit(1)
    click.echo("\nTrials can run here.")


def _findings(topic: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except BadInput as error:
        yield Finding(topic, str(error), is_fault=True)
    except Exception as error:  # a report that breaks off helps nobody
        yield Finding(topic, f"cannot be told ({type(error).__name__}: {error})")


def python() -> Iterator[Finding]:
    """Tell Python's version and where it runs."""
    yield Finding(
        "python",
        f"{platform.python_version()} ({sys.executable}), {platform.system()} "
        f"{platform.machine()}, {_cores()} cores",
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu() -> Iterator[Finding]:
    """Tell the CPU, as trials name it."""
    yield Finding("cpu", str(machine.cpu()))


def packages() -> Iterator[Finding]:
    """Tell the versions of the packages that setup.py demands, and which do not fit."""
    from packaging.requirements import Requirement

    found = []
    for text in importlib.metadata.requires("fltrust_repro") or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        remedy = f"`pip install '{wanted.name}{wanted.specifier}'`"
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", f"{wanted.name} is not installed: {remedy}")
            continue
        found.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            yield Finding("packages", f"{wanted.name} {version} does not fit: {remedy}")
    yield Finding("packages", ", ".join(found))


def mxnet() -> Iterator[Finding]:
    """Tell which builds of MXNet are installed; what follows from it, `device` says."""
    builds = cuda.installed_builds()
    kinds = {cuda.CPU_BUILD: "for the CPU", cuda.CUDA_BUILD: "for CUDA 11.2"}
    told = [f"{name} {version} ({kinds[name]})" for name, version in builds.items()]
    yield Finding("mxnet", ", ".join(told) or "not installed by pip")


def driver() -> Iterator[Finding]:
    """Tell whether NVIDIA's driver is there, and whether the build of MXNet makes use of it."""
    found, builds = cuda.driver(), cuda.installed_builds()
    if found is None:
        module = cuda.kernel_module_version()
        if module is not None:
            text = (
                f"NVIDIA {module}, but the loader does not find its {cuda.DRIVER_LIBRARY}; in a "
                "container, pass the GPU in"
            )
        elif cuda.CUDA_BUILD in builds:
            text = "no NVIDIA driver found; MXNet's build for CUDA does not load without one"
        else:
            text = "no NVIDIA driver found; trials run on the CPU"
        yield Finding("driver", text)
        return
    speaks = f", for CUDA up to {found.cuda}" if found.cuda else ""
    yield Finding("driver", f"NVIDIA {found.version or '(version not told)'}{speaks}")
    if builds and cuda.CUDA_BUILD not in builds:
        remedy = f"`pip uninstall -y {cuda.CPU_BUILD} && pip install -e '.[cuda]'`"
        yield Finding("driver", f"MXNet's build for the CPU makes no use of it: {remedy}")


def libraries() -> Iterator[Finding]:
    """Tell which of the libraries that MXNet's CUDA build needs are missing."""
    if cuda.CUDA_BUILD not in cuda.installed_builds():
        yield Finding("cuda", f"no libraries needed, since {cuda.CUDA_BUILD} is not installed")
        return
    missing = cuda.preload()
    for name in missing:
        yield Finding("cuda", f"{name} is missing: {cuda.remedy([name])}")
    if not missing:
        yield Finding("cuda", f"all {len(cuda.LIBRARIES)} libraries and the driver's load")


def data(data_dir: Path | None) -> Iterator[Finding]:
    """Tell which data sets are at hand, and where."""
    from fltrust_repro import datasets

    for row in datasets.status(data_dir):
        where = row.where or f"not at hand: `python -m fltrust_repro data fetch {row.name}`"
        yield Finding("data", f"{row.name:14} {where}")


def store(path: Path) -> Iterator[Finding]:
    """Tell how many finished trials the store holds, and whether the file is whole."""
    from fltrust_repro.archive import opened_to_read, plain_columns  # loads what may not load

    remedy = "give --store another file, in a folder that you can write to"
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise BadInput(f"{path} cannot be written, for {folder} cannot; {remedy}.")
    if not path.exists():
        yield Finding("store", f"{path} is not there yet; the first trial makes it")
        return
    if not (path.is_file() and os.access(path, os.W_OK)):
        raise BadInput(f"{path} is not a file that can be written; {remedy}.")
    try:
        with opened_to_read(path) as opened:
            if not plain_columns(opened, "trials"):
                raise sqlite3.DatabaseError("it has no plain table of trials")
            (verdict,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            counted = opened.execute("SELECT COUNT(seed), COUNT(DISTINCT key) FROM trials")
            trials, settings = counted.fetchone()
    except sqlite3.DatabaseError as error:
        problem = f"{path} is no store of trials, or a damaged one ({error}); {remedy}."
        raise BadInput(problem) from error
    if verdict != "ok":
        raise BadInput(f"{path} is damaged ({verdict}); keep a copy of it, and {remedy}.")
    yield Finding("store", f"{path}: {trials} finished trials of {settings} settings, intact")


def cache() -> Iterator[Finding]:
    """Tell where compiled code is kept, so that it is compiled but once."""
    from fltrust_repro import compiled  # loads numba, which may be what does not load

    try:
        yield Finding("cache", f"compiled code is kept in {compiled.folder()}")
    except OSError:
        yield Finding(
            "cache",
            "no folder for compiled code can be written, so that every process compiles it anew, "
            "for half a minute; set NUMBA_CACHE_DIR to a folder that can be",
        )


def processes() -> Iterator[Finding]:
    """Tell whether the system has room for what a process per core shares with the command."""
    cores, remedy = _cores(), "in a container, start it with --shm-size 64m"
    try:
        get_context("spawn").Lock()
    except OSError as error:
        raise BadInput(f"{_SHARED} cannot be written ({error}); {remedy}.") from error
    needed = cores * _SHARED_BY_PROCESS
    if _SHARED.is_dir() and (free := shutil.disk_usage(_SHARED).free) < needed:
        raise BadInput(
            f"{_SHARED} has room for {free // 1024} KiB, and a process on each of {cores} cores "
            f"takes {needed // 1024} KiB; {remedy}, or take fewer --jobs."
        )
    yield Finding("processes", f"one on each of {cores} cores")


def device() -> Iterator[Finding]:
    """Tell which device `--device auto` takes here, having tried it, and the linear algebra."""
    cuda_build = cuda.CUDA_BUILD in cuda.installed_builds()
    if cuda_build and cuda.driver():
        yield Finding("device", "a GPU newer than MXNet compiles for minutes when first used")
    name, count, blas = _tried()
    text = "the CPU" if name == "cpu" else f"GPU ({count} of them)"
    yield Finding("device", f"{text}: what --device auto takes here")
    if name == "cpu" and cuda_build:
        yield Finding("device", "MXNet sees no GPU: look at the driver and CUDA_VISIBLE_DEVICES")
    yield Finding("blas", ", ".join(f"{one.owner}: {one}" for one in blas))
    advice = machine.advice(machine.cpu(), blas, os.environ.get("OPENBLAS_CORETYPE"))
    if advice is not None:
        yield Finding("blas", advice)


def _tried() -> tuple[str, int, tuple[machine.Blas, ...]]:
    """Start a process as trials run in: its device, how many GPUs it sees, its linear algebra."""
    pool = partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn"))
    try:
        with environment(WORKER_ENVIRONMENT), pool() as process:
            name, count = process.submit(_try_device).result()
            return name, count, process.submit(machine.libraries).result()
    except BrokenProcessPool:
        raise BadInput("MXNet does not load: importing it ends the process.") from None
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"trials do not start ({type(error).__name__}: {error}).") from error


def _try_device() -> tuple[str, int]:
    """Import all that a trial needs, compute on the device, and name it."""
    from fltrust_repro import backend

    importlib.import_module("fltrust_repro.trial_process")
    name = backend.resolve_device("auto")
    backend.nd.ones(2, ctx=backend.context(name)).wait_to_read()
    return name, backend.gpu_count()
