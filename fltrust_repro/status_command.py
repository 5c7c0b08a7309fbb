"""`status`: what is done and what is missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fltrust_repro import arena, fidelity, options, report, reproduction
from fltrust_repro.archive import Archive, Failure
from fltrust_repro.arena_protocols import Table, protocols, table_of
from fltrust_repro.errors import BadInput, one_line
from fltrust_repro.experiments import Experiment, load_experiment, readable
from fltrust_repro.settings import FIELDS, Setting
from fltrust_repro.trials import FIRST_SEED, Trial, TrialName, Trials, protocol_of
from fltrust_repro.words import counted

Line = dict[str, Any]


@click.command()
@click.argument("names", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--all", "with_others", is_flag=True,
              help="Readings, the arena, your own sweeps and all other settings, too.")  # fmt: skip
@options.seeds_option(fidelity.PAPER_TRIALS, FIRST_SEED)
@options.store_option
@options.out_option
@options.finished_options()
def status(
    names: tuple[str, ...], with_others: bool, seeds: range, store_path: Path, out: Path
) -> None:
    """Say what is done and what is missing: of all experiments, or cell by cell of those named.

    Counts the trials that `reproduce` with the same --trials and --seed would use: those in the
    store, in OUT, and published with the program. --all tells what else there is; `trials` lists it
    setting by setting.
    """
    if names and with_others:
        raise BadInput(f"--all is given with {names[0]}; leave one of them out.")
    experiments = [load_experiment(name) for name in names] or fidelity.all_experiments()
    with Archive(store_path) as store:
        files: dict[Path, list[Trial]] = {}
        if with_others:
            files = reproduction.lend_all(store, out)
            finished = reproduction.by_setting(store)
        else:
            finished = reproduction.finished(store, out, experiments)
        failures, claimed = store.failures(), store.claimed()
        store.left_out.tell()
    failures = _of_today(failures, finished, *(one.settings for one in experiments))
    if names:
        done = {s: [trial for trial in some if trial.seed in seeds] for s, some in finished.items()}
        for experiment in experiments:
            _print_cells(experiment, len(seeds), done)
        _print_failures(experiments, failures)
        return
    counts = tuple(Counter(name.key for name in some) for some in (claimed, failures))
    lines = [_line(one, seeds, finished, *counts) for one in experiments]
    if with_others:
        more, rest = _others(experiments, finished, files, *counts)
        lines += more
    click.echo(report.rendered(lines, "simple", ".1f"))
    if with_others:
        click.echo(rest)
    _print_failures(experiments, failures, with_others)


def _of_today(
    failures: Mapping[TrialName, Failure], *settings: Iterable[Setting]
) -> dict[TrialName, Failure]:
    """Failures without those of earlier code, which may be mended."""
    known = {setting.key(): setting for some in settings for setting in some}
    return {
        name: failure
        for name, failure in failures.items()
        if name.key not in known or protocol_of(known[name.key]) == name.protocol
    }


def _print_cells(experiment: Experiment, trials: int, done: Trials) -> None:
    title, what = one_line(experiment.title), experiment.measure.replace("_", " ")
    click.echo(f"{title}: trials done of {trials}, mean {what}\n")
    cells = fidelity.measured(experiment, done)
    told = (f"{len(m.errors)}" + f", {m.mean:.3f}" * bool(m.errors) for m in cells)
    click.echo(report.arranged(experiment, cells, told, "simple") + "\n")


def _line(
    experiment: Experiment, seeds: range, finished: Trials, running: Counter, failed: Counter
) -> Line:
    done = {s: sum(t.seed in seeds for t in finished.get(s, ())) for s in experiment.settings}
    seconds = fidelity.seconds_of(experiment, finished)
    # Nothing is left of what is done, though it is not known how long it takes.
    left = sum((len(seeds) - n) * seconds[s] for s, n in done.items() if n < len(seeds))
    numbers = sum(done.values()), len(seeds) * len(done), left / 3600
    return _told(experiment.name, done, *numbers, running, failed)


def _told(
    name: str, settings: Iterable[Setting], done: int, of: int | None, hours: float | None,
    running: Counter, failed: Counter,
) -> Line:  # fmt: skip
    keys = {setting.key() for setting in settings}
    return {
        "experiment": one_line(name),
        "done": done,
        "of": of,
        "running": sum(running[key] for key in keys),
        "failed": sum(failed[key] for key in keys),
        "core hours left": None if hours is None else _upwards(hours),
    }


def _upwards(hours: float) -> float:
    """Hours in steps of 0.1, of which none are left only where nothing is."""
    return hours if math.isnan(hours) else math.ceil(10 * hours) / 10


# ---- beyond the paper ---------------------------------------------------------------------------


def _others(
    experiments: Sequence[Experiment],
    finished: Trials,
    files: Mapping[Path, list[Trial]],
    *counts: Counter,
) -> tuple[list[Line], str]:
    """Lines of all that has a name but the paper's experiments, and a sentence on the rest."""
    known = {experiment.name for experiment in experiments}
    lines, named = [], {s for experiment in experiments for s in experiment.settings}
    for experiment in readable():
        if experiment.name not in known:
            # They were run with seeds of their own; how many were meant nobody knows.
            lines.append(_at_hand(experiment.name, experiment.settings, finished, *counts))
            known.add(experiment.name)
            named |= {*experiment.settings}
    for table in _tables():
        lines.append(_of_arena(table, finished, *counts))
        known.add(table.experiment.name)
        named |= {*table.experiment.settings}
    for name, settings in _own(files).items():
        if name not in known:
            lines.append(_at_hand(name, settings, finished, *counts))
            named |= settings
    rest = [trials for setting, trials in finished.items() if setting not in named]
    trials = sum(map(len, rest))
    others = f"{len(rest):,}, {counted(trials, 'trial')}; `trials` lists them"
    return lines, f"\nOther settings: {others if rest else 'none'}."


def _at_hand(name: str, settings: Collection[Setting], finished: Trials, *counts: Counter) -> Line:
    done = sum(len(finished.get(setting, ())) for setting in {*settings})
    return _told(name, settings, done, None, None, *counts)


def _tables() -> list[Table]:
    """The arena's tables, of every protocol and knowledge."""
    knowledges = FIELDS["knowledge"].metadata["choices"]
    return [table_of(one, how) for one in protocols().values() for how in knowledges]


def _of_arena(table: Table, finished: Trials, *counts: Counter) -> Line:
    cells = table.experiment.cells
    known = {cell.setting: finished.get(cell.setting, ()) for cell in cells}
    left, plan = arena.missing(cells, known), arena.wanted(cells, known)
    seconds = arena.seconds_of(table.experiment, known)
    hours = sum(n * seconds[cell.column] for cell, n in left.items() if n) / 3600
    done = sum(t.seed in plan[cell] for cell in cells for t in known[cell.setting])
    settings = table.experiment.settings
    return _told(table.experiment.name, settings, done, done + sum(left.values()), hours, *counts)


def _own(files: Mapping[Path, list[Trial]]) -> dict[str, set[Setting]]:
    """The settings of files of trials, by the experiment that wrote them."""
    found: dict[str, set[Setting]] = {}
    for file, trials in files.items():
        name = reproduction.name_of(file)
        found.setdefault(name, set()).update(trial.setting for trial in trials)
    return {name: settings for name, settings in found.items() if settings}


def _print_failures(
    experiments: Sequence[Experiment],
    failures: Mapping[TrialName, Failure],
    with_others: bool = False,
) -> None:
    places: dict[str, list[str]] = {}
    for experiment in experiments:
        for cell in experiment.cells:
            place = one_line(f"{experiment.name} {cell.row} {cell.column}")
            places.setdefault(cell.setting.key(), []).append(place)
    for name, failure in failures.items():
        if with_others or name.key in places:
            where = "; ".join(places.get(name.key, [f"setting {name.key}"]))
            click.echo(f"failed: {where}, seed {name.seed}: {failure.message}")
