"""The commands `doctor`, on what is installed, at hand and wrong, and `data`, on the data sets.

What may be broken, such as MXNet, numba or pandas, is imported where it is looked at, and a step of
what trials do is taken in a process of its own, which may fail as it likes.
"""

from __future__ import annotations

import contextlib
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
from typing import Any

import click

from fltrust_repro import machine, nvidia
from fltrust_repro.databases import opened_to_read, plain_columns
from fltrust_repro.errors import BadInput, in_words, one_line
from fltrust_repro.machine import usable_cores
from fltrust_repro.words import counted

_LATE = ("numba", "scipy.linalg", "scipy.special", "pandas", "rich.live", "tabulate")  # when used
_SHARED = Path("/dev/shm")
_SHARED_BY_PROCESS = 2**15  # bytes: a page for each lock of its queues

_data_dir = click.option("--data-dir", help="Looked in first.")
_names = click.argument("names", nargs=-1, metavar="[DATASET]...")


@click.group()
def data() -> None:
    """Look for, download and check the data sets."""


@data.command("status")
@_data_dir
def data_status(data_dir: str | None) -> None:
    """Say which data sets are at hand, and where."""
    from fltrust_repro import datasets

    for row in datasets.status(data_dir):
        click.echo(f"{row.name:14} {row.where or 'not at hand':40} {row.source}")


@data.command("fetch")
@_names
@_data_dir
def data_fetch(names: tuple[str, ...], data_dir: str | None) -> None:
    """Download what is not at hand, all data sets by default; exit code 1 if one is missing."""
    _each("fetch", names, data_dir, "here")


@data.command("verify")
@_names
@_data_dir
def data_verify(names: tuple[str, ...], data_dir: str | None) -> None:
    """Check the files of data sets, all by default; exit code 1 if one is wrong or missing."""
    _each("verify", names, data_dir, "verified")


def _each(action: str, names: tuple[str, ...], data_dir: str | None, word: str) -> None:
    from fltrust_repro import datasets

    for name in names:
        datasets.datasets[name]  # an unknown one is refused before any is looked at
    code = 0
    for name in names or datasets.datasets:
        try:
            getattr(datasets, action)(name, data_dir)
            click.echo(f"{name}: {word}")
        except BadInput as error:
            code = 1
            click.echo(f"{name}: {error}", err=True)
    sys.exit(code)


@click.command()
@_data_dir
@click.option("--store", "store_path", default="trials.sqlite", show_default=True,
              type=click.Path(path_type=Path), help="File of finished trials.")  # fmt: skip
def doctor(data_dir: str | None, store_path: Path) -> None:
    """Say what is installed and at hand, and what is wrong; exit code 1 if trials cannot run."""
    blas: list[machine.Blas] = []  # which `device` finds
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "python": _python,
        "cpu": lambda: iter([str(machine.cpu())]),
        "packages": _packages,
        "mxnet": _mxnet,
        "driver": _driver,
        "cuda": _cuda,
        "data": lambda: _data(data_dir),
        "store": lambda: _store(store_path),
        "cache": _cache,
        "processes": _processes,
        "device": lambda: _device(blas),
        "blas": lambda: _blas(blas),
    }
    faults = []
    for topic, check in checks.items():
        try:
            for line in check():  # each is printed as soon as it is known
                click.echo(f"{topic:9} {line}")
        except BadInput as error:
            faults.append(topic)
            click.echo(f"{topic:9} {error}")
        except Exception as error:  # a report that breaks off helps nobody
            click.echo(f"{topic:9} cannot be told ({type(error).__name__}: {error})")
    if faults:
        click.echo(f"\nTrials cannot run here; see above: {', '.join(faults)}.")
        sys.exit(1)
    click.echo("\nTrials can run here.")


# ---- one check each: the lines to print; a `BadInput` is what keeps trials from running


def _python() -> Iterator[str]:
    system = f"{platform.system()} {platform.machine()}, {counted(usable_cores(), 'core')}"
    yield f"{platform.python_version()} ({sys.executable}), {system}"


def _packages() -> Iterator[str]:
    from packaging.requirements import Requirement

    found = []
    for wanted in map(Requirement, importlib.metadata.requires("fltrust_repro") or []):
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            version = machine.version_of(wanted.name)
            if version is None or not wanted.specifier.contains(version, prereleases=True):
                state = "is not installed" if version is None else f"{version} does not fit"
                yield f"{wanted.name} {state}: `pip install '{wanted.name}{wanted.specifier}'`"
            found += [f"{wanted.name} {version}"] if version else []
    yield ", ".join(found)


def _mxnet() -> Iterator[str]:
    kinds = {machine.CPU_BUILD: "for the CPU", machine.CUDA_BUILD: "for CUDA 11.2"}
    builds = machine.installed_builds()
    told = [f"{name} {version} ({kinds[name]})" for name, version in builds.items()]
    yield ", ".join(told) or "not installed by pip"


def _driver() -> Iterator[str]:
    found, builds = nvidia.driver(), machine.installed_builds()
    if found:
        speaks = f", for CUDA up to {found.cuda}" if found.cuda else ""
        yield f"NVIDIA {found.version or '(version not told)'}{speaks}"
        yield from (
            f"it does not start: {fault}" for fault in filter(None, [nvidia.driver_fault()])
        )
        if builds and machine.CUDA_BUILD not in builds:
            remedy = f"`pip uninstall -y {machine.CPU_BUILD} && pip install -e '.[cuda]'`"
            yield f"MXNet's build for the CPU makes no use of it: {remedy}"
    elif module := nvidia.kernel_module_version():
        problem = f"but the loader does not find its {nvidia.DRIVER_LIBRARY}"
        yield f"NVIDIA {module}, {problem}; in a container, pass the GPU in"
    elif machine.CUDA_BUILD in builds:
        yield "no NVIDIA driver found; MXNet's build for CUDA does not load without one"
    else:
        yield "no NVIDIA driver found; trials run on the CPU"


def _cuda() -> Iterator[str]:
    if machine.CUDA_BUILD not in machine.installed_builds():
        yield f"no libraries needed, since {machine.CUDA_BUILD} is not installed"
        return
    chosen = {name: f"{value} (yours)" for name, value in os.environ.items()}  # before it adds ours
    missing = machine.preload()
    yield from (f"{name} is missing: {machine.remedy([name])}" for name in missing)
    if not missing:
        yield f"all {len(machine.CUDA_LIBRARIES)} libraries and the driver's load"
    variables = machine.cuda_environment().items()
    yield ", ".join(f"{name}={chosen.get(name, value)}" for name, value in variables)


def _data(data_dir: str | None) -> Iterator[str]:
    from fltrust_repro import datasets

    for row in datasets.status(data_dir):
        where = row.where or f"not at hand: `python -m fltrust_repro data fetch {row.name}`"
        yield f"{row.name:14} {where}"


def _store(path: Path) -> Iterator[str]:
    from fltrust_repro.archive import Archive  # which loads much

    remedy = "give --store another file, in a folder that you can write to"
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise BadInput(f"{path} cannot be written, for {folder} cannot; {remedy}.")
    if not path.exists():
        yield f"{path} is not there yet; the first trial makes it"
        return
    if not (path.is_file() and os.access(path, os.W_OK)):
        raise BadInput(f"{path} is not a file that can be written; {remedy}.")
    try:
        with opened_to_read(path) as opened:
            if not plain_columns(opened, "trials"):
                raise sqlite3.DatabaseError("it has no plain table of trials")
            (verdict,) = opened.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        problem = f"{path} is no store of trials, or a damaged one ({error}); {remedy}."
        raise BadInput(problem) from error
    if verdict != "ok":
        raise BadInput(f"{path} is damaged ({one_line(verdict)}); keep a copy of it, and {remedy}.")
    with Archive(path) as store:
        store.checked_tables()  # which raises what a run would
        trials, left_out = [*store.everything()], store.left_out
    told = counted(len(trials), "finished trial")
    told += f" of {counted(len({trial.setting for trial in trials}), 'setting')}"
    others, broken = left_out.of_plugins, len(left_out) - left_out.of_plugins
    more = f", and {others:,} of plug-ins that are not loaded" * bool(others)
    less = f", {counted(broken, 'entry')} beside them not understood" * bool(broken)
    yield f"{path}: {told}, intact{more}{less}"


def _cache() -> Iterator[str]:
    from fltrust_repro import compiled

    try:
        yield f"compiled code is kept in {compiled.folder()}"
    except OSError:
        anew = "no folder for compiled code can be written, so that every process compiles it anew"
        yield f"{anew}, for half a minute; set NUMBA_CACHE_DIR to a folder that can be"


def _processes() -> Iterator[str]:
    cores, remedy = usable_cores(), "in a container, start it with --shm-size 64m"
    try:
        get_context("spawn").Lock()
    except OSError as error:
        raise BadInput(f"{_SHARED} cannot be written ({error}); {remedy}.") from error
    needed = cores * _SHARED_BY_PROCESS
    if _SHARED.is_dir() and (free := shutil.disk_usage(_SHARED).free) < needed:
        raise BadInput(
            f"{_SHARED} has room for {free // 1024} KiB, and a process on each of "
            f"{counted(cores, 'core')} takes {needed // 1024} KiB; {remedy}, or take fewer --jobs."
        )
    yield f"one on each of {counted(cores, 'core')}"


def _device(blas: list[machine.Blas]) -> Iterator[str]:
    with _process() as call:
        name, count = call("loading MXNet and other libraries", _try_device)
        blas += call("naming the linear algebra", machine.libraries)
        text = "the CPU" if name == "cpu" else f"GPU ({count} of them)"
        yield f"{text}: what --device auto takes here"
        if name == "gpu" and (how := nvidia.sharing()):
            yield how
        if name == "cpu" and machine.CUDA_BUILD in machine.installed_builds():
            look = "look at the driver and CUDA_VISIBLE_DEVICES"
            yield f"MXNet sees no GPU: {nvidia.driver_fault() or look}"
        for index in range(count or 1):
            yield from _steps(call, name, index)


def _steps(call: Callable[..., Any], device: str, index: int) -> Iterator[str]:
    """Take one step of each model that trains on a device; a GPU's numbers must be the CPU's."""
    from fltrust_repro.rehearsal import IN_GLUON, ROUNDING, STEPS

    gpu, names = device == "gpu", list(STEPS)
    place = f"GPU {index}" if gpu else "the CPU"
    if gpu:
        yield f"{place}: {nvidia.card(index)}"
        formulas = [name for name in names if name != IN_GLUON]
        if no_code := machine.no_code(index, formulas):
            yield f"{place}: {no_code}"
            names = formulas
    for name in names:
        what = f"a step of {name} on {place}"
        first, second, off = call(what, _step, name, device, index)
        if gpu and not off <= ROUNDING:  # NaN is
            unset = "unset NVIDIA_TF32_OVERRIDE" * (os.environ.get("NVIDIA_TF32_OVERRIDE") == "1")
            raise BadInput(
                f"{what} is {off:.0e} off the CPU's numbers, where rounding is below "
                f"{ROUNDING:.0e}; {unset or 'train with --device cpu'}."
            )
        numbers = f", {off:.0e} off the CPU's numbers" * gpu
        yield f"{what}: {first:.3f} s at first, then {second:.3f} s{numbers}"


@contextlib.contextmanager
def _process() -> Iterator[Callable[..., Any]]:
    """Start a process as trials run in: gives what calls a function there, and is told why.

    Whatever goes wrong there is a `BadInput`.
    """
    doing = "a process of its own"
    try:
        from fltrust_repro.backend import WORKER_ENVIRONMENT, environment

        start = partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn"))
        with environment(WORKER_ENVIRONMENT), start() as process:

            def call(what: str, function: Callable, *arguments: Any) -> Any:
                nonlocal doing
                doing = what
                return process.submit(function, *arguments).result()

            yield call
    except BrokenProcessPool:
        raise BadInput(f"trials do not start: {doing} ends the process.") from None
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"trials do not start: {doing} fails ({in_words(error)}).") from error


def _try_device() -> tuple[str, int]:
    """Import all that trials and their commands need; name the device, and count GPUs."""
    from fltrust_repro import backend

    rooms = (f"fltrust_repro.{room}" for room in ("trial_process", "trial_commands"))
    for name in (*rooms, *_LATE):
        importlib.import_module(name)
    backend.mx  # noqa: B018  (which a CPU build is not loaded for to say that it has no GPU)
    return backend.resolve_device("auto"), backend.gpu_count()


def _step(name: str, device: str, index: int) -> Any:
    from fltrust_repro import rehearsal

    return rehearsal.step(name, device, index)


def _blas(blas: list[machine.Blas]) -> Iterator[str]:
    if blas:
        yield ", ".join(f"{one.owner}: {one}" for one in blas)
        advice = machine.advice(machine.cpu(), blas, os.environ.get("OPENBLAS_CORETYPE"))
        yield from [advice] if advice else []
