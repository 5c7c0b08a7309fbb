"""The commands: `python -m fltrust_repro run`, `reproduce`, `sweep`, `report`, `list` and more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from fltrust_repro import datasets, fidelity, figures, page
from fltrust_repro.aggregation import rules
from fltrust_repro.archive import Archive
from fltrust_repro.attacks import attacks
from fltrust_repro.back_gradient import BackGradient
from fltrust_repro.data_commands import data
from fltrust_repro.defenses import defenses
from fltrust_repro.doctor import doctor
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import available, load_experiment
from fltrust_repro.files import check_writable, write_text
from fltrust_repro.literal import one_line
from fltrust_repro.models import models
from fltrust_repro.options import (
    FILE,
    LAST_SEED,
    PATH,
    count,
    out_option,
    plugin_option,
    store_option,
)
from fltrust_repro.plugins import load_installed
from fltrust_repro.registry import summary
from fltrust_repro.settings import Setting
from fltrust_repro.store_commands import export_command, import_command, show, status
from fltrust_repro.trial_commands import reproduce, run, sweep_command

_LONGEST_SENTENCE = 2000  # characters; an error may quote a name from a file


class _Group(click.Group):
    """Turns errors that the user can mend into one sentence and exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BadInput as error:
            click.echo(f"Error: {_one_line(str(error))}", err=True)
            context.exit(2)
        except KeyboardInterrupt:
            click.echo("\nStopped. Finished trials are kept: the same command goes on.", err=True)
            context.exit(130)


def _one_line(text: str) -> str:
    """The text as a terminal can show it, whatever a file or plug-in put into it."""
    words = " ".join(text.split())[:_LONGEST_SENTENCE]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fltrust_repro")
def main() -> None:
    """Attacks on, and defenses of, Byzantine-robust federated learning (Fang et al., 2020)."""


@main.command("report")
@store_option
@out_option
@plugin_option
@click.option("--latex", "as_latex", is_flag=True, help="Write every table as OUT/NAME.tex too.")
@click.option("--html", "as_html", is_flag=True, help="Write OUT/fidelity.html, one page, too.")
def report_command(
    store_path: Path, out: Path, plugins: tuple[Path, ...], as_latex: bool, as_html: bool
) -> None:
    """Set every number that the paper prints beside ours, and check its claims in words.

    Reads the trials in OUT and in the store; runs none. Those with seeds 0 to 9, which chose the
    readings, are left out. Writes OUT/fidelity.md and fidelity.csv.
    """
    check_writable(out)
    experiments = fidelity.all_experiments()
    with Archive(store_path) as store:
        trials = fidelity.reported(fidelity.finished(out, store))
    frame = fidelity.as_frame(experiments, trials)
    write_text(out / "fidelity.md", fidelity.markdown(experiments, trials, frame))
    write_text(out / "fidelity.csv", frame.to_csv(index=False))
    for experiment in experiments:
        if as_latex and experiment.figure is None:
            write_text(out / f"{experiment.name}.tex", fidelity.latex(experiment, trials))
    if as_html:
        write_text(out / "fidelity.html", page.html(experiments, trials, frame))
    click.echo(f"{fidelity.summary(frame)} {fidelity.seeds_told()}")
    for line in fidelity.outside(frame):
        click.echo(line)
    written = "fidelity.html" if as_html else "fidelity.md"
    click.echo(f"The whole report: {out / written}")


@main.command("poison")
@click.option("--dataset", default="mnist-6000", show_default=True, help="Data set.")
@click.option("--poisoned-share", default=0.04, show_default=True,
              help="Poisoned examples, of all examples.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, callback=count("--seed", 0, LAST_SEED),
              help="Seed of the trial: it draws the data and the start.")  # fmt: skip
@click.option("--data-dir", type=PATH, help="Looked in first.")
@click.option("--picture", type=FILE, default="poisoned.png",
              show_default=True, help="Where examples are drawn, before and after.")  # fmt: skip
def poison_command(
    dataset: str, poisoned_share: float, seed: int, data_dir: Path | None, picture: Path
) -> None:
    """Make the back-gradient attack's poisoned examples (4.4), and draw some of them.

    What was made for the same data, share and seed is taken from where it lies.
    """
    figures.check_picture(picture)
    check_writable(picture.parent, "--picture")
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


_TRIALS, _STORE = (run, reproduce, sweep_command), (status, show, export_command, import_command)
for command in (*_TRIALS, *_STORE, data, doctor):
    main.add_command(command)


@main.command("list")
@plugin_option
def list_everything(plugins: tuple[Path, ...]) -> None:
    """List rules, attacks, models, data sets and experiments, one line each."""
    sections = {
        "rules": {name: summary(rule.function) for name, rule in rules.items()},
        "attacks": {name: attack.summary for name, attack in attacks.items()},
        "defenses": {name: defense.summary for name, defense in defenses.items()},
        "models": {name: summary(model.build) for name, model in models.items()},
        "data sets": {name: summary(loader) for name, loader in datasets.datasets.items()},
        "experiments": {name: load_experiment(name).title for name in available()},
    }
    for problem in load_installed():
        click.echo(f"Note: {problem}", err=True)
    for title, lines in sections.items():
        click.echo(f"{title}:")
        for name, text in lines.items():
            click.echo(f"  {name:14} {one_line(text)}")
