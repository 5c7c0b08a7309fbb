"""`list`: what there is to choose from, section by section as it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from fltrust_repro import datasets, fidelity, options
from fltrust_repro.aggregation import Rule, rules
from fltrust_repro.arena_protocols import protocols
from fltrust_repro.attacks import attacks
from fltrust_repro.defenses import defenses
from fltrust_repro.doors import Limit
from fltrust_repro.errors import note, one_line
from fltrust_repro.experiments import Experiment, readable
from fltrust_repro.models import models
from fltrust_repro.parameters import own_parameters
from fltrust_repro.plugins import load_installed
from fltrust_repro.preaggregations import PreAggregation, preaggregations
from fltrust_repro.registry import summary
from fltrust_repro.server import of_root_data
from fltrust_repro.words import counted, lasting

_WIDTH = 20  # of a name
Lines = Mapping[str, str]


@click.command("list")
@options.plugin_option
def list_everything() -> None:
    """List rules, attacks, models, data sets and experiments by paper, and protocols.

    Below a rule or an attack: its own parameters with their defaults, which may be chosen
    with its name, as multi-krum:q=5 (... is worked out); and what m workers, c compromised and beta
    have to allow.
    """
    for problem in load_installed():
        note(problem)
    for title, lines in _sections():
        click.echo(f"{one_line(title)}:")
        for name, text in lines.items():
            first, *more = text.split("\n")
            click.echo(f"  {name:{_WIDTH}} {one_line(first)}")
            for line in more:
                click.echo(f"  {'':{_WIDTH}} {one_line(line)}")


def _sections() -> Iterator[tuple[str, Lines]]:
    yield "rules", {name: _at_master(one, one.limit) for name, one in rules.items()}
    yield "pre-aggregations", {name: _at_master(one) for name, one in preaggregations.items()}
    yield (
        "attacks",
        {
            name: one.summary + (_choices(one.craft, one.limit) if one.craft else "")
            for name, one in attacks.items()
        },
    )
    yield "defenses", {name: defense.summary for name, defense in defenses.items()}
    yield (
        "models",
        {
            name: f"{summary(model.build)} {model.iterations:,} iterations."
            for name, model in models.items()
        },
    )
    yield "data sets", {name: data.summary for name, data in datasets.datasets.items()}
    known = readable()
    papers = fidelity.by_paper([one for one in known if one.published_by])
    papers["of this program"] = [one for one in known if not one.published_by]
    for of, some in papers.items():
        yield f"experiments, {of}", {one.name: _of_experiment(one) for one in some}
    yield "protocols of the arena", {one.name: one.title for one in protocols().values()}


def _at_master(one: Rule | PreAggregation, limit: Limit | None = None) -> str:
    """What it does; what takes examples of the server's own is in a league of its own."""
    data = " [server data]" * bool(of_root_data(one.parameters))
    return summary(one.function) + data + _choices(one.function, limit)


def _choices(function: Callable, limit: Limit | None) -> str:
    """Own parameters with their defaults and the limit, on a line of their own."""
    own = ", ".join(f"{name}={_value(value)}" for name, value in own_parameters(function).items())
    parts = [
        *([f"parameters {own}"] if own else []),
        *([f"needs {limit.text} >= 1"] if limit else []),
    ]
    return f"\n{'; '.join(parts)}" if parts else ""


def _value(default: Any) -> str:
    if default is None:  # worked out by the function itself
        return "..."
    return f"{default:g}" if isinstance(default, float) else str(default)


def _of_experiment(experiment: Experiment) -> str:
    """Its title, how many settings it has, and how long the paper's number of trials takes."""
    settings = len({*experiment.settings})
    told = f"{experiment.title}\n{counted(settings, 'setting')}"
    if experiment.seconds is None:
        return told
    trials = fidelity.PAPER_TRIALS
    needed = lasting(trials * settings * experiment.seconds)
    return f"{told}; {trials} trials of each take a core about {needed}"
