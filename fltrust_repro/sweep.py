"""Many trials: in an order that shows whole tables early, none lost, none run twice.

Only the command's own process writes to the store, each trial as it ends; the trials themselves run
in processes of this machine or of a Dask cluster, or in this process, behind one `Executor`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from fltrust_repro import datasets
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.defenses import defenses
from fltrust_repro.errors import BadInput, Raised, shown
from fltrust_repro.models import models
from fltrust_repro.plugins import Plugin, load_plugin, plugins_for
from fltrust_repro.processes import Executor, LocalProcesses, Machine
from fltrust_repro.progress import Cell, Watch
from fltrust_repro.records import LAST_SEED
from fltrust_repro.registry import Here, Owner
from fltrust_repro.settings import Setting
from fltrust_repro.store import Failure, Store
from fltrust_repro.trials import Trial, TrialName

if TYPE_CHECKING:
    from pandas import DataFrame

ATTEMPTS = 2
ALIKE = 3  # failures with one message end a run
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


def run(
    settings: Setting | Iterable[Setting],
    trials: int = 1,
    *,
    seed: int = 0,
    jobs: int | None = None,
    store: str | Path = "trials.sqlite",
    device: str = "auto",
    data_dir: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
    scheduler: str | None = None,
) -> DataFrame:
    """Run trials of one setting or several; what the store has already is not run again.

    Can be interrupted at any time: each trial is stored as it ends, and the same call goes on.

    Parameters
    ----------
    settings : Setting, or several in any iterable
    trials, seed : int
        Of each setting those with seeds `seed`, `seed + 1`, ...
    jobs : int, optional
        Worker processes; by default one per core, on GPUs as many as their memory holds. With 0
        trials run in this process one after the other, as rules, attacks, defenses, models and
        data sets do that a script or notebook defines itself. What the functions of these keep
        in global variables goes on from trial to trial; a file's starts afresh with each.
    store : path
        File of finished trials, which is made where there is none.
    device : {"auto", "cpu", "gpu"}
    data_dir : path, optional
        Where data sets are looked for first.
    plugins : paths
        Python files with rules and the like, as `load_plugin` takes them.
    scheduler : str, optional
        Address of a Dask scheduler, on whose workers the trials run.

    Returns
    -------
    DataFrame
        A row per trial, in the order of the settings, then of the seeds: all fields of the
        setting, then seed, error_rate, lowest_error_rate, iterations_done, diverged, seconds.

    Raises
    ------
    BadInput
        A value is wrong; or a trial failed. Then there is no table, which would be of fewer trials
        than were asked for and look like any other; all others were run and are kept. Three
        failures with the same message end the run.

    Examples
    --------
    >>> import fltrust_repro as fl
    >>> small = fl.Setting(dataset="digits", rule="median", iterations=20)
    >>> table = fl.run(small, trials=2, jobs=0, store=":memory:")  # doctest: +SKIP
    """
    chosen = list(dict.fromkeys([settings] if isinstance(settings, Setting) else settings))
    if strange := [one for one in chosen if not isinstance(one, Setting)]:
        raise BadInput(f"settings hold {shown(strange[0])}; give one Setting, or several.")
    for name, value, least in (("trials", trials, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or not least <= value <= LAST_SEED:
            raise BadInput(
                f"{name} is {shown(value)}; give a whole number in [{least}, {LAST_SEED}]."
            )
    for path in plugins:
        load_plugin(path)
    machine = Machine(device, jobs, None if data_dir is None else Path(data_dir), scheduler)
    seeds = range(seed, seed + trials)
    with Store(store) as opened:
        failed = run_missing(_table(chosen), seeds, opened, machine).failed
        found = [trial for setting in chosen for trial in opened.find(setting, seeds)]
    if failed:
        first = failed[0]
        raise BadInput(
            f"{len(failed)} of {len(chosen) * trials} trials failed, the first, with seed "
            f"{first.name.seed}, with {first.message}; the others are kept in {str(store)!r}, and "
            "the same call tries only these again."
        ) from RuntimeError(first.details)
    return _frame(found)


def _table(settings: Sequence[Setting]) -> list[_Row]:
    """A row for each setting, named by the fields in which it differs from the others."""
    told = [setting.as_dict() for setting in settings]
    varied = [name for name in told[0] if len({fields[name] for fields in told}) > 1] or ["rule"]
    names = [", ".join(f"{name} {fields[name]}" for name in varied) for fields in told]
    return [_Row(name, "", setting) for name, setting in zip(names, settings)]


def _frame(trials: Sequence[Trial]) -> DataFrame:
    from pandas import DataFrame  # which takes a while to load

    rows: list[dict[str, Any]] = [
        {
            **trial.setting.as_dict(),
            "seed": trial.seed,
            "error_rate": trial.result.error_rate,
            "lowest_error_rate": trial.result.lowest_error_rate,
            "iterations_done": trial.result.iterations,
            "diverged": trial.result.diverged,
            "seconds": trial.result.seconds,
        }
        for trial in trials
    ]
    return DataFrame(rows)


class _Row(NamedTuple):
    row: str
    column: str
    setting: Setting


def run_missing(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    store: Store,
    machine: Machine,
    announce: Callable[[float], None] | None = None,
    measure: str = "error_rate",
) -> Outcome:
    """Run the trials of the cells that the store does not have yet, and write each as it ends.

    `announce` is told first how many hours the run will take, from a few iterations of one setting.
    While trials run, the means of their `measure` are shown. A trial that raises an error is
    recorded as failed, and the rest goes on, until three have failed with the same error; one whose
    process dies, or has no memory or file, is tried once more first. `BadInput`, such as a data set
    that is not at hand, ends the run, and so does `KeyboardInterrupt`; what was finished is in the
    store.
    """
    settings = list(dict.fromkeys(cell.setting for cell in cells))
    owners = _owners(settings)
    for owner in owners:
        if isinstance(owner, Here):
            owner.refresh()
    for name in dict.fromkeys(setting.dataset for setting in settings):
        datasets.data_digest(name, machine.data_dir)  # part of a trial's name
    finished = {trial.name for s in settings for trial in store.find(s, seeds)}
    store.left_out.tell()
    tasks = [task for task in in_turns(settings, seeds) if task.name not in finished]
    if not tasks:
        return Outcome(0, [])
    known = {setting: store.error_rates(setting, seeds, measure) for setting in settings}
    with _executor(machine, owners) as executor:
        place = Place(executor.device, machine.data_dir, plugins_for(owners))
        executor.check_data(dict.fromkeys(setting.dataset for setting, _ in tasks), place.plugins)
        if announce is not None or executor.device == "gpu":
            hours = _project(executor, tasks, place)
        _make_poisoned_sets(executor, tasks, place)
        if announce is not None and hours is not None:
            announce(hours)
        iterations = sum(task.setting.iterations for task in tasks)
        with Watch(cells, known, len(tasks), iterations, measure=measure) as watch:
            return Run(tasks, executor, store, place, watch).to_the_end()


class Place(NamedTuple):
    """What every call is told of where it runs."""

    device: str
    data_dir: Path | None = None
    plugins: tuple[Plugin, ...] = ()


def _owners(settings: Iterable[Setting]) -> set[Owner]:
    """Whose code the settings' names stand for, beside our own."""
    kinds = {
        "dataset": datasets.datasets,
        "model": models,
        "rule": rules,
        "attack": attacks,
        "defense": defenses,
    }
    found = (kinds[kind].owner(getattr(each, kind)) for each in settings for kind in kinds)
    return set(filter(None, found))


@contextlib.contextmanager
def _executor(machine: Machine, owners: Iterable[Owner]) -> Iterator[Executor]:
    here = machine.jobs == 0 and machine.scheduler is None
    for owner in owners:
        if isinstance(owner, Here) and not here:
            raise BadInput(
                f"{owner.called} is defined in this script or notebook, which other processes do "
                "not execute; run with jobs=0, in this one, or put it into a file and give that "
                "to load_plugin."
            )
    if here:
        executor = Executor(machine)
    elif machine.scheduler is None:
        executor = LocalProcesses(machine)
    else:
        from fltrust_repro.cluster import Cluster  # needs Dask, which few have installed

        executor = Cluster(machine)
    try:
        yield executor
    except BaseException:
        executor.stop()
        raise
    executor.close()


def _project(executor: Executor, tasks: Sequence[Task], place: Place) -> float | None:
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
        call = executor.submit(trial_process.project, setting, *place)
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


def _make_poisoned_sets(executor: Executor, tasks: Sequence[Task], place: Place) -> None:
    """Make the examples that attacks inject, one set per data set, share and seed."""
    from fltrust_repro import trial_process

    needed = {
        (setting.dataset, setting.attack, setting.poisoned_share, seed): (setting, seed)
        for setting, seed in tasks
        if attacks[setting.attack].inject is not None
    }
    waiting, running = deque(needed.values()), set()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not needed) as progress:
        made = progress.add_task("poisoned sets", total=len(needed))
        while waiting or running:
            while waiting and len(running) < executor.slots():
                arguments = (*waiting.popleft(), *place)
                running.add(executor.submit(trial_process.make_poisoned_set, *arguments))
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for call in finished:
                # Another error will come back when the trial itself makes its set.
                if not _was_lost(call) and isinstance(raised := call.result(), Raised):
                    raised.raise_if_mendable()
                progress.advance(made)


class Run:
    """Trials under way: which wait, which run here, and which another command has claimed."""

    def __init__(
        self,
        tasks: Iterable[Task],
        executor: Executor,
        store: Store,
        place: Place,
        watch: Watch,
    ) -> None:
        self._waiting, self._elsewhere = deque(tasks), deque[Task]()
        self._running: dict[Future, Task] = {}
        self._executor, self._store, self._watch = executor, store, watch
        self._place, self._attempts, self._messages = place, Counter[Task](), Counter[str]()
        self._finished, self._failed = 0, []
        self._before, self._renewed = executor.iterations(), time.monotonic()
        executor.meanwhile = self._keep_up

    def to_the_end(self) -> Outcome:
        """Run until every trial is finished or failed, here or by another command."""
        while self._waiting or self._elsewhere or self._running:
            self._start_trials()
            if not self._running:
                time.sleep(_WAKE_SECONDS)
            for call in wait(self._running, _WAKE_SECONDS, FIRST_COMPLETED).done:
                self._settle(self._running.pop(call), call)
            # Another command may have finished these, or died and left them.
            if self._keep_up():
                self._waiting.extend(self._elsewhere)
                self._elsewhere.clear()
        return Outcome(self._finished, self._failed)

    def _keep_up(self) -> bool:
        """Show how far it is; every few seconds keep the claims alive, and return True."""
        self._watch.update(len(self._running), self._executor.iterations() - self._before)
        if time.monotonic() - self._renewed < _RENEW_SECONDS:
            return False
        self._renewed = time.monotonic()
        self._store.renew_claims()
        others = self._store.owners(task.name for task in self._elsewhere)
        if others and not self._running:
            self._watch.waits_for(others, len(self._elsewhere))
        return True

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
        self._messages[raised.message] += 1
        if self._messages[raised.message] == ALIKE:
            left = len(self._waiting) + len(self._elsewhere)
            self._waiting.clear()
            self._elsewhere.clear()
            self._watch.say(
                f"Stopped, since {ALIKE} trials failed alike: {raised.message}. What is finished "
                f"is kept, {left} more were not tried; `show` prints the traceback."
            )


def _was_lost(call: Future) -> bool:
    """Wait for a call; whether its process broke off."""
    try:
        return call.exception() is not None
    except CancelledError:
        return True
