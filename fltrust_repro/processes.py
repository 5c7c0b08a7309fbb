"""Where trials run: an interface that local processes and a cluster share, and the processes.

Processes are spawned, since MXNet does not survive a fork. Each has one thread and runs trial
after trial; one that dies takes only its own trial with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from fltrust_repro import backend, datasets
from fltrust_repro.backend import WORKER_ENVIRONMENT, environment, gpu_count, resolve_device
from fltrust_repro.errors import BadInput, Raised, in_words, shown
from fltrust_repro.machine import usable_cores
from fltrust_repro.plugins import Plugin

GPU_MEMORY = 0.9  # share of a GPU's memory that trials may fill
MOST_JOBS = 1_000
MOST_MINUTES = 1_000_000  # between checkpoints
_PATIENCE_SECONDS = 10  # for the exit code of a process that died
START_ONE = (
    "start one with `dask scheduler` and give the address that it prints, such as tcp://host:8786."
)


def _is_address(text: str) -> bool:
    with contextlib.suppress(ValueError):  # the port is no number, or beyond any
        parts = urlsplit(text if "://" in text else f"tcp://{text}")
        return bool(parts.scheme in ("tcp", "tls") and parts.hostname and parts.port)
    return False


@dataclass(frozen=True)
class Machine:
    """Where and how trials run; nothing in here changes a trial's numbers.

    `device` is "cpu", "gpu" or "auto". `jobs` are worker processes: by default one per core, on
    GPUs as many as their memory holds; with 0 trials run in this process, one after the other.
    `scheduler` is the address of a Dask scheduler. Every `checkpoint_minutes` it is written how far
    a trial has come; never with 0. A wrong value raises `BadInput`.
    """

    device: str = "cpu"
    jobs: int | None = None
    data_dir: Path | None = None
    scheduler: str | None = None
    checkpoint_minutes: float = 5

    def __post_init__(self) -> None:
        backend.check_device(self.device)
        minutes = self.checkpoint_minutes
        if not isinstance(minutes, Real) or not 0 <= minutes <= MOST_MINUTES:
            raise BadInput(
                f"checkpoint_minutes is {shown(minutes)}; give a number of at most "
                f"{MOST_MINUTES:,}, or 0 for no checkpoints."
            )
        whole = isinstance(self.jobs, Integral) and not isinstance(self.jobs, bool)
        if self.jobs is not None and not (whole and 0 <= self.jobs <= MOST_JOBS):
            raise BadInput(
                f"jobs is {shown(self.jobs)}; give a whole number of at most {MOST_JOBS:,}, or 0 "
                "for trials in this process."
            )
        if self.scheduler is not None and not _is_address(str(self.scheduler)):  # Dask tries long
            raise BadInput(f"scheduler {self.scheduler!r} is not an address; {START_ONE}")


class Place(NamedTuple):
    """What every call is told of where it runs."""

    device: str
    data_dir: Path | None = None
    plugins: tuple[Plugin, ...] = ()


class Executor:
    """Where the trials of a sweep run; this one is the process itself, a call after the other.

    Calls return their own errors as `Raised`. `device` is "cpu" or "gpu"; `meanwhile` is called
    after each iteration where `submit` returns only when the call has ended.
    """

    def __init__(self, machine: Machine) -> None:
        from fltrust_repro import trial_process  # takes a while to load

        self.device = resolve_device(machine.device)
        self.meanwhile: Callable[[], object] = lambda: None
        self._machine, self._done = machine, 0
        trial_process.prepare(0, self._count, is_the_commands=True)

    def _count(self) -> None:
        self._done += 1
        self.meanwhile()

    def check_data(self, names: Iterable[str], plugins: Sequence[Plugin]) -> None:
        """Raise `DataUnavailable` for a data set neither at hand nor to be had."""
        for name in names:
            datasets.fetch(name, self._machine.data_dir)

    def slots(self) -> int:
        """How many calls can run at the same time."""
        return 1

    def submit(self, function: Callable, *args: Any) -> Future:
        """Start a call, of which there must be fewer than `slots()`."""
        call: Future = Future()
        call.set_result(function(*args))
        return call

    def result(self, call: Future) -> Any:
        """Wait for what a call returns; a `Raised` where its process broke off."""
        try:
            return call.result()
        except Exception as error:
            told = self._how_lost(call, error)
            return Raised(told, told, None, once_more=True)

    def _how_lost(self, call: Future, error: Exception) -> str:
        return in_words(error)

    def share_gpus(self, memory: float) -> None:
        """Run more calls per GPU, where each fills a share of its memory."""

    def iterations(self) -> int:
        """How many iterations all calls have told of so far."""
        return self._done

    def close(self) -> None:
        """End the processes, which must be idle."""
        self.meanwhile = lambda: None  # what is called belongs to a run that has ended

    def stop(self) -> None:
        """End everything at once."""
        self.close()


class LocalProcesses(Executor):
    """Processes of this machine: on the CPU one per core, on GPUs one or more each."""

    def __init__(self, machine: Machine) -> None:
        self.device, self._machine = resolve_device(machine.device), machine
        self._gpus = gpu_count() if self.device == "gpu" else 0
        self._spawn = get_context("spawn")
        with _set_up():
            self._iterations = self._spawn.Value("q", 0)
        count = machine.jobs or self._gpus or usable_cores()
        self._pools: list[ProcessPoolExecutor | None] = [None] * count
        self._calls: list[Future | None] = [None] * count
        self._processes = WeakKeyDictionary[Future, BaseProcess]()  # in which a call runs

    def gpu_of(self, slot: int) -> int:
        """Which GPU a slot's process uses: all of them in turn."""
        return slot % self._gpus if self._gpus else 0

    def slots(self) -> int:
        """How many calls can run at the same time."""
        return len(self._pools)

    def submit(self, function: Callable, *args: Any) -> Future:
        """Start a call in an idle process, a new one where the last one died."""
        slot = next(k for k, call in enumerate(self._calls) if call is None or call.done())
        with _set_up(), _interrupts_held(), environment(WORKER_ENVIRONMENT), _without_script():
            told = (self.gpu_of(slot), self._iterations)
            new = partial(ProcessPoolExecutor, 1, self._spawn, initializer=_start, initargs=told)
            pool = self._pools[slot] or new()
            try:
                call = pool.submit(function, *args)
            except BrokenProcessPool:
                pool = new()
                call = pool.submit(function, *args)
            [self._processes[call]] = pool._processes.values()
            self._pools[slot], self._calls[slot] = pool, call
        return call

    def _how_lost(self, call: Future, error: Exception) -> str:
        if not isinstance(error, BrokenProcessPool):
            return in_words(error)
        process, patience = self._processes[call], time.monotonic() + _PATIENCE_SECONDS
        # The pool's own thread asks the system for it too, and only one of the two is told.
        while process.exitcode is None and time.monotonic() < patience:
            time.sleep(0.01)
        return ended(process.exitcode)

    def share_gpus(self, memory: float) -> None:
        """Run more calls per GPU, where each fills a share `memory` of it; `jobs` given wins."""
        if self._machine.jobs is None and self._gpus and memory > 0:
            wanted = min(self._gpus * int(GPU_MEMORY / memory), usable_cores())
            more = max(0, wanted - len(self._pools))
            self._pools += [None] * more
            self._calls += [None] * more

    def iterations(self) -> int:
        """How many iterations all calls have told of so far."""
        return self._iterations.value

    def close(self) -> None:
        """End the idle processes."""
        for pool in filter(None, self._pools):
            pool.shutdown()

    def stop(self) -> None:
        """End everything at once."""
        pools = list(filter(None, self._pools))
        processes = [process for pool in pools for process in (pool._processes or {}).values()]
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def ended(code: int | None) -> str:
    """Say how a process ended: the exit code of one that a signal killed is negative."""
    if code is None or code >= 0:
        return f"its process ended by itself, exit code {code}"
    name = next((known.name for known in signal.Signals if known == -code), "")
    memory = "; perhaps memory ran out" if name == "SIGKILL" else ""
    return f"its process was killed by signal {-code} {name}".rstrip() + memory


@contextlib.contextmanager
def _set_up() -> Iterator[None]:
    # What processes share, locks and pipes, fails where the system has no room for it.
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise BadInput(
            f"worker processes cannot start ({error}); they need a writable /dev/shm with some "
            "room (in a container: --shm-size 64m), and open files and processes for each of "
            "--jobs: take fewer."
        ) from error


def _start(gpu: int, iterations: Synchronized) -> None:
    from fltrust_repro import trial_process

    def count() -> None:
        with iterations.get_lock():
            iterations.value += 1

    threading.Thread(target=_end_with_command, daemon=True).start()
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # MXNet takes these over and ends with exit code 255, which tells nothing of what happened.
    with contextlib.suppress(BadInput):  # which the first trial raises again
        backend.mx  # noqa: B018  (loaded now, and not after this)
    for crash in (signal.SIGSEGV, signal.SIGFPE, signal.SIGBUS):
        signal.signal(crash, signal.SIG_DFL)
    trial_process.prepare(gpu, count)


def _end_with_command() -> None:
    # Returns however the command ended, kill -9 included; then nobody is left to take a result.
    if command := parent_process():
        command.join()
    os._exit(1)


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    # A new process would execute the user's script once more, and could not find a notebook.
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    # What breaks off the start of a process leaves one behind that is told but half of what it
    # needs, or that nobody knows of. Handlers, since any thread may be the one that a signal hits.
    held: list[int] = []
    wait = {n: lambda number, _: held.append(number) for n in (signal.SIGINT, signal.SIGTERM)}
    before = _handle(wait)
    # Processes inherit the mask: Ctrl-C cannot hit one before it ignores the signal by itself.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _handle(before)
        for number in held:
            signal.raise_signal(number)


def _handle(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Set Python's handlers of signals, and return the former ones; none in other threads."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    ours = {n: handler for n, handler in handlers.items() if signal.getsignal(n) is not None}
    return {number: signal.signal(number, handler) for number, handler in ours.items()}
