"""The commands: `python -m fltrust_repro run`, `reproduce`, `sweep`, `report`, `list` and more."""

from __future__ import annotations

import json
import shlex
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from fltrust_repro import datasets, fidelity, figures, page, reproduction, sweep
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.back_gradient import BackGradient
from fltrust_repro.data_commands import data
from fltrust_repro.defenses import defenses
from fltrust_repro.doctor import doctor
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.experiments import VARIED, Cell, available, figure_of, load_experiment
from fltrust_repro.fidelity import PAPER_TRIALS
from fltrust_repro.files import check_writable, write_text
from fltrust_repro.models import models
from fltrust_repro.options import (
    announcer,
    common,
    count,
    machine_of,
    out_option,
    seed_range,
    setting_options,
    trials_option,
)
from fltrust_repro.registry import load_plugin, summary
from fltrust_repro.reproduction import warn
from fltrust_repro.settings import Setting
from fltrust_repro.store import Failure, Store
from fltrust_repro.store_commands import export_command, import_command, show, status
from fltrust_repro.trials import Trial


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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fltrust_repro")
def main() -> None:
    """Attacks on, and defenses of, Byzantine-robust federated learning (Fang et al., 2020)."""


@main.command()
@setting_options()
@trials_option(1)
@common
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def run(
    trials: int,
    first_seed: int,
    device: str,
    jobs: int | None,
    data_dir: Path | None,
    store_path: Path,
    scheduler: str | None,
    plugins: tuple[Path, ...],
    as_json: bool,
    **fields: Any,
) -> None:
    """Run trials of one setting."""
    machine = machine_of(device, jobs, data_dir, scheduler, plugins)
    setting = Setting.from_dict(fields)
    seeds = seed_range(first_seed, trials)
    cell = Cell(setting.rule, setting.attack, setting, None)
    with Store(store_path) as store:
        outcome = sweep.run_missing([cell], seeds, store, machine, announcer(trials))
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
        click.echo(f"mean error rate {statistics.fmean(errors):.4f} over {len(errors)} trials")


def _end(failed: list[Failure]) -> None:
    """Sum up the trials that failed, and end with exit code 1 if there are any."""
    if not failed:
        return
    click.echo(f"\n{len(failed)} trials failed, each tried {sweep.ATTEMPTS} times:", err=True)
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
        "std_error_rate": statistics.stdev(errors) if len(errors) > 1 else 0.0,
    }


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="EXPERIMENT...")
@trials_option(PAPER_TRIALS)
@common
@out_option
def reproduce(
    names: tuple[str, ...],
    trials: int,
    first_seed: int,
    device: str,
    jobs: int | None,
    data_dir: Path | None,
    store_path: Path,
    scheduler: str | None,
    plugins: tuple[Path, ...],
    out: Path,
) -> None:
    """Run tables and figures of the paper, or your own .toml, and print them beside the paper's.

    Trials that OUT already holds, committed ones for instance, are not run again.
    """
    machine = machine_of(device, jobs, data_dir, scheduler, plugins)
    experiments = [load_experiment(name) for name in names]
    seeds = seed_range(first_seed, trials)
    check_writable(out)
    missing, failed = [], []
    with Store(store_path) as store:
        for experiment in experiments:
            try:
                failed += reproduction.reproduce(
                    experiment, seeds, store, machine, out, announcer(trials)
                )
            except DataUnavailable as error:
                missing.append(experiment.name)
                click.echo(f"\n{experiment.title}\nnot run: {error}", err=True)
    if missing:
        click.echo(f"\nNot run for want of data: {', '.join(missing)}.", err=True)
    _end(failed)
    if missing:
        sys.exit(1)


# The attack that the paper crafts for a rule (3.2 to 3.4, Appendix A).
_CRAFTED = {"krum": "krum", "bulyan": "krum"}
_FIGURE_2 = {
    "no attack": {"attack": "none"},
    "gaussian": {"attack": "gaussian"},
    "label-flip": {"attack": "label-flip"},
    "partial": {"knowledge": "partial"},
    "full": {"knowledge": "full"},
}


@main.command("sweep")
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
@click.option("--name", default=None, help="Name of the files in OUT; default sweep-VARY.")
@trials_option(PAPER_TRIALS)
@common
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
    trials: int,
    first_seed: int,
    device: str,
    jobs: int | None,
    data_dir: Path | None,
    store_path: Path,
    scheduler: str | None,
    plugins: tuple[Path, ...],
    out: Path,
    **fields: Any,
) -> None:
    """Run a figure: error rates as one parameter varies, a panel per rule, a line per attack."""
    machine = machine_of(device, jobs, data_dir, scheduler, plugins)
    panels = {
        rule: {"rule": rules[rule].name, "attack": _CRAFTED.get(rule, "trimmed-mean")}
        for rule in rule_names
    }
    lines = _attack_lines(attack_names, knowledges) if attack_names else _FIGURE_2
    title = f"{fields['model']} on {fields['dataset']}, {vary} varied"
    points = None if values is None else _numbers(values)
    name = name or f"sweep-{vary}"
    # A parameter left to its default follows what varies; the others are as given.
    told = {key: value for key, value in fields.items() if value is not None}
    command = " ".join(["sweep", *_as_typed(context)])
    figure = figure_of(name, command, title, told, panels, lines, vary, points)
    seeds = seed_range(first_seed, trials)
    check_writable(out)
    with Store(store_path) as store:
        failed = reproduction.reproduce(figure, seeds, store, machine, out, announcer(trials))
    _end(failed)


def _attack_lines(names: tuple[str, ...], knowledges: tuple[str, ...]) -> dict[str, dict[str, Any]]:
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
            f"--values is {text!r}; give numbers with commas between, as 5,10,20."
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


@main.command("report")
@click.option("--store", "store_path", default="trials.sqlite", show_default=True,
              type=click.Path(path_type=Path), help="Finished trials, if it exists.")  # fmt: skip
@out_option
@click.option("--latex", "as_latex", is_flag=True, help="Write every table as OUT/NAME.tex too.")
@click.option("--html", "as_html", is_flag=True, help="Write OUT/fidelity.html, one page, too.")
def report_command(store_path: Path, out: Path, as_latex: bool, as_html: bool) -> None:
    """Set every number that the paper prints beside ours, and check its claims in words.

    Reads the trials in OUT and in the store; runs none. Writes OUT/fidelity.md and fidelity.csv.
    """
    check_writable(out)
    experiments = fidelity.all_experiments()
    if store_path.is_file():
        with Store(store_path) as store:
            trials = fidelity.finished(out, store)
    else:
        trials = fidelity.finished(out, None)
    frame = fidelity.as_frame(experiments, trials)
    write_text(out / "fidelity.md", fidelity.markdown(experiments, trials, frame))
    write_text(out / "fidelity.csv", frame.to_csv(index=False))
    for experiment in experiments:
        if fidelity.drawable(experiment, trials):
            figures.draw(experiment, fidelity.measured(experiment, trials), out)
        if as_latex and experiment.figure is None:
            write_text(out / f"{experiment.name}.tex", fidelity.latex(experiment, trials))
    if as_html:
        write_text(out / "fidelity.html", page.html(experiments, trials, frame, out))
    click.echo(fidelity.summary(frame))
    for line in fidelity.outside(frame):
        click.echo(line)
    written = "fidelity.html" if as_html else "fidelity.md"
    click.echo(f"The whole report: {out / written}")


@main.command("poison")
@click.option("--dataset", default="mnist-6000", show_default=True, help="Data set.")
@click.option("--poisoned-share", default=0.04, show_default=True,
              help="Poisoned examples, of all examples.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, callback=count("--seed", 0),
              help="Seed of the trial: it draws the data and the start.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), help="Looked in first.")
@click.option("--picture", type=click.Path(path_type=Path), default=Path("poisoned.png"),
              show_default=True, help="Where examples are drawn, before and after.")  # fmt: skip
def poison_command(
    dataset: str, poisoned_share: float, seed: int, data_dir: Path | None, picture: Path
) -> None:
    """Make the back-gradient attack's poisoned examples (4.4), and draw some of them.

    What was made for the same data, share and seed is taken from where it lies.
    """
    fields = {"attack": "back-gradient", "poisoned_share": poisoned_share}
    setting = Setting(dataset=dataset, **fields)
    from fltrust_repro.training import poisoned_examples  # imports MXNet, which takes seconds

    with tqdm(total=BackGradient().outer_steps, unit="step", file=sys.stderr) as progress:

        def after_step(loss: float) -> None:
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            progress.update()

        made = poisoned_examples(setting, seed, data_dir, after_step)
    figures.draw_poisoned(made, picture)
    click.echo(f"{len(made.x)} poisoned examples; some of them: {picture}")


for command in (data, doctor, status, show, export_command, import_command):
    main.add_command(command)


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
