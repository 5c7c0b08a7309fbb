"""The commands: `python -m fltrust_repro run | reproduce | data | list`."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fltrust_repro import datasets, report, sweep
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.backend import resolve_device
from fltrust_repro.defenses import defenses
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.experiments import Experiment, available, load_experiment
from fltrust_repro.models import models
from fltrust_repro.registry import load_plugin, summary
from fltrust_repro.settings import CHOICES, Setting
from fltrust_repro.store import Store, Trial, check_writable, read_csv, write_csv, write_text

PAPER_TRIALS = 50
LONG_HOURS = 1.0


class _Group(click.Group):
    """Turns errors that the user can mend into one sentence and exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
        try:
            return super().invoke(context)
        except BadInput as error:
            click.echo(f"Error: {error}", err=True)
            context.exit(2)
        except KeyboardInterrupt:
            click.echo("\nStopped. Finished trials are kept: the same command goes on.", err=True)
            context.exit(130)
        except BrokenPipeError:
            # The reader of our output, `head` for instance, has seen enough.
            sys.stderr.close()
            context.exit(0)


def _count(text: str, least: int) -> Callable:
    def check(
        _context: click.Context, _parameter: click.Parameter, value: int | None
    ) -> int | None:
        if value is not None and value < least:
            raise BadInput(f"{text} is {value}; it must be at least {least}.")
        return value

    return check


LAST_SEED = 2**31 - 1


def _seeds(first: int, trials: int) -> range:
    if first + trials - 1 > LAST_SEED:
        raise BadInput(
            f"--seed is {first} and --trials {trials}; the last seed must be at most {LAST_SEED}."
        )
    return range(first, first + trials)


def _common(command: Callable) -> Callable:
    options = [
        click.option("--seed", "first_seed", default=0, show_default=True, metavar="S",
                     callback=_count("--seed", 0), help="Trials have seeds S, S+1, ..."),
        click.option("--device", default="auto", show_default=True, metavar="cpu|gpu|auto",
                     help="Where to compute; auto takes a GPU if MXNet sees one."),
        click.option("--jobs", type=int, callback=_count("--jobs", 1),
                     help="Worker processes; default one per core, on a GPU one."),
        click.option("--data-dir", type=click.Path(path_type=Path),
                     help="Where data sets are looked for first."),
        click.option("--store", "store_path", default="trials.sqlite", show_default=True,
                     type=click.Path(path_type=Path), help="File of finished trials."),
        click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path),
                     help="Python file with a rule, attack, model or data set of yours."),
    ]  # fmt: skip
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def _setting_options(command: Callable) -> Callable:
    types = {"int": int, "float": float, "str": str}
    for field in reversed(dataclasses.fields(Setting)):
        kind = types[field.type.split(" ")[0]]
        metavar = "|".join(CHOICES[field.name]) if field.name in CHOICES else None
        command = click.option(
            "--" + field.name.replace("_", "-"),
            field.name,
            type=kind,
            default=field.default,
            show_default=field.default is not None,
            metavar=metavar,
            help=field.metadata["help"],
        )(command)
    return command


def _machine(
    device: str, jobs: int | None, data_dir: Path | None, plugins: tuple[Path, ...]
) -> sweep.Machine:
    for path in plugins:
        load_plugin(path)
    device = resolve_device(device)
    default_jobs = sweep.usable_cores() if device == "cpu" else 1
    return sweep.Machine(device, jobs or default_jobs, data_dir, plugins)


def _announcer(trials: int) -> Callable[[float], None]:
    def announce(hours: float) -> None:
        if hours < LONG_HOURS:
            return
        click.echo(
            f"This will take about {hours:.1f} hours on this machine. Smaller: --trials 1 takes "
            f"about {hours / trials:.1f} hours. It can be stopped at any time (Ctrl-C); the same "
            "command goes on.",
            err=True,
        )

    return announce


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fltrust_repro")
def main() -> None:
    """Attacks on, and defenses of, Byzantine-robust federated learning (Fang et al., 2020)."""


@main.command()
@_setting_options
@click.option("--trials", default=1, show_default=True, callback=_count("--trials", 1),
              help="How many seeds.")  # fmt: skip
@_common
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def run(
    trials: int,
    first_seed: int,
    device: str,
    jobs: int | None,
    data_dir: Path | None,
    store_path: Path,
    plugins: tuple[Path, ...],
    as_json: bool,
    **fields: Any,
) -> None:
    """Run trials of one setting."""
    machine = _machine(device, jobs, data_dir, plugins)
    setting = Setting.from_dict(fields)
    seeds = _seeds(first_seed, trials)
    datasets.fetch(setting.dataset, data_dir)
    with Store(store_path) as store:
        sweep.run_missing([setting], seeds, store, machine, _announcer(trials))
        finished = store.find(setting, seeds)
    _warn(finished)
    if as_json:
        click.echo(json.dumps(_as_json(setting, finished), indent=2))
        return
    for trial in finished:
        result = trial.result
        click.echo(
            f"seed {trial.seed}: error rate {result.error_rate:.4f} (lowest "
            f"{result.lowest_error_rate:.4f}), {result.iterations} iterations, "
            f"{result.seconds:.1f} s"
        )
    errors = [trial.result.error_rate for trial in finished]
    click.echo(f"mean error rate {statistics.fmean(errors):.4f} over {len(errors)} trials")


def _as_json(setting: Setting, trials: list[Trial]) -> dict[str, Any]:
    errors = [trial.result.error_rate for trial in trials]
    names = ("error_rate", "lowest_error_rate", "seconds", "iterations", "diverged")
    return {
        "setting": setting.as_dict(),
        "trials": [
            {"seed": t.seed, **{name: getattr(t.result, name) for name in names}} for t in trials
        ],
        "mean_error_rate": statistics.fmean(errors),
        "std_error_rate": statistics.stdev(errors) if len(errors) > 1 else 0.0,
    }


def _warn(trials: list[Trial]) -> None:
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


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--trials", default=PAPER_TRIALS, show_default=True, callback=_count("--trials", 1),
              help="Trials per cell; the paper has 50.")  # fmt: skip
@_common
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results"),
              show_default=True, help="Folder for CSV and Markdown.")  # fmt: skip
def reproduce(
    names: tuple[str, ...],
    trials: int,
    first_seed: int,
    device: str,
    jobs: int | None,
    data_dir: Path | None,
    store_path: Path,
    plugins: tuple[Path, ...],
    out: Path,
) -> None:
    """Run tables of the paper (or your own .toml) and print them next to the paper's values.

    Trials that OUT already holds, committed ones for instance, are not run again.
    """
    machine = _machine(device, jobs, data_dir, plugins)
    experiments = [load_experiment(name) for name in names]
    seeds = _seeds(first_seed, trials)
    check_writable(out)
    missing = []
    with Store(store_path) as store:
        for experiment in experiments:
            try:
                _reproduce(experiment, seeds, store, machine, out)
            except DataUnavailable as error:
                missing.append(experiment.name)
                click.echo(f"\n{experiment.title}\nnot run: {error}", err=True)
    if missing:
        click.echo(f"\nNot run for want of data: {', '.join(missing)}.", err=True)
        sys.exit(1)


def _reproduce(
    experiment: Experiment, seeds: range, store: Store, machine: sweep.Machine, out: Path
) -> None:
    trials_file = out / f"{experiment.name}.trials.csv"
    known = _read_back(experiment, trials_file, store)
    for name in dict.fromkeys(setting.dataset for setting in experiment.settings):
        datasets.fetch(name, machine.data_dir)
    click.echo(f"\n{experiment.title}", err=True)
    ran = sweep.run_missing(experiment.settings, seeds, store, machine, _announcer(len(seeds)))
    if not ran:
        click.echo("All trials were finished already.", err=True)
    found = [store.find(cell.setting, seeds) for cell in experiment.cells]
    measured = [report.measure(cell, trials) for cell, trials in zip(experiment.cells, found)]
    _warn([trial for trials in found for trial in trials])

    reused = sum(trial.name in known for trials in found for trial in trials)
    lines = [
        f"{experiment.title}. Error rate ± 95% confidence (paper, difference); "
        f"{len(seeds)} trial{'s' * (len(seeds) > 1)}, seeds {seeds[0]} to {seeds[-1]}.",
        "",
        report.table(experiment, measured, "simple"),
        "",
        f"{report.summary_line(measured)}.  * outside the tolerance  ? too few trials to say",
    ]
    if reused:
        lines.append(f"{reused} trials were taken from {trials_file}.")
    click.echo("\n".join(lines))

    settings = dict.fromkeys(experiment.settings)
    write_csv(trials_file, [trial for setting in settings for trial in store.find(setting)])
    write_text(
        out / f"{experiment.name}.csv", report.as_frame(experiment, measured).to_csv(index=False)
    )
    write_text(
        out / f"{experiment.name}.md",
        report.markdown(experiment, measured, [t for trials in found for t in trials]),
    )


def _read_back(experiment: Experiment, file: Path, store: Store) -> set:
    """Take the trials of an earlier run, committed ones for instance, into the store."""
    if not file.is_file():
        return set()
    settings = set(experiment.settings)
    known = [trial for trial in read_csv(file) if trial.setting in settings]
    return {trial.name for trial in known if store.add(trial)}


@main.group()
def data() -> None:
    """Look for, download and check the data sets."""


_data_dir = click.option("--data-dir", type=click.Path(path_type=Path), help="Looked in first.")


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        datasets.datasets[name]
    return names or tuple(datasets.datasets)


@data.command("status")
@_data_dir
def data_status(data_dir: Path | None) -> None:
    """Say which data sets are at hand, and where."""
    for row in datasets.status(data_dir):
        click.echo(f"{row.name:14} {row.where or 'not at hand':40} {row.source}")


@data.command("fetch")
@click.argument("names", nargs=-1, metavar="[DATASET]...")
@_data_dir
def data_fetch(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Download what is not at hand, all data sets by default; exit code 1 if one is missing."""
    _each(_names(names), lambda name: datasets.fetch(name, data_dir), "here")


@data.command("verify")
@click.argument("names", nargs=-1, metavar="[DATASET]...")
@_data_dir
def data_verify(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Check the files of data sets, all by default; exit code 1 if one is wrong or missing."""
    _each(_names(names), lambda name: datasets.verify(name, data_dir), "verified")


def _each(names: tuple[str, ...], action: Callable[[str], Any], word: str) -> None:
    failed = False
    for name in names:
        try:
            action(name)
            click.echo(f"{name}: {word}")
        except BadInput as error:
            failed = True
            click.echo(f"{name}: {error}", err=True)
    if failed:
        sys.exit(1)


@main.command("list")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path),
              help="Python file of yours to list too.")  # fmt: skip
def list_everything(plugins: tuple[Path, ...]) -> None:
    """List rules, attacks, models, data sets and experiments, one line each."""
    for path in plugins:
        load_plugin(path)
    sections = {
        "rules": {name: summary(rule.function) for name, rule in rules.items()},
        "attacks": {name: attack.summary for name, attack in attacks.items()},
        "defenses": {name: defense.summary for name, defense in defenses.items()},
        "models": {name: summary(model.build) for name, model in models.items()},
        "data sets": {name: summary(loader) for name, loader in datasets.datasets.items()},
        "experiments": {name: load_experiment(name).title for name in available()},
    }
    for title, lines in sections.items():
        click.echo(f"{title}:")
        for name, text in lines.items():
            click.echo(f"  {name:14} {text}")
