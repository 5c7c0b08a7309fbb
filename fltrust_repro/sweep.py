"""Many trials: long-lived worker processes, a store that forgets nothing, progress.

Processes are spawned, since MXNet does not survive a fork; each runs trial after trial with one
thread. Only the parent writes to the store, each trial as it ends.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from tqdm import tqdm

from fltrust_repro.attacks import attacks
from fltrust_repro.backend import THREAD_COUNTS
from fltrust_repro.errors import BadInput
from fltrust_repro.registry import load_plugin
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store, Trial, protocol_of
from fltrust_repro.training import EVALUATE_EVERY, poisoned_examples, run_trial


@dataclass(frozen=True)
class Machine:
    """Where and how trials run; nothing in here changes a trial's numbers.

    Attributes
    ----------
    device : {"cpu", "gpu"}
    jobs : int
        Worker processes.
    data_dir : Path, optional
    plugins : tuple of Path
        Files with a user's own rules, attacks or models, loaded in every process.
    """

    device: str = "cpu"
    jobs: int = 1
    data_dir: Path | None = None
    plugins: tuple[Path, ...] = field(default=())


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> str:
    """Return the versions that a result may depend on, in one line."""
    names = ("fltrust_repro", "mxnet", "mxnet-cu112", "numpy", "numba")
    found = [f"python {platform.python_version()}", platform.machine()]
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


# A worker process's end of the progress bar: a shared count of iterations, set once at its start.
_iterations_done = None


def _prepare_process(plugins: tuple[Path, ...], iterations_done: object) -> None:
    global _iterations_done
    _iterations_done = iterations_done
    threading.Thread(target=_end_with_command, daemon=True).start()
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for path in plugins:
        load_plugin(path)


def _end_with_command() -> None:
    # Returns however the command ended, kill -9 included; then nobody is left to take a result.
    parent_process().join()
    os._exit(1)


def _count_iteration() -> None:
    with _iterations_done.get_lock():
        _iterations_done.value += 1


def _run(setting: Setting, seed: int, device: str, data_dir: Path | None) -> Trial:
    result = run_trial(
        setting, seed, device=device, data_dir=data_dir, after_iteration=_count_iteration
    )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Trial(setting, seed, result, device, versions(), now, protocol_of(setting))


def _projected_seconds(setting: Setting, device: str, data_dir: Path | None) -> float:
    """Estimate a trial's time from six iterations; evaluation is timed apart."""
    # Poisoned examples take minutes to make and change an iteration's time by little.
    without = {"attack": "none"} if attacks[setting.attack].inject is not None else {}

    def timed(iterations: int) -> float:
        short = Setting.from_dict({**setting.as_dict(), **without, "iterations": iterations})
        return run_trial(short, 0, device=device, data_dir=data_dir).seconds

    timed(1)  # compiles, or loads what was compiled
    one, four = timed(1), timed(4)
    iteration = (four - one) / 3
    evaluation = max(one - iteration, 0.0)
    return setting.iterations * (iteration + evaluation / EVALUATE_EVERY)


def in_turns(settings: Sequence[Setting], seeds: Sequence[int]) -> list[tuple[Setting, int]]:
    """Every setting's first seed before any second, so that whole tables show early."""
    unique = list(dict.fromkeys(settings))
    return [(setting, seed) for seed in seeds for setting in unique]


def run_missing(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    store: Store,
    machine: Machine,
    announce: Callable[[float], None] = lambda hours: None,
) -> int:
    """Run the trials that the store does not have yet, and write each as it ends.

    `announce` is told first how many hours the run will take, from a few iterations of one
    setting. Returns how many trials ran. `KeyboardInterrupt` ends the worker processes and passes
    on; what was finished is in the store. The first error of a trial ends the run likewise.
    """
    done = {trial.name[:2] for s in dict.fromkeys(settings) for trial in store.find(s, seeds)}
    missing = [(s, seed) for s, seed in in_turns(settings, seeds) if (s.key(), seed) not in done]
    if not missing:
        return 0
    # Before the processes start: numpy's and MXNet's libraries read it when they load.
    os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))
    spawn = get_context("spawn")
    iterations_done = spawn.Value("q", 0)
    jobs = min(machine.jobs, len(missing))
    pool = ProcessPoolExecutor(
        max_workers=jobs,
        mp_context=spawn,
        initializer=_prepare_process,
        initargs=(machine.plugins, iterations_done),
    )
    where = (machine.device, machine.data_dir)
    try:
        with _plain_errors():
            first = missing[0][0]
            with _interrupts_held():
                projection = pool.submit(_projected_seconds, first, *where)
            seconds = projection.result()
            _make_poisoned_sets(pool, missing, machine)
            iterations = sum(setting.iterations for setting, _ in missing)
            announce(seconds / first.iterations * iterations / jobs / 3600)
            with _interrupts_held():
                futures = [pool.submit(_run, setting, seed, *where) for setting, seed in missing]
            _collect(futures, store, iterations, iterations_done)
    except BaseException:
        _stop_now(pool)
        raise
    pool.shutdown()
    return len(missing)


def _make_poisoned_sets(
    pool: ProcessPoolExecutor, missing: Sequence[tuple[Setting, int]], machine: Machine
) -> None:
    """Make the examples that attacks inject, one set per data set, share and seed."""
    needed = {
        (setting.dataset, setting.attack, setting.poisoned_share, seed): setting
        for setting, seed in missing
        if attacks[setting.attack].inject is not None
    }
    with _interrupts_held():
        futures = [
            pool.submit(_poison, setting, seed, machine.data_dir)
            for (*_, seed), setting in needed.items()
        ]
    if futures:
        done = tqdm(as_completed(futures), "poisoned sets", len(futures), file=sys.stderr)
        for future in done:
            future.result()


def _poison(setting: Setting, seed: int, data_dir: Path | None) -> None:
    poisoned_examples(setting, seed, data_dir)  # keeps them on disk; too large to send back


def _collect(
    futures: Sequence[Future], store: Store, iterations: int, iterations_done: Synchronized
) -> None:
    pending = set(futures)
    every = 0.5 if sys.stderr.isatty() else 30  # seconds; a log file needs no animation
    with tqdm(
        total=iterations, unit="it", file=sys.stderr, smoothing=0.05, mininterval=every
    ) as progress:
        while pending:
            finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                store.add(future.result())
            done = len(futures) - len(pending)
            progress.set_description(f"{done}/{len(futures)} trials", refresh=False)
            progress.update(iterations_done.value - progress.n)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    # Processes start inside `submit` and inherit the signal mask: Ctrl-C cannot hit one before it
    # ignores the signal by itself. Ours comes through when the mask is lifted.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise BadInput(
            "a worker process was killed (out of memory?); run the same command again, finished "
            "trials are kept; fewer --jobs need less memory."
        ) from error


def _stop_now(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
