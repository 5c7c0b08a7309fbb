"""Many trials: in an order that shows whole tables early, none lost, none run twice.

Only the command's own process writes to the store, each trial as it ends; the trials themselves run
in processes of this machine or of a Dask cluster, behind the same `Executor`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fltrust_repro import datasets
from fltrust_repro.attacks import attacks
from fltrust_repro.errors import Raised
from fltrust_repro.experiments import Cell
from fltrust_repro.plugins import Plugin, plugins_at
from fltrust_repro.processes import Executor, LocalProcesses, Machine
from fltrust_repro.progress import Watch
from fltrust_repro.settings import Setting
from fltrust_repro.store import Failure, Store
from fltrust_repro.trials import TrialName

ATTEMPTS = 2
_RENEW_SECONDS = 5
_WAKE_SECONDS = 0.5


class Task(NamedTuple):
    """A trial to run."""

    setting: Setting
    seed: int

    @property
    def name(self) -> TrialName:
        """The trial's name in the store."""
        return TrialName.of(self.setting, self.seed)


class Outcome(NamedTuple):
    """How many trials a command ran to their end, and which failed."""

    finished: int
    failed: list[Failure]


def in_turns(settings: Iterable[Setting], seeds: Iterable[int]) -> list[Task]:
    """Every setting's first seed before any second, so that whole tables show early.

    For each seed the settings with more work come first, so that no long trial is left alone at
    the end.
    """

    def work(setting: Setting) -> int:
        per_iteration = setting.selected * setting.rounds * setting.batch_size
        return setting.iterations * per_iteration

    unique = sorted(dict.fromkeys(settings), key=work, reverse=True)
    return [Task(setting, seed) for seed in seeds for setting in unique]


def run_missing(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    store: Store,
    machine: Machine,
    announce: Callable[[float], None] = lambda hours: None,
    measure: str = "error_rate",
) -> Outcome:
    """Run the trials of the cells that the store does not have yet, and write each as it ends.

    `announce` is told first how many hours the run will take, from a few iterations of one setting.
    While trials run, the means of their `measure` are shown. A trial that raises an error is
    recorded as failed, and the rest goes on; one whose process dies, or has no memory or file, is
    tried once more first. `BadInput`, such as a data set that is not at hand, ends the run, and so
    does `KeyboardInterrupt`; what was finished is in the store.
    """
    settings = list(dict.fromkeys(cell.setting for cell in cells))
    for name in dict.fromkeys(setting.dataset for setting in settings):
        datasets.data_digest(name, machine.data_dir)  # part of a trial's name
    finished = {trial.name for s in settings for trial in store.find(s, seeds)}
    store.left_out.tell()
    tasks = [task for task in in_turns(settings, seeds) if task.name not in finished]
    if not tasks:
        return Outcome(0, [])
    known = {setting: store.error_rates(setting, seeds, measure) for setting in settings}
    with _executor(machine) as executor:
        executor.check_data(dict.fromkeys(setting.dataset for setting, _ in tasks))
        hours = _project(executor, tasks, machine)
        _make_poisoned_sets(executor, tasks, machine)
        if hours is not None:
            announce(hours)
        iterations = sum(task.setting.iterations for task in tasks)
        with Watch(cells, known, len(tasks), iterations, measure=measure) as watch:
            return Run(tasks, executor, store, machine, watch).to_the_end()


@contextlib.contextmanager
def _executor(machine: Machine) -> Iterator[Executor]:
    if machine.scheduler is None:
        executor: Executor = LocalProcesses(machine)
    else:
        from fltrust_repro.cluster import Cluster  # needs Dask, which few have installed

        executor = Cluster(machine)
    try:
        yield executor
    except BaseException:
        executor.stop()
        raise
    executor.close()


def _place(executor: Executor, machine: Machine) -> tuple[str, Path | None, tuple[Plugin, ...]]:
    """What every call is told of where it runs."""
    return executor.device, machine.data_dir, plugins_at(machine.plugins)


def _project(executor: Executor, tasks: Sequence[Task], machine: Machine) -> float | None:
    """Hours that the tasks will take; None where the process that tried died, or an error arose.

    The setting with most workers is tried; on a GPU one of each model on each data set, one after
    the other in a process, since what the largest fills decides how many trials share the GPU.
    """
    from fltrust_repro import trial_process

    by_workers = sorted((task.setting for task in tasks), key=lambda setting: setting.selected)
    most = by_workers[-1]
    tried = {_kind(setting): setting for setting in by_workers}
    if executor.device == "cpu":
        tried = {_kind(most): most}
    pace = {}
    for kind, setting in tried.items():
        call = executor.submit(trial_process.project, setting, *_place(executor, machine))
        if _was_lost(call):
            return None  # the trial itself will be tried, and its error told
        if isinstance(projection := call.result(), Raised):
            projection.raise_if_mendable()
            return None
        pace[kind] = projection.seconds / setting.iterations
    executor.share_gpus(projection.gpu_share)
    usual = pace[_kind(most)]
    seconds = sum(task.setting.iterations * pace.get(_kind(task.setting), usual) for task in tasks)
    return seconds / max(1, min(executor.slots(), len(tasks))) / 3600


def _kind(setting: Setting) -> tuple[str, str]:
    return setting.dataset, setting.model


def _make_poisoned_sets(executor: Executor, tasks: Sequence[Task], machine: Machine) -> None:
    """Make the examples that attacks inject, one set per data set, share and seed."""
    from fltrust_repro import trial_process

    needed = {
        (setting.dataset, setting.attack, setting.poisoned_share, seed): (setting, seed)
        for setting, seed in tasks
        if attacks[setting.attack].inject is not None
    }
    waiting, running = deque(needed.values()), set()
    with tqdm(desc="poisoned sets", total=len(needed), disable=not needed) as progress:
        while waiting or running:
            while waiting and len(running) < executor.slots():
                arguments = (*waiting.popleft(), *_place(executor, machine))
                running.add(executor.submit(trial_process.make_poisoned_set, *arguments))
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for call in finished:
                # Another error will come back when the trial itself makes its set.
                if not _was_lost(call) and isinstance(raised := call.result(), Raised):
                    raised.raise_if_mendable()
                progress.update()


class Run:
    """Trials under way: which wait, which run here, and which another command has claimed."""

    def __init__(
        self,
        tasks: Iterable[Task],
        executor: Executor,
        store: Store,
        machine: Machine,
        watch: Watch,
    ) -> None:
        self._waiting, self._elsewhere = deque(tasks), deque[Task]()
        self._running: dict[Future, Task] = {}
        self._executor, self._store, self._watch = executor, store, watch
        self._place = _place(executor, machine)
        self._attempts: Counter[Task] = Counter()
        self._finished, self._failed = 0, []

    def to_the_end(self) -> Outcome:
        """Run until every trial is finished or failed, here or by another command."""
        before, renewed = self._executor.iterations(), time.monotonic()
        while self._waiting or self._elsewhere or self._running:
            self._start_trials()
            if not self._running:
                time.sleep(_WAKE_SECONDS)
            for call in wait(self._running, _WAKE_SECONDS, FIRST_COMPLETED).done:
                self._settle(self._running.pop(call), call)
            if time.monotonic() - renewed > _RENEW_SECONDS:
                renewed = time.monotonic()
                self._store.renew_claims()
                others = self._store.owners(task.name for task in self._elsewhere)
                if others and not self._running:
                    self._watch.waits_for(others, len(self._elsewhere))
                # The other command may have finished these, or died and left them.
                self._waiting.extend(self._elsewhere)
                self._elsewhere.clear()
            self._watch.update(len(self._running), self._executor.iterations() - before)
        return Outcome(self._finished, self._failed)

    def _start_trials(self) -> None:
        from fltrust_repro import trial_process

        while self._waiting and len(self._running) < self._executor.slots():
            task = self._waiting.popleft()
            if self._store.claim(task.name):
                told = (*task, task.name.protocol, *self._place)
                call = self._executor.submit(trial_process.run, *told)
                self._running[call] = task
            elif self._store.has(task.name):
                self._watch.left_to_others(task.setting)
            else:
                self._elsewhere.append(task)

    def _settle(self, task: Task, call: Future) -> None:
        """Store what a call gave; where its process died, try once more; record a failure."""
        if _was_lost(call):
            message = self._executor.how_lost(call)
            told = Raised(message, message, None, once_more=True)
        else:
            told = call.result()
        if isinstance(told, Raised):
            self._failed_once(task, told)
            return
        self._store.add(told)
        self._watch.done(told)
        self._finished += 1

    def _failed_once(self, task: Task, raised: Raised) -> None:
        raised.raise_if_mendable()  # trying again would not help
        self._attempts[task] += 1
        if raised.once_more and self._attempts[task] < ATTEMPTS:
            self._waiting.appendleft(task)
            return
        self._failed.append(Failure(task.name, raised.message, raised.details))
        self._store.add_failure(self._failed[-1])
        self._watch.failed()


def _was_lost(call: Future) -> bool:
    """Wait for a call; whether its process broke off."""
    try:
        return call.exception() is not None
    except CancelledError:
        return True
