"""The commands that run trials: `run`, `reproduce` and `sweep`."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fltrust_repro import reproduction, sweep
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.errors import BadInput, DataUnavailable, choose, shown
from fltrust_repro.experiments import (
    VARIED,
    Cell,
    Experiment,
    available,
    figure_of,
    load_experiment,
    published,
)
from fltrust_repro.fidelity import PAPER_TRIALS
from fltrust_repro.files import check_name, check_writable
from fltrust_repro.options import announcer, out_option, setting_options, trial_options
from fltrust_repro.processes import Machine
from fltrust_repro.reproduction import warn
from fltrust_repro.settings import FIELDS, Setting
from fltrust_repro.store import Failure, Store
from fltrust_repro.trials import Trial


@click.command()
@setting_options()
@trial_options(1, 0)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def run(
    seeds: range,
    machine: Machine,
    store_path: Path,
    as_json: bool,
    **fields: Any,
) -> None:
    """Run trials of one setting."""
    setting = Setting.from_dict(fields)
    cell = Cell(setting.rule, setting.attack, setting, None)
    with Store(store_path) as store:
        outcome = sweep.run_missing([cell], seeds, store, machine, announcer(len(seeds)))
        finished = store.find(setting, seeds)
    warn(finished)
    _print_run(setting, finished, as_json)
    _end(outcome.failed)


def _print_run(setting: Setting, finished: list[Trial], as_json: bool) -> None:
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
    if errors := [trial.result.error_rate for trial in finished]:
        several = "s" * (len(errors) > 1)
        mean = statistics.fmean(errors)
        click.echo(f"mean error rate {mean:.4f} over {len(errors)} trial{several}")


def _end(failed: list[Failure]) -> None:
    """Sum up the trials that failed, and end with exit code 1 if there are any."""
    if not failed:
        return
    plural = "s" * (len(failed) > 1)
    click.echo(f"\n{len(failed)} trial{plural} failed:", err=True)
    for failure in failed:
        name = failure.name
        click.echo(f"  setting {name.key}, seed {name.seed}: {failure.message}", err=True)
    click.echo("All others are kept; the same command tries the failed ones again.", err=True)
    sys.exit(1)


def _as_json(setting: Setting, trials: list[Trial]) -> dict[str, Any]:
    errors = [trial.result.error_rate for trial in trials]
    names = ("error_rate", "lowest_error_rate", "seconds", "iterations", "diverged")
    return {
        "setting": setting.as_dict(),
        "trials": [
            {"seed": t.seed, **{name: getattr(t.result, name) for name in names}} for t in trials
        ],
        "mean_error_rate": statistics.fmean(errors) if errors else None,
        "std_error_rate": statistics.stdev(errors) if len(errors) > 1 else None,
    }


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--row", "rows", multiple=True, help="Only this row; may be repeated.")
@click.option("--column", "columns", multiple=True, help="Only this column; may be repeated.")
@trial_options(PAPER_TRIALS, 0)
@out_option
def reproduce(
    names: tuple[str, ...],
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    seeds: range,
    machine: Machine,
    store_path: Path,
    out: Path,
) -> None:
    """Run tables and figures of the paper, or your own .toml, and print them beside the paper's.

    Trials that OUT already holds, committed ones for instance, are not run again. --row and
    --column run some cells of a table that takes long.
    """
    experiments = [load_experiment(name) for name in dict.fromkeys(names)]
    cells = {experiment.name: experiment.choose(rows, columns) for experiment in experiments}
    _check_names(experiments, out)
    check_writable(out)
    missing, failed = [], []
    with Store(store_path) as store:
        for experiment in experiments:
            try:
                failed += reproduction.reproduce(
                    experiment,
                    seeds,
                    store,
                    machine,
                    out,
                    announcer(len(seeds)),
                    cells[experiment.name],
                )
            except DataUnavailable as error:
                missing.append(experiment.name)
                click.echo(f"\n{experiment.title}\nnot run: {error}", err=True)
    if missing:
        click.echo(f"\nNot run for want of data: {', '.join(missing)}.", err=True)
    _end(failed)
    if missing:
        sys.exit(1)


def _taken() -> tuple[str, ...]:
    """Names under which the repository publishes results."""
    return (*available(), "fidelity")


def _check_names(experiments: list[Experiment], out: Path) -> None:
    """Refuse files of one's own whose results would take the place of another's in OUT."""
    names = [experiment.name for experiment in experiments]
    taken = _taken() if out.resolve() == published().resolve() else ()
    for experiment in experiments:
        own = experiment.command != f"reproduce {experiment.name}"
        if names.count(experiment.name) > 1 or (own and experiment.name.lower() in taken):
            raise BadInput(
                f"another experiment is called {experiment.name!r} too, and its results are kept "
                f"in {out}; rename your file, or give --out another folder."
            )


# The attack that the paper crafts for a rule (3.2 to 3.4, Appendix A).
_CRAFTED = {"krum": "krum", "bulyan": "krum"}
_FIGURE_2 = {
    "no attack": {"attack": "none"},
    "gaussian": {"attack": "gaussian"},
    "label-flip": {"attack": "label-flip"},
    "partial": {"knowledge": "partial"},
    "full": {"knowledge": "full"},
}


def _own_name(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    if value is not None:
        check_name("--name", value)
        if value.lower() in _taken():
            raise BadInput(f"--name is {value!r}, the name of other results; take another.")
    return value


@click.command("sweep")
@click.option("--vary", required=True, metavar="|".join(VARIED), help="What the figure varies.")
@click.option("--values", help="Its values, with commas between; default those of the paper.")
@click.option("--rule", "rule_names", multiple=True, default=("krum", "trimmed-mean", "median"),
              show_default=True, help="A panel of the figure; may be repeated.")  # fmt: skip
@click.option("--attack", "attack_names", multiple=True,
              help="A line of the figure; may be repeated. Default: the paper's five, with the "
              "attack crafted for each rule.")  # fmt: skip
@click.option("--knowledge", "knowledges", multiple=True, default=("partial", "full"),
              show_default=True, help="A line per attack and knowledge.")  # fmt: skip
@setting_options("rule", "attack", "knowledge")
@click.option("--name", callback=_own_name,
              help="Name of the files in OUT; default sweep-VARY.")  # fmt: skip
@trial_options(PAPER_TRIALS, 0)
@out_option
@click.pass_context
def sweep_command(
    context: click.Context,
    vary: str,
    values: str | None,
    rule_names: tuple[str, ...],
    attack_names: tuple[str, ...],
    knowledges: tuple[str, ...],
    name: str | None,
    seeds: range,
    machine: Machine,
    store_path: Path,
    out: Path,
    **fields: Any,
) -> None:
    """Run a figure: error rates as one parameter varies, a panel per rule, a line per attack."""
    panels = {
        rule: {"rule": rules[rule].name, "attack": _CRAFTED.get(rule, "trimmed-mean")}
        for rule in rule_names
    }
    lines = _attack_lines(attack_names, knowledges)
    title = f"{fields['model']} on {fields['dataset']}, {vary} varied"
    points = None if values is None else _numbers(values)
    name = name or f"sweep-{vary}"
    # A parameter left to its default follows what varies; the others are as given.
    told = {key: value for key, value in fields.items() if value is not None}
    command = " ".join(["sweep", *_as_typed(context)])
    figure = figure_of(name, command, title, told, panels, lines, vary, points)
    _check_varied(context, vary)
    check_writable(out)
    with Store(store_path) as store:
        failed = reproduction.reproduce(figure, seeds, store, machine, out, announcer(len(seeds)))
    _end(failed)


def _check_varied(context: click.Context, vary: str) -> None:
    """Refuse an option that would change nothing, since it is what the figure varies."""
    for field in VARIED[vary].fields(1):
        if context.get_parameter_source(field) is ParameterSource.COMMANDLINE:
            option = "--" + field.replace("_", "-")
            raise BadInput(f"{option} is given, but --vary {vary} decides it; leave it out.")


def _attack_lines(names: tuple[str, ...], knowledges: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    for knowledge in knowledges:
        allowed = FIELDS["knowledge"].metadata["choices"]
        if knowledge not in allowed:
            raise BadInput(f"knowledge is {shown(knowledge)}; {choose(knowledge, allowed)}")
    if not names:
        told = (*knowledges, None)
        return {name: line for name, line in _FIGURE_2.items() if line.get("knowledge") in told}
    lines: dict[str, dict[str, Any]] = {}
    for name in names:
        if not attacks[name].has_knowledge:
            lines[name] = {"attack": name}
            continue
        for knowledge in knowledges:
            lines[f"{name}, {knowledge}"] = {"attack": name, "knowledge": knowledge}
    return lines


def _numbers(text: str) -> list[float]:
    try:
        return [int(part) if part.strip().isdigit() else float(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(
            f"--values is {shown(text)}; give numbers with commas between, as 5,10,20."
        ) from None


def _as_typed(context: click.Context) -> list[str]:
    """What the user typed, but for how many trials to run and where."""
    where = ("device", "jobs", "data_dir", "store_path", "scheduler", "out")
    left_out = ("trials", "first_seed", *where)
    words = []
    for option in context.command.params:
        typed = context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
        if typed and option.name not in left_out:
            value = context.params[option.name]
            for one in value if isinstance(value, tuple) else (value,):
                words += [option.opts[0], shlex.quote(str(one))]
    return words
