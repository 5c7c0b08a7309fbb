"""Where results lie, and running an experiment: what is missing, then its table and its files.

Finished trials are in the store, in the user's own folder OUT, and in the folder that is published
with the program, which is only read. Trials are told apart by their names, files never are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import click

from fltrust_repro import (
    datasets,
    definitions,
    experiments,
    fidelity,
    figures,
    grids,
    report,
    sweep,
)
from fltrust_repro.archive import Archive
from fltrust_repro.errors import BadInput, DataUnavailable, LeftOut, note, one_line
from fltrust_repro.experiments import Cell, Experiment
from fltrust_repro.files import is_file, is_there, locked, write_text
from fltrust_repro.processes import Machine
from fltrust_repro.settings import Setting
from fltrust_repro.store import Failure, Store
from fltrust_repro.trial_files import ENDING, PACKED, add_to_csv, read_csv
from fltrust_repro.trials import FIRST_SEED, Trial, TrialName, Trials, protocol_of
from fltrust_repro.words import counted, lasting, spanning

Published = Mapping[TrialName, Trial]


def trials_in(
    folder: Path, left_out: LeftOut, wanted: Callable[[TrialName], bool] = lambda name: True
) -> list[Trial]:
    """Return the wanted trials of a results folder; a file that is none of trials is left out."""
    return [trial for trials in by_file(folder, left_out, wanted).values() for trial in trials]


def by_file(
    folder: Path, left_out: LeftOut, wanted: Callable[[TrialName], bool] = lambda name: True
) -> dict[Path, list[Trial]]:
    """Return the wanted trials of a results folder by the file they lie in."""
    found = {}
    files = [*folder.glob(f"*{ENDING}"), *folder.glob(f"*{ENDING}{PACKED}")]
    for file in sorted(filter(is_file, files)):
        try:
            found[file] = read_csv(file, left_out, wanted)
        except BadInput as error:
            left_out.add(file, "the whole file", error)
    return found


def file_of(experiment: Experiment, out: Path) -> Path:
    """Return where an experiment's trials are kept in a results folder."""
    return out / f"{experiment.name}{ENDING}{PACKED * experiment.packed}"


def name_of(file: Path) -> str:
    """Return the name of the experiment whose trials a file keeps; of a store that of the file."""
    return one_line(file.name.removesuffix(PACKED).removesuffix(ENDING))


def is_published(folder: Path) -> bool:
    """Whether a folder is that of the published results."""
    return folder.resolve() == experiments.published().resolve()


def read_back(
    store: Archive, out: Path, settings: Iterable[Setting], fresh: bool = False
) -> dict[TrialName, Trial]:
    """Let the store answer with settings' trials of `out` and published ones; return the latter.

    With `fresh` none of the published is read. Says on stderr what is left out as not understood.
    """
    keys = {setting.key() for setting in settings}
    store.lend(trials_in(out, store.left_out, lambda name: name.key in keys))
    published = [] if fresh else _lend_published(store, out, keys)
    store.left_out.tell()
    return {trial.name: trial for trial in reversed(published)}  # of one name the first, as lent


def _lend_published(store: Archive, out: Path, keys: Container[str]) -> list[Trial]:
    """Let the store answer with published trials of these settings; none where `out` is theirs."""
    if is_published(out):
        return []
    published = trials_in(experiments.published(), store.left_out, lambda name: name.key in keys)
    store.lend(published)
    return published


def finished(store: Archive, out: Path, of: Sequence[Experiment]) -> dict[Setting, list[Trial]]:
    """Return today's trials of a store and `out`, and these experiments' published, by setting."""
    store.lend(trials_in(out, store.left_out))
    _lend_published(store, out, {setting.key() for one in of for setting in one.settings})
    return by_setting(store)


def everything(store: Archive, out: Path) -> dict[Setting, list[Trial]]:
    """Return today's trials of a store, of `out` and of all that is published, by setting."""
    lend_all(store, out)
    return by_setting(store)


def lend_all(store: Archive, out: Path) -> dict[Path, list[Trial]]:
    """Let the store answer with all trials of `out` and published ones; return them by file.

    Nothing is said of what is left out of the published ones: plug-ins of experiments of ours.
    """
    files = by_file(out.resolve(), store.left_out)
    if not is_published(out):
        files |= by_file(experiments.published().resolve(), LeftOut())
    for trials in files.values():
        store.lend(trials)
    return files


def by_setting(store: Archive) -> dict[Setting, list[Trial]]:
    """Return today's trials that a store answers with, by setting."""
    known: dict[Setting, list[Trial]] = {}
    today = cache(protocol_of)
    for trial in sorted(store.everything(), key=lambda trial: trial.seed):
        if trial.protocol == today(trial.setting):
            known.setdefault(trial.setting, []).append(trial)
    store.left_out.tell()
    return known


def reported(trials: Trials) -> dict[Setting, list[Trial]]:
    """Return the trials that reports are made of, without the seeds that chose the readings."""
    kept = {setting: [t for t in some if t.seed >= FIRST_SEED] for setting, some in trials.items()}
    return {setting: some for setting, some in kept.items() if some}


def prepared(
    wanted: Collection[Experiment], store: Archive, machine: Machine, out: Path, fresh: bool = False
) -> dict[TrialName, Trial]:
    """Let the store answer with what is at hand of experiments, as `read_back` does.

    `BadInput` where a file NAME.trials.csv is none to add trials to.
    """
    for experiment in wanted:
        if is_there(own := file_of(experiment, out)):
            read_csv(own, store.left_out)
    settings = [setting for experiment in wanted for setting in experiment.settings]
    datasets.read_digests((setting.dataset for setting in settings), machine.data_dir)
    return read_back(store, out, settings, fresh)


def reproduce(
    orders: Mapping[Experiment, Sequence[Cell]],
    seeds: range,
    store: Archive,
    machine: Machine,
    out: Path,
    announce: Callable[[float, float], None],
    fresh: bool = False,
    grey: bool = False,
) -> tuple[list[Failure], list[str]]:
    """Run the trials of experiments' cells that are not at hand; print tables and write files.

    At hand are the trials of the store and of `out`, and the published ones unless `fresh`; of a
    store that is only read, nothing is run. A table holds what is known of the other cells too, and
    of one that is interrupted what is there. Returns the trials that failed, and the experiments
    whose data are missing. `BadInput` where a file NAME.trials.csv is none to add trials to.
    """
    published = prepared(orders, store, machine, out, fresh)
    known = {s: store.find(s) for experiment in orders for s in experiment.settings}
    to_run = {one: _tell(one, cells, seeds, known, published) for one, cells in orders.items()}
    failed, missing = [], []
    for experiment, cells in orders.items():
        try:
            if to_run[experiment] and isinstance(store, Store):
                click.echo(f"\n{one_line(experiment.title)}", err=True)
                how = (seeds, store, machine, announce, experiment.measure)
                failed += sweep.run_missing(cells, *how).failed
        except DataUnavailable as error:
            missing.append(experiment.name)
            click.echo(f"not run: {error}", err=True)
        except (KeyboardInterrupt, BadInput):
            _show(experiment, seeds, store, out, grey)
            raise
        _show(experiment, seeds, store, out, grey)
    return failed, missing


def _tell(
    experiment: Experiment, cells: Sequence[Cell], seeds: range, known: Trials, published: Published
) -> int:
    """Say how many trials are at hand and how long the others take; return how many these are."""
    at_hand = {cell.setting: [t for t in known[cell.setting] if t.seed in seeds] for cell in cells}
    missing = {setting: len(seeds) - len(trials) for setting, trials in at_hand.items()}
    found, to_run = [t for trials in at_hand.values() for t in trials], sum(missing.values())
    theirs = sum(trial == published.get(trial.name) for trial in found)
    seconds = fidelity.seconds_of(experiment, known)
    told = f"{experiment.name}: {counted(len(found), 'trial')} at hand"
    told += f", {theirs} of them published" * bool(theirs)
    time = core_time(sum(count * seconds[setting] for setting, count in missing.items() if count))
    of = counted(sum(count > 0 for count in missing.values()), "setting")
    click.echo(f"{told}, {to_run:,} to run" + f", of {of}{time}" * bool(to_run), err=True)
    return to_run


def core_time(seconds: float) -> str:
    """Say about how long trials take, behind a comma; nothing where there are none."""
    if not seconds > 0:  # nothing, or not known
        return ""
    return f", about {lasting(seconds)} of a core"


def _show(experiment: Experiment, seeds: range, store: Archive, out: Path, grey: bool) -> None:
    """Print the table of what is known with these seeds, if anything is, and write the files."""
    found = {setting: store.find(setting, seeds) for setting in experiment.settings}
    used = [trial for trials in found.values() for trial in trials]
    if not used:
        if not isinstance(store, Store):  # which would have run some
            click.echo(f"{experiment.name}: nothing is at hand to be shown.", err=True)
        return
    warn(used)
    cells = fidelity.measured(experiment, found)
    kept = keep_trials(experiment, store, out)
    page, table = (out / f"{experiment.name}.{ending}" for ending in ("md", "csv"))
    before, now = trials_of(table), sum(len(cell.errors) for cell in cells)
    before = before if definitions.is_kept(experiment, out) else 0  # of another table of that name
    if before <= now:
        definition = definitions.keep(experiment, out)  # first: it says whose the others are
        write_text(table, report.as_frame(experiment, cells).to_csv(index=False))
        write_text(page, report.page(experiment, cells, used))
        drawn = (experiment, cells, out, grey)
        kept = [page, table, *definition, *figures.draw(*drawn), *grids.draw(*drawn), *kept]
    _print(experiment, cells, used, len(seeds))
    if before > now:
        more = f"it is made of {counted(before, 'trial')}, this table of {now:,}"
        click.echo(f"{page} stays as it is: {more}.")
    if kept:
        click.echo(wrote(kept))


def _print(
    experiment: Experiment, cells: Sequence[report.Measured], used: Iterable[Trial], wanted: int
) -> None:
    seeds = report.seeds_named(trial.seed for trial in used)
    told = f"{_many(experiment, cells, wanted)}, {seeds}"
    click.echo(f"{one_line(experiment.title)}. {report.heading(experiment, cells)}; {told}.\n")
    click.echo(report.table(experiment, cells, "simple") + "\n")
    if judged := report.summary_line(cells):
        click.echo(f"{judged}.  * outside the tolerance  ? too few trials to say")


def _many(experiment: Experiment, cells: Sequence[report.Measured], wanted: int) -> str:
    """Say how many trials each cell of a table has, and whether some are missing."""
    least, most = (end(len(cell.errors) for cell in cells) for end in (min, max))
    if least == wanted:
        return counted(wanted, "trial")
    many = spanning((least, most), "trial") if least < most else f"{most} of {wanted} trials"
    where = "point" if experiment.figure or experiment.grid else "cell"
    return f"partial: {many} per {where}"


def keep_trials(experiment: Experiment, store: Archive, out: Path) -> list[Path]:
    """Add to the experiment's file what neither `out` nor the published results hold."""
    own = file_of(experiment, out)
    every = {t.name: t for s in dict.fromkeys(experiment.settings) for t in store.find(s)}
    with locked(out):  # or of two commands one would write over what the other added
        there = {t.name for t in trials_in(out, store.left_out, every.__contains__)}
        new = [t for n, t in every.items() if n not in there and t != store.lent(n)]
        if new:
            add_to_csv(own, new)
    return [own] * bool(new)


def trials_of(table: Path) -> int:
    """How many trials a page was made of, by its table; 0 where there is none."""
    import pandas as pd  # which takes a while to load

    try:
        return int(pd.read_csv(table)["trials"].sum())
    except (OSError, KeyError, TypeError, ValueError):
        return 0


def wrote(files: Iterable[Path]) -> str:
    """Say which files were written, those of one name together.

    >>> from pathlib import Path
    >>> from fltrust_repro.reproduction import wrote
    >>> wrote([Path("results/table2a.md"), Path("results/table2a.trials.csv")])
    'Wrote results/table2a.md, .trials.csv'
    """
    names: dict[str, list[str]] = {}
    for file in map(str, files):
        kinds = (ENDING, ENDING + PACKED, Path(file).suffix)
        ending = next(ending for ending in kinds if file.endswith(ending))
        names.setdefault(file.removesuffix(ending), []).append(ending)
    told = (name + ", ".join(endings) for name, endings in names.items())
    return f"Wrote {'; '.join(told)}"


def warn(trials: Sequence[Trial]) -> None:
    """Say what a reader of the numbers should know about these trials."""
    if empty := [t.result.empty_workers for t in trials if t.result.empty_workers]:
        where = f"in {len(empty)} of {counted(len(trials), 'trial')} some workers"
        what = f"hold no training example (at most {max(empty)}) and send zero updates"
        note(f"{where} {what}.")
    if diverged := [t for t in trials if t.result.diverged]:
        known = report.seeds_named(trial.seed for trial in diverged)
        where = f"the global model diverged with {known}"
        what = "the error rate is that of the model with non-finite parameters"
        note(f"{where}; {what}.")
