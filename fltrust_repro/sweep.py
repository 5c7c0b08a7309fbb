"""Many trials: in an order that shows whole tables early, none lost, none run twice.

Only the command's own process writes to the store; an `Executor` says where the trials run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fltrust_repro import datasets, poisoning, trial_process
from fltrust_repro.attacks import attacks
from fltrust_repro.checkpoints import Checkpoints
from fltrust_repro.doors import LAST_SEED, whole_number
from fltrust_repro.errors import BadInput, Raised, shown
from fltrust_repro.experiments import Cell
from fltrust_repro.files import path_of
from fltrust_repro.plugins import load_plugin, plugins_for
from fltrust_repro.processes import Executor, LocalProcesses, Machine, Place
from fltrust_repro.projection import project
from fltrust_repro.registry import Here, Owner
from fltrust_repro.settings import Setting
from fltrust_repro.store import Failure, Store
from fltrust_repro.trials import MOST_TRIALS, Trial, TrialName
from fltrust_repro.words import counted

if TYPE_CHECKING:
    from pandas import DataFrame

    from fltrust_repro.progress import Watch

ATTEMPTS = 2
ALIKE = 3  # failures with one message end a run
_RENEW_SECONDS = 5
_WAKE_SECONDS = 0.5
# Where output goes and what plug-ins registered is the process's: runs of its threads take turns.
_TURN = threading.RLock()


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
    """Every setting's first seed before any second, so that whole tables show early."""

    def work(one: Setting) -> int:
        return one.iterations * one.selected * one.rounds * one.batch_size

    # More work first, so that no long trial is left alone at the end.
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
    checkpoint_minutes: float = 5,
) -> DataFrame:
    """Run trials that the store does not have yet, and return all that were asked for.

    Each is stored as it ends: after an interrupt the same call goes on. Of each setting the trials
    with seeds `seed`, `seed + 1`, ... are meant. Calls from several threads take turns.

    Parameters
    ----------
    jobs : int, optional
        Worker processes; by default one per core, on GPUs what their memory holds. With 0 trials
        run in this process, one after the other, as those must of rules, attacks and the like that
        a script or notebook registers itself. What these keep in global variables goes on from
        trial to trial; what a file keeps begins anew with each.
    store : file of finished trials, made where there is none
    device : {"auto", "cpu", "gpu"}
    data_dir : where data sets are looked for first
    plugins : files for `load_plugin`
    scheduler : address of a Dask scheduler, on whose workers the trials run
    checkpoint_minutes : how often it is written how far a trial has come, to go on from; 0: never

    Returns
    -------
    DataFrame
        A row per trial, by setting as given, then by seed: the fields of the setting, seed,
        error_rate, lowest_error_rate, diverged, seconds, iterations_done.

    Raises
    ------
    BadInput
        A value is wrong, or trials failed: a table without them would look like any other, with
        means of fewer trials. The others are run first, and kept; but three failures alike end it.
    """
    given = list(settings) if isinstance(settings, Iterable) else [settings]
    if not given or not all(isinstance(one, Setting) for one in given):
        raise BadInput(f"settings are {shown(settings)}; give one Setting, or several.")
    chosen = list(dict.fromkeys(given))
    trials = whole_number("trials", trials, 1, MOST_TRIALS)
    seed = whole_number("seed", seed, 0, LAST_SEED + 1 - trials)
    files = [plugins] if isinstance(plugins, (str, Path)) else plugins
    if not isinstance(files, Iterable):
        raise BadInput(f"plugins are {shown(plugins)}; give the paths of Python files.")
    for file in files:
        load_plugin(file)
    folder = None if data_dir is None else path_of(data_dir)
    machine = Machine(device, jobs, folder, scheduler, checkpoint_minutes)
    seeds = range(seed, seed + trials)
    datasets.read_digests((setting.dataset for setting in chosen), folder)
    with Store(path_of(store)) as opened:
        failed = run_missing(_table_of(chosen), seeds, opened, machine).failed
        found = [trial for setting in chosen for trial in opened.find(setting, seeds)]
    if failed:
        raise BadInput(
            f"{len(failed)} of {counted(len(chosen) * trials, 'trial')} failed, the first, of seed "
            f"{failed[0].name.seed}, with {failed[0].message}; what is finished is "
            f"kept in {str(store)!r}, and the same call tries the others again."
        ) from RuntimeError(failed[0].details)
    from pandas import DataFrame  # which takes a while to load

    frame = DataFrame([{**trial.setting.as_dict(), "seed": trial.seed} for trial in found])
    for name in ("error_rate", "lowest_error_rate", "diverged", "seconds"):
        frame[name] = [getattr(trial.result, name) for trial in found]
    return frame.assign(iterations_done=[trial.result.iterations for trial in found])


def _table_of(settings: Sequence[Setting]) -> list[Cell]:
    """Return a row for each setting, named by the fields in which it differs from the others."""
    told = [setting.as_dict() for setting in settings]
    varied = [name for name in told[0] if len({fields[name] for fields in told}) > 1] or ["rule"]
    names = [", ".join(f"{name} {fields[name]}" for name in varied) for fields in told]
    return [Cell(name, "", setting, None) for name, setting in zip(names, settings)]


def run_missing(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    store: Store,
    machine: Machine,
    announce: Callable[[float, float], None] | None = None,
    measure: str = "error_rate",
) -> Outcome:
    """Run the trials of the cells that the store does not have yet, and write each as it ends.

    `announce` is told beforehand how many seconds all trials take, and how many those of the first
    seed alone; the means of `measure` are shown. A trial that raises an error is recorded as failed
    and the rest goes on, until three failed alike; one whose process dies, or has no memory or
    file, is tried once more first. A `BadInput` before a trial's second iteration ends the run, and
    so does `KeyboardInterrupt`; what was finished is in the store.
    """
    from fltrust_repro.progress import Watch, waiting  # loads rich, which takes a while

    settings = list(dict.fromkeys(cell.setting for cell in cells))
    owners = _owners(settings)
    for setting in settings:  # unless whoever began has read them, which a command does once
        datasets.data_digest(setting.dataset, machine.data_dir)
    found = {setting: store.find(setting, seeds) for setting in settings}
    finished = {trial.name for some in found.values() for trial in some}
    store.left_out.tell()
    checkpoints = Checkpoints(store.path.resolve(), machine.checkpoint_minutes)
    checkpoints.clear(store.has)
    tasks = [task for task in in_turns(settings, seeds) if task.name not in finished]
    if not tasks:
        return Outcome(0, [])
    known = {one: [trial.error(measure) for trial in some] for one, some in found.items()}
    with _TURN, _executor(machine, owners) as executor:
        place = Place(executor.device, machine.data_dir, plugins_for(owners))
        executor.check_data(dict.fromkeys(task.setting.dataset for task in tasks), place.plugins)
        if announce is not None or executor.device == "gpu":
            with waiting("timing a first trial"):
                every = [task.setting for task in tasks]
                pace = project(executor, every, place)
            if announce is not None and pace is not None:
                first = [task.setting for task in tasks if task.seed == seeds[0]]
                announce(pace.of(every), pace.of(first))
        _make_poisoned_sets(executor, tasks, place)
        iterations = sum(task.setting.iterations for task in tasks)
        watch = Watch(cells, known, len(tasks), iterations, measure=measure)
        with watch, checkpoints.told((task.name for task in tasks), watch.say):
            return Run(tasks, executor, store, place, watch, checkpoints).to_the_end()


def _owners(settings: Iterable[Setting]) -> set[Owner]:
    """Whose code the settings' names stand for; of our own process's code as it is now."""
    names = [one for setting in settings for one in setting.registered]
    every = (registry.owner(name) for registry, name in names)
    found = {owner for owner in every if owner is not None}
    for owner in found:
        if isinstance(owner, Here):
            owner.refresh()
    return found


@contextlib.contextmanager
def _executor(machine: Machine, owners: Iterable[Owner]) -> Iterator[Executor]:
    here = machine.jobs == 0 and machine.scheduler is None
    for owner in owners:
        if isinstance(owner, Here) and not here:
            raise BadInput(
                f"{owner.called} is defined in this script or notebook, which other processes do "
                "not run; use jobs=0, or put it into a file and give that to load_plugin."
            )
    if machine.scheduler is None:
        executor = Executor(machine) if here else LocalProcesses(machine)
    else:
        from fltrust_repro.cluster import Cluster  # needs Dask, which few have installed

        executor = Cluster(machine)
    try:
        yield executor
    except BaseException:
        executor.stop()
        raise
    executor.close()


def _make_poisoned_sets(executor: Executor, tasks: Sequence[Task], place: Place) -> None:
    """Make the examples that attacks inject, one set per data set, share and seed."""
    from fltrust_repro.progress import steps  # loads rich

    needed = {
        (one.dataset, one.attack, one.poisoned_share, seed): (one, seed)
        for one, seed in tasks
        if attacks[one.attack].inject is not None
    }
    if needed and not poisoning.can_keep():
        return
    left = list(needed.values())
    with steps("poisoned sets", len(left)) as advance:
        while left:
            slots = max(1, executor.slots())
            some, left = left[:slots], left[slots:]
            calls = [executor.submit(trial_process.make_poisoned_set, *t, *place) for t in some]
            for call in calls:
                if isinstance(raised := executor.result(call), Raised):
                    raised.raise_if_mendable()  # any other the trial itself will meet again
                advance()


class Run:
    """Trials under way: which wait, which run here, and which another command has claimed."""

    def __init__(
        self, tasks: Iterable[Task], executor: Executor, store: Store, place: Place, watch: Watch,
        checkpoints: Checkpoints,
    ) -> None:  # fmt: skip
        self._waiting, self._elsewhere = deque(tasks), deque[Task]()
        self._running: dict[Future, Task] = {}
        self._executor, self._store, self._watch = executor, store, watch
        self._checkpoints = checkpoints
        self._place, self._attempts, self._messages = place, Counter[Task](), Counter[str]()
        self._finished, self._failed = 0, list[Failure]()
        self._before, self._renewed = executor.iterations(), time.monotonic()
        executor.meanwhile = lambda: self._keep_up(running=1)

    def to_the_end(self) -> Outcome:
        """Run until every trial is finished or failed, here or by another command."""
        while self._waiting or self._elsewhere or self._running:
            self._start_trials()
            if not self._running:
                time.sleep(_WAKE_SECONDS)
            for call in wait(self._running, _WAKE_SECONDS, FIRST_COMPLETED).done:
                self._settle(self._running.pop(call), self._executor.result(call))
            if self._keep_up(len(self._running)):
                # The other command may have finished these, or died and left them.
                self._waiting.extend(self._elsewhere)
                self._elsewhere.clear()
        return Outcome(self._finished, self._failed)

    def _keep_up(self, running: int) -> bool:
        """Show how far it is; every few seconds keep the claims alive, and return True."""
        self._watch.update(running, self._executor.iterations() - self._before)
        if time.monotonic() - self._renewed < _RENEW_SECONDS:
            return False
        self._renewed = time.monotonic()
        self._store.renew_claims()
        others, left = self._store.owners(t.name for t in self._elsewhere), len(self._elsewhere)
        if others and not running:
            self._watch.say(f"waiting for {counted(left, 'trial')} of {', '.join(others)}")
        return True

    def _start_trials(self) -> None:
        while self._waiting and len(self._running) < self._executor.slots():
            task = self._waiting.popleft()
            if self._store.claim(task.name):
                done = self._checkpoints.begun(task.name, self._place.device, self._watch.say)
                self._watch.begun(task.setting)
                if not self._attempts[task]:  # else these iterations were counted
                    self._watch.spared(done)
                told = (*task, task.name.protocol, *self._place, self._checkpoints)
                call = self._executor.submit(trial_process.run, *told)
                self._running[call] = task
            elif self._store.has(task.name):
                self._watch.left_to_others(task.setting)
            else:
                self._elsewhere.append(task)

    def _settle(self, task: Task, told: Trial | Raised) -> None:
        if isinstance(told, Raised):
            self._failed_once(task, told)
        else:
            self._store.add(told)
            self._checkpoints.clear(told.name.__eq__)
            self._watch.done(told)
            self._finished += 1

    def _failed_once(self, task: Task, raised: Raised) -> None:
        raised.raise_if_mendable()  # trying again would not help
        self._attempts[task] += 1
        if raised.once_more and self._attempts[task] < ATTEMPTS:
            self._waiting.appendleft(task)
            return
        message = raised.message.rstrip(". ")  # which stands within sentences
        self._failed.append(Failure(task.name, message, raised.details))
        self._store.add_failure(self._failed[-1])
        self._watch.failed()
        self._messages[message] += 1
        if self._messages[message] == ALIKE:
            left = len(self._waiting) + len(self._elsewhere)
            self._waiting, self._elsewhere = deque(), deque()
            self._watch.say(
                f"Stopped, since {ALIKE} trials failed alike: {message}. What is finished "
                f"is kept, {counted(left, 'trial')} not tried; `show` prints the traceback."
            )
