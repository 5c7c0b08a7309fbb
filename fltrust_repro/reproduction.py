"""Running an experiment: what is missing, then its table beside the paper's, and its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from fltrust_repro import figures, literal, report, sweep
from fltrust_repro.experiments import Cell, Experiment
from fltrust_repro.fidelity import trial_files, trials_in
from fltrust_repro.files import write_text
from fltrust_repro.processes import Machine
from fltrust_repro.store import Failure, Store
from fltrust_repro.trials import Trial, TrialName, add_to_csv, read_csv


def reproduce(
    experiment: Experiment,
    seeds: range,
    store: Store,
    machine: Machine,
    out: Path,
    announce: Callable[[float], None],
    chosen: Sequence[Cell] | None = None,
) -> list[Failure]:
    """Run the trials that neither the store nor `out` has; print the table and write its files.

    Of the `chosen` cells, by default all; the table holds what is known of the others. Writes
    NAME.csv, NAME.md and NAME.trials.csv to `out`, for a figure NAME.png and NAME.svg too.
    A trial that a file in `out` holds is not written twice, and none that it holds is dropped.
    Returns the trials that failed. Raises `DataUnavailable` before any trial where a data set is
    missing.
    """
    known = read_back(experiment, out, store)
    title = literal.one_line(experiment.title)
    click.echo(f"\n{title}", err=True)
    cells = chosen or experiment.cells
    outcome = sweep.run_missing(cells, seeds, store, machine, announce, experiment.measure)
    if outcome == (0, []):
        click.echo("All trials were finished already.", err=True)
    found = [store.find(cell.setting, seeds) for cell in experiment.cells]
    if not any(found):
        return outcome.failed
    measured = [
        report.measure(cell, trials, experiment.measure)
        for cell, trials in zip(experiment.cells, found)
    ]
    warn([trial for trials in found for trial in trials])

    reused = len({trial.name for trials in found for trial in trials} & known)
    several = f"{len(seeds)} trials, seeds {seeds[0]} to {seeds[-1]}"
    told = several if len(seeds) > 1 else f"1 trial, seed {seeds[0]}"
    lines = [
        f"{title}. {report.heading(experiment, measured)}; {told}.",
        "",
        report.table(experiment, measured, "simple"),
        "",
    ]
    if judged := report.summary_line(measured):
        lines.append(f"{judged}.  * outside the tolerance  ? too few trials to say")
    if reused:
        lines.append(f"Taken from {out}: {reused} trial{'s' * (reused > 1)}.")
    _write(experiment, measured, found, store, out)
    click.echo("\n".join(lines))
    return outcome.failed


def _write(
    experiment: Experiment,
    measured: Sequence[report.Measured],
    found: Sequence[Sequence[Trial]],
    store: Store,
    out: Path,
) -> None:
    own, settings = _own_file(experiment, out), dict.fromkeys(experiment.settings)
    every = {trial.name: trial for setting in settings for trial in store.find(setting)}
    files = {*trial_files(out), *filter(Path.is_file, [own])}
    there = {t.name for file in files for t in trials_in(file, store.left_out, every.__contains__)}
    add_to_csv(own, [trial for name, trial in every.items() if name not in there])
    table = report.as_frame(experiment, measured).to_csv(index=False)
    write_text(out / f"{experiment.name}.csv", table)
    used = list({trial.name: trial for trials in found for trial in trials}.values())
    write_text(out / f"{experiment.name}.md", report.markdown(experiment, measured, used))
    if experiment.figure is not None:
        figures.draw(experiment, measured, out)


def _own_file(experiment: Experiment, folder: Path) -> Path:
    return folder / f"{experiment.name}.trials.csv"


def read_back(experiment: Experiment, folder: Path, store: Store) -> set[TrialName]:
    """Take the trials of earlier runs, committed ones for instance, into the store.

    They may be another experiment's: tables and figures share settings. Returns the names of
    those that the store did not have. Raises `BadInput` where the experiment's own file is none
    that trials can be added to.
    """
    own, keys = _own_file(experiment, folder), {s.key() for s in experiment.settings}
    had = {trial.name for setting in set(experiment.settings) for trial in store.find(setting)}

    def wanted(name: TrialName) -> bool:
        return name.key in keys and name not in had

    known = read_csv(own, store.left_out, lambda name: name not in had) if own.exists() else []
    for file in set(trial_files(folder)) - {own}:
        known += trials_in(file, store.left_out, wanted)
    store.left_out.tell()
    return store.add(*(trial for trial in known if trial.name.key in keys))


def warn(trials: Sequence[Trial]) -> None:
    """Say what a reader of the numbers should know about these trials."""
    empty = [t.result.empty_workers for t in trials if t.result.empty_workers]
    if empty:
        click.echo(
            f"Note: in {len(empty)} of {len(trials)} trials some workers hold no training example "
            f"(at most {max(empty)}) and send zero updates.",
            err=True,
        )
    diverged = [t.seed for t in trials if t.result.diverged]
    if diverged:
        click.echo(
            f"Note: the global model diverged with seeds {', '.join(map(str, diverged))}; the "
            "error rate is that of the model with non-finite parameters.",
            err=True,
        )
