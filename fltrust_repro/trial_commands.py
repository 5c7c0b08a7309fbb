"""The commands that compute: `run`, `reproduce`, `sweep` and `poison`."""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fltrust_repro import captions, datasets, experiments, options, own_sweeps, reproduction, sweep
from fltrust_repro.archive import Archive
from fltrust_repro.definitions import is_anothers_place, is_own
from fltrust_repro.drawing import check_picture
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import Cell, Experiment, load_experiment
from fltrust_repro.fidelity import PAPER_TRIALS
from fltrust_repro.files import can_hold, check_name, check_writable
from fltrust_repro.poisoning import BackGradient, can_keep, labels_before
from fltrust_repro.processes import Machine
from fltrust_repro.settings import Setting
from fltrust_repro.store import Failure, Store
from fltrust_repro.training import generator, poisoned_examples
from fltrust_repro.trial_pictures import draw_poisoned
from fltrust_repro.trials import FIRST_SEED, Trial
from fltrust_repro.varied import VARIED
from fltrust_repro.words import counted

Words = tuple[str, ...]
Orders = Mapping[Experiment, Sequence[Cell]]


@click.command()
@options.setting_options()
@options.trial_options(1, 0)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def run(seeds: range, machine: Machine, store_path: Path, as_json: bool, **fields: Any) -> None:
    """Run trials of one setting."""
    setting = Setting.from_dict(fields)
    cell = Cell(captions.of_master(setting), setting.attack, setting, None)
    with Store(store_path) as store:
        outcome = sweep.run_missing([cell], seeds, store, machine, options.announce)
        finished = store.find(setting, seeds)
    reproduction.warn(finished)
    if as_json:
        click.echo(json.dumps(_as_json(setting, finished), indent=2))
    else:
        _print_run(finished)
    if outcome.finished:
        click.echo(reproduction.wrote([store_path]), err=True)
    end(outcome.failed)


def _print_run(finished: list[Trial]) -> None:
    for trial in finished:
        result = trial.result
        rates = f"error rate {result.error_rate:.4f} (lowest {result.lowest_error_rate:.4f})"
        if (success := result.notes.get("attack success rate")) is not None:
            rates += f", attack success rate {success:.4f}"
        took = f"{result.iterations} iterations, {result.seconds:.1f} s"
        click.echo(f"seed {trial.seed}: {rates}, {took}")
    if errors := [trial.result.error_rate for trial in finished]:
        told = counted(len(errors), "trial")
        click.echo(f"mean error rate {statistics.fmean(errors):.4f} over {told}")


def end(failed: Sequence[Failure], missing: Sequence[str] = ()) -> None:
    """Sum up the trials that failed and the data that were missing, with exit code 1 if any."""
    if missing:
        click.echo(f"\nNot run for want of data: {', '.join(missing)}.", err=True)
    if failed:
        click.echo(f"\n{counted(len(failed), 'trial')} failed:", err=True)
        for name, message in ((one.name, one.message) for one in failed):
            click.echo(f"  setting {name.key}, seed {name.seed}: {message}", err=True)
        click.echo("What is finished is kept; the same command tries the others again.", err=True)
    if failed or missing:
        sys.exit(1)


def _as_json(setting: Setting, trials: list[Trial]) -> dict[str, Any]:
    errors = [trial.result.error_rate for trial in trials]
    names = ("error_rate", "lowest_error_rate", "seconds", "iterations", "diverged")
    results = [{"seed": t.seed, **{n: getattr(t.result, n) for n in names}} for t in trials]
    return {
        "setting": setting.as_dict(),
        "trials": results,
        "mean_error_rate": statistics.fmean(errors) if errors else None,
        "std_error_rate": statistics.stdev(errors) if len(errors) > 1 else None,
    }


_draw_option = click.option("--draw", is_flag=True, help="Run nothing; show what is at hand.")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--row", "rows", multiple=True, help="Only this row; may be repeated.")
@click.option("--column", "columns", multiple=True, help="Only this column; may be repeated.")
@click.option("--fresh", is_flag=True, help="Compute what is published, too.")
@options.trial_options(PAPER_TRIALS, FIRST_SEED)
@options.out_option
@options.grey_option
@_draw_option
def reproduce(
    names: Words,
    rows: Words,
    columns: Words,
    fresh: bool,
    out: Path,
    grey: bool,
    draw: bool,
    **where: Any,
) -> None:
    """Run tables and figures of the paper, or your own .toml, and print them beside the paper's.

    Trials in the store, in OUT, or published with the program are not run again; with --fresh the
    published ones do not count. --row and --column run some cells of a table that takes long.
    """
    chosen = [load_experiment(name) for name in dict.fromkeys(names)]
    orders = {experiment: experiment.choose(rows, columns) for experiment in chosen}
    _check_names(chosen, out)
    if fresh and reproduction.is_published(out):
        raise BadInput(f"--out {out} holds what is published; give --fresh another folder.")
    _reproduce(orders, out, fresh, grey, draw, **where)


def _reproduce(
    orders: Orders, out: Path, fresh: bool, grey: bool, draw: bool, seeds: range,
    machine: Machine, store_path: Path,
) -> None:  # fmt: skip
    check_writable(out)
    with (Archive if draw else Store)(store_path) as store:
        how = (store, machine, out, options.announce, fresh, grey)
        ended = reproduction.reproduce(orders, seeds, *how)
    end(*ended)


def _is_report(name: str) -> bool:
    """Whether a report of the program's may have a name, in any folder."""
    return name.lower().partition("-")[0] in ("fidelity", "arena")


def _is_experiment(name: str) -> bool:
    """Whether an experiment of the program's has a name, under which results are published."""
    return name.lower() in experiments.available()


def _taken(name: str, out: Path) -> str:
    return f"another experiment is called {name!r} too, and its results are kept in {out}"


def _check_names(chosen: list[Experiment], out: Path) -> None:
    """Refuse files of one's own whose results would take the place of another's in OUT."""
    names, published = [experiment.name for experiment in chosen], reproduction.is_published(out)
    for experiment in chosen:
        name, own = experiment.name, is_own(experiment)
        if own and _is_report(name):
            raise BadInput(f"reports are called {name!r}, too; rename your file.")
        taken = own and published and _is_experiment(name)
        if taken or names.count(name) > 1 or is_anothers_place(experiment, out):
            do = "rename your file, or give --out another folder"
            raise BadInput(f"{_taken(name, out)}; {do}.")


@click.command("sweep")
@click.option("--vary", "names", required=True, multiple=True, metavar="NAME",
              help=f"What the figure varies: {', '.join(VARIED)}, or a rule's or an attack's own "
              "parameter, as multi-krum:q. Twice: heat maps over two of them.")  # fmt: skip
@click.option("--values", multiple=True, metavar="LIST",
              help="Its values: 5,10,20, a range 5..30, one with a step 5:30:5, a share 10%; for "
              "two, twice. Default those of the paper.")  # fmt: skip
@click.option("--rule", "rule_names", multiple=True, default=("krum", "trimmed-mean", "median"),
              show_default=True, help="A panel of the figure; may be repeated.")  # fmt: skip
@click.option("--attack", "attack_names", multiple=True,
              help="A line of the figure; may be repeated. Default: the paper's five, with the "
              "attack crafted for each rule.")  # fmt: skip
@click.option("--knowledge", "knowledges", multiple=True, default=("partial", "full"),
              show_default=True, help="A line per attack and knowledge.")  # fmt: skip
@options.setting_options("rule", "attack", "knowledge")
@click.option(
    "--name",
    help="Name of the files in OUT; default "
    "sweep-VARY-DATASET-MODEL, with six more characters where other options are given.",
)
@options.trial_options(PAPER_TRIALS, FIRST_SEED)
@options.out_option
@options.grey_option
@_draw_option
@click.pass_context
def sweep_command(
    context: click.Context,
    names: Words,
    values: Words,
    rule_names: Words,
    attack_names: Words,
    knowledges: Words,
    name: str | None,
    out: Path,
    grey: bool,
    draw: bool,
    **given: Any,
) -> None:
    """Run a figure: error rates as one parameter varies, a panel per rule, a line per attack.

    A line that does not depend on the parameter is run once, and a point beyond a limit of its rule
    or attack is left out. Ctrl-C ends it with a figure of what is there.
    """
    where = {key: given.pop(key) for key in ("seeds", "machine", "store_path")}
    axes = own_sweeps.axes_of(names, values, given["workers"])
    typed = {field: context.params[field] for field, _ in options.typed(context)}
    for field, option in options.typed(context):
        for one in (axis.varied for axis in axes):
            if one.decides(field.removesuffix("_names"), typed[field]):
                wrong = f"{option} is given, but --vary {one.name} decides it"
                raise BadInput(f"{wrong}; {one.instead}.")
    # A parameter left to its default follows what varies; the others are as given.
    told = {key: value for key, value in given.items() if value is not None}
    others = {key: value for key, value in typed.items() if key not in (*_WHERE, *_NAMED)}
    asked = rule_names, attack_names, knowledges
    command = " ".join(["sweep", *_as_typed(context)])
    made = own_sweeps.arranged(axes, *asked, told, others, command)
    made = made if name is None else dataclasses.replace(made, name=name)
    check_name("--name", made.name)
    if _is_report(made.name) or _is_experiment(made.name):
        raise BadInput(f"--name is {made.name!r}, the name of other results; take another.")
    if is_anothers_place(made, out):
        do = "give another --name, or give --out another folder"
        raise BadInput(f"{_taken(made.name, out)}; {do}.")
    for note in made.notes:
        click.echo(note, err=True)
    _reproduce({made: made.cells}, out, False, grey, draw, **where)


# How many trials are run and where, which changes no number; and what names the files anyway.
_WHERE = ("trials", "first_seed", "device", "jobs", "data_dir", "store_path", "scheduler",
          "checkpoint_minutes", "out", "grey", "draw")  # fmt: skip
_NAMED = ("names", "dataset", "model", "name", "plugins")


def _as_typed(context: click.Context) -> list[str]:
    """What the user typed, but for how many trials to run and where."""
    words = []
    for name, option in options.typed(context):
        if name not in _WHERE:
            value = context.params[name]
            for one in value if isinstance(value, tuple) else (value,):
                words += [option, shlex.quote(str(one))]
    return words


@click.command("poison")
@click.option("--dataset", default="mnist-6000", show_default=True, help="Data set.")
@click.option("--poisoned-share", default=0.04, show_default=True,
              help="Poisoned examples, of all examples.")  # fmt: skip
@options.seed_option(0, "Seed of the trial: it draws the data and the start.")
@options.data_dir_option
@click.option("--picture", type=options.FILE, default="poisoned.png",
              show_default=True, help="Where examples are drawn, before and after.")  # fmt: skip
def poison_command(
    dataset: str, poisoned_share: float, first_seed: int, data_dir: Path | None, picture: Path
) -> None:
    """Make the back-gradient attack's poisoned examples (4.4), and draw some of them.

    They are kept in the user's cache folder; what was made for the same data, share and seed is
    taken from there.
    """
    check_picture(picture)
    if not can_hold(picture.parent):
        raise BadInput(f"{picture.parent} cannot be written; give --picture another folder.")
    can_keep()
    setting = Setting(dataset=dataset, attack="back-gradient", poisoned_share=poisoned_share)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    data = datasets.load(dataset, generator(first_seed, "split"), data_dir).in_float32()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        steps = progress.add_task("", total=BackGradient().outer_steps)

        def after_step(loss: float) -> None:
            progress.update(steps, advance=1, description=f"loss {loss:.3f}")

        made = poisoned_examples(setting, first_seed, data_dir, after_step, data)
    title = f"back-gradient on {dataset}, poisoned share {poisoned_share:g}; seed {first_seed}"
    draw_poisoned(made, labels_before(made, data), picture, title)
    click.echo(f"{counted(len(made.x), 'poisoned example')}. {reproduction.wrote([picture])}")
