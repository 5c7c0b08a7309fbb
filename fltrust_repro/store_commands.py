"""`status`, `show`, `export` and `import`: what is in the store, and its way to other programs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

from fltrust_repro import fidelity, figures
from fltrust_repro.archive import Archive, Failure
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import Cell, Experiment, load_experiment
from fltrust_repro.files import check_writable, write_bytes
from fltrust_repro.literal import one_line
from fltrust_repro.options import (
    FILE,
    LAST_SEED,
    PATH,
    count,
    out_option,
    plugin_option,
    setting_options,
    store_option,
    trials_option,
)
from fltrust_repro.records import COLUMNS
from fltrust_repro.settings import FIELDS, Setting
from fltrust_repro.store import Store
from fltrust_repro.trials import Trial, TrialName, protocol_of, read_csv


@click.command()
@click.argument("names", nargs=-1, metavar="[EXPERIMENT]...")
@trials_option(fidelity.PAPER_TRIALS)
@store_option
@out_option
@plugin_option
def status(
    names: tuple[str, ...], trials: int, store_path: Path, out: Path, plugins: tuple[Path, ...]
) -> None:
    """Say what is done and what is missing: of all experiments, or cell by cell of those named.

    Counts the trials in the store and in OUT, whatever their seeds; `report` leaves out 0 to 9.
    """
    experiments = [load_experiment(name) for name in names] or fidelity.all_experiments()
    with Archive(store_path) as store:
        finished = fidelity.finished(out, store)
        failures, claimed = store.failures(), store.claimed()
        store.left_out.tell()
    if names:
        for experiment in experiments:
            title, what = one_line(experiment.title), experiment.measure.replace("_", " ")
            click.echo(f"{title}: trials done of {trials}, mean {what}\n")
            click.echo(_cells_table(experiment, finished) + "\n")
    else:
        lines = [
            _line(experiment, trials, finished, failures, claimed) for experiment in experiments
        ]
        click.echo(pd.DataFrame(lines).to_markdown(index=False, tablefmt="simple", floatfmt=".1f"))
    for line in _failure_lines(experiments, failures):
        click.echo(line)


def _line(
    experiment: Experiment,
    trials: int,
    finished: Mapping[Setting, Sequence[Trial]],
    failures: Mapping[TrialName, Failure],
    claimed: set[TrialName],
) -> dict[str, Any]:
    settings = dict.fromkeys(experiment.settings)
    keys = {setting.key() for setting in settings}
    missing = {s: max(trials - len(finished.get(s, ())), 0) for s in settings}
    seconds = fidelity.seconds_of(experiment, finished)
    return {
        "experiment": experiment.name,
        "done": trials * len(settings) - sum(missing.values()),
        "of": trials * len(settings),
        "running": sum(name.key in keys for name in claimed),
        "failed": sum(name.key in keys for name in failures),
        "core hours left": sum(missing[s] * seconds[s] for s in settings) / 3600,
    }


def _cells_table(experiment: Experiment, finished: Mapping[Setting, Sequence[Trial]]) -> str:
    texts = {(m.cell.row, m.cell.column): f"{len(m.errors)}" + f", {m.mean:.3f}" * bool(m.errors)
             for m in fidelity.measured(experiment, finished)}  # fmt: skip
    rows = [[texts[row, column] for column in experiment.columns] for row in experiment.rows]
    row_names, column_names = map(one_line, experiment.rows), map(one_line, experiment.columns)
    frame = pd.DataFrame(rows, index=list(row_names), columns=list(column_names))
    return frame.to_markdown(tablefmt="simple", disable_numparse=True)


def _failure_lines(
    experiments: Sequence[Experiment], failures: Mapping[TrialName, Failure]
) -> list[str]:
    places: dict[str, list[str]] = {}
    for experiment in experiments:
        for cell in experiment.cells:
            place = one_line(f"{experiment.name} {cell.row} {cell.column}")
            places.setdefault(cell.setting.key(), []).append(place)
    return [
        f"failed: {'; '.join(places[name.key])}, seed {name.seed}: {failure.message}"
        for name, failure in failures.items()
        if name.key in places
    ]


@click.command()
@click.argument("place", nargs=-1, metavar="[EXPERIMENT ROW COLUMN]")
@setting_options()
@click.option("--seed", default=0, show_default=True, callback=count("--seed", 0, LAST_SEED),
              help="Which trial.")  # fmt: skip
@click.option("--picture", type=FILE, help="Draw the curve, as PNG or SVG.")
@store_option
@out_option
@plugin_option
def show(
    place: tuple[str, ...],
    seed: int,
    picture: Path | None,
    store_path: Path,
    out: Path,
    plugins: tuple[Path, ...],
    **fields: Any,
) -> None:
    """Print one trial's error curve: of a cell of an experiment, or of a setting as for `run`."""
    if picture is not None:
        figures.check_picture(picture)
        check_writable(picture.parent, "--picture")
    setting = _cell_at(*place).setting if place else Setting.from_dict(fields)
    with Archive(store_path) as store:
        known = {t.seed: t for t in fidelity.finished(out, store).get(setting, ())}
        failure = store.failures().get(TrialName(setting.key(), seed, protocol_of(setting)))
    if seed not in known:
        if failure is not None:
            click.echo(failure.details)
            raise BadInput(f"the trial with seed {seed} failed: {failure.message}.")
        there = f"there are {', '.join(map(str, known))}" if known else "there is none"
        raise BadInput(f"no finished trial has this setting and seed {seed}; of seeds {there}.")
    trial = known[seed]
    result = trial.result
    click.echo(f"seed {seed}, error rate {result.error_rate:.4f}, {result.seconds:.1f} s")
    click.echo(f"{trial.versions}, {trial.device}, {trial.finished}")
    click.echo(json.dumps(result.notes))
    columns = ["iteration", "error rate", "training loss"]
    curve = pd.DataFrame(result.curve, columns=columns).astype({"iteration": object})
    click.echo(curve.to_markdown(index=False, tablefmt="simple", floatfmt=".4f"))
    if picture is not None:
        figures.draw_trial(trial, picture)


def _cell_at(*place: str) -> Cell:
    if len(place) != 3:
        raise BadInput(
            f"{' '.join(place)!r} is no place of a table; give EXPERIMENT ROW COLUMN, as "
            "`show table2a krum full --seed 10`, or the setting by options."
        )
    return load_experiment(place[0]).choose(place[1:2], place[2:])[0]


@click.command("export")
@click.argument("file", type=FILE)
@store_option
@plugin_option
def export_command(file: Path, store_path: Path, plugins: tuple[Path, ...]) -> None:
    """Write all finished trials as one table, a column per setting field: FILE.csv or .parquet."""
    if file.suffix not in (".csv", ".parquet"):
        raise BadInput(f"{str(file)!r} is neither .csv nor .parquet; name the file so.")
    with Archive(store_path) as store:
        frame = pd.DataFrame([_flat(trial) for trial in store.everything()], columns=_EXPORTED)
        store.left_out.tell()
    content = io.BytesIO()
    if file.suffix == ".csv":
        frame.apply(lambda column: column.map(_no_formula)).to_csv(content, index=False)
    else:
        try:
            frame.to_parquet(content, index=False)
        except ImportError as error:
            raise BadInput(
                'Parquet needs a package; run `pip install "pyarrow<22"`, or export a .csv.'
            ) from error
    write_bytes(file, content.getvalue())
    click.echo(f"{len(frame)} trials: {file}")


_NAME = list(TrialName._fields)
_SETTING = list(FIELDS)
_OTHERS = [name for name in COLUMNS if name not in {*_NAME, *_SETTING, "setting"}]
_EXPORTED = [*_NAME, *_SETTING, *_OTHERS]


def _flat(trial: Trial) -> dict[str, Any]:
    return {**trial.setting.as_dict(), **trial.row()}


def _no_formula(value: Any) -> Any:
    """Return text that a spreadsheet does not take for a formula, behind an apostrophe."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@store_option
@plugin_option
def import_command(files: tuple[Path, ...], store_path: Path, plugins: tuple[Path, ...]) -> None:
    """Take over the finished trials of other stores, or of .trials.csv files.

    A trial that is there already stays as it is; what is no trial is named and left out.
    """
    for file in files:
        if not file.is_file():
            raise BadInput(f"{str(file)!r} is not a file; give a store or a .trials.csv file.")
    with Store(store_path) as store:
        for file in files:
            if file.suffix.lower() == ".csv":
                trials = read_csv(file, store.left_out)
                found, added = len(trials), len(store.add(*trials))
            else:
                found, added = store.merge(file)
            click.echo(f"{file}: {added} of {found} trials are new")
            store.left_out.tell()
