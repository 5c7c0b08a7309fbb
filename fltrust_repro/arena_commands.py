"""The command `arena`: it runs what a ranking needs, and prints it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from fltrust_repro import arena, arena_report, datasets, options, reproduction, sweep
from fltrust_repro.archive import Archive
from fltrust_repro.arena import FEW, SEEDS, Protocol, protocols
from fltrust_repro.errors import BadInput, DataUnavailable, choose, shown
from fltrust_repro.experiments import Cell, Experiment
from fltrust_repro.files import check_writable, write_text
from fltrust_repro.processes import Machine
from fltrust_repro.settings import FIELDS, Setting
from fltrust_repro.standings import Standings
from fltrust_repro.store import Failure, Store
from fltrust_repro.trial_commands import end
from fltrust_repro.trials import Trial, read_csv

Words = tuple[str, ...]
Known = dict[Setting, list[Trial]]


@dataclass(frozen=True)
class Order:
    """What is asked for of a protocol."""

    protocol: Protocol
    experiment: Experiment
    refused: dict[str, list[tuple[str, str]]]
    knowledge: str
    rows: Words  # to run; all unless some are named
    own: Words  # of these, which the protocol does not have
    seeds: range
    part: bool  # of the protocol's columns

    @property
    def cells(self) -> list[Cell]:
        """The cells to run."""
        return [cell for cell in self.experiment.cells if cell.row in self.rows]

    @property
    def ranks(self) -> bool:
        """Whether the ranking is the protocol's, to be kept in files."""
        return not self.part and len(self.seeds) == len(SEEDS)


@click.command("arena")
@click.option("--protocol", "names", multiple=True, default=("P1",), show_default=True,
              metavar="P1|P2|...", help="By which rules are judged; repeatable.")  # fmt: skip
@click.option("--rule", "rule_names", multiple=True, metavar="NAME",
              help="Only this row, or any rule as a row of its own; repeatable.")  # fmt: skip
@click.option("--pre", multiple=True, metavar="NAME", help="Before each --rule; repeatable.")
@click.option("--attack", "columns", multiple=True, metavar="COLUMN",
              help="Only this column and no attack; repeatable.")  # fmt: skip
@click.option("--knowledge", default="full", show_default=True, help="Or partial: another table.")
@click.option("--breakdown", is_flag=True, help="Search the smallest c that doubles the error.")
@click.option("--draw", is_flag=True, help="Run nothing; rank what is at hand.")
@click.option("--trials", default=len(SEEDS), show_default=True, metavar="N",
              callback=options.count("--trials", 1, len(SEEDS)),
              help="Seeds at most; fewer are a quick look, of which no file is made.")  # fmt: skip
@options.place_options()
@options.out_option
def arena_command(
    names: Words, rule_names: Words, pre: Words, columns: Words, knowledge: str, breakdown: bool,
    draw: bool, trials: int, machine: Machine, store_path: Path, out: Path,
) -> None:  # fmt: skip
    """Rank rules by their error under the attack that is worst for each.

    By a frozen protocol every rule meets every attack with 3 seeds, then the three attacks that are
    worst for it, and none, with 20. Trials in the store, in OUT, or published with the program are
    not run again. `arena --plugin my_rule.py --rule my-rule` places a rule of your own.
    """
    known = protocols()
    for name in names:
        if name not in known:
            raise BadInput(f"--protocol is {shown(name)}; {choose(name, known)}")
    if pre and not rule_names:
        raise BadInput("--pre is given without --rule; name the rule that it is before.")
    chosen = [known[name] for name in dict.fromkeys(names)]
    which = (rule_names, "+".join(pre), columns, knowledge, SEEDS[:trials])
    orders = [_order(protocol, *which) for protocol in chosen]
    check_writable(out)
    with (Archive if draw else Store)(store_path) as store:
        ended = [_judge(order, store, machine, out, breakdown) for order in orders]
    end(
        [one for failed, _ in ended for one in failed], [one for _, names in ended for one in names]
    )


def _order(
    protocol: Protocol, rule_names: Words, pre: str, columns: Words, knowledge: str, seeds: range
) -> Order:
    allowed = FIELDS["knowledge"].metadata["choices"]
    if knowledge not in allowed:
        raise BadInput(f"knowledge is {shown(knowledge)}; {choose(knowledge, allowed)}")
    asked = dict(protocol.row(rule, pre) for rule in rule_names)
    own = {row: fields for row, fields in asked.items() if row not in protocol.rows}
    experiment, refused = arena.table(protocol, knowledge, own, columns)
    if own:  # whose results take no other's place
        name = "-".join([experiment.name, *(re.sub(r"[^\w.-]+", "-", row) for row in own)])
        experiment = dataclasses.replace(experiment, name=name)
    few = seeds[:FEW] if columns else seeds
    rows = tuple(asked or experiment.rows)
    return Order(protocol, experiment, refused, knowledge, rows, tuple(own), few, bool(columns))


def _judge(
    order: Order, store: Archive, machine: Machine, out: Path, breakdown: bool
) -> tuple[list[Failure], list[str]]:
    """Run what is missing, where the store is to be written; print the ranking, write its files.

    Returns the trials that failed, and the protocol where its data are missing.
    """
    experiment, failed, without_data = order.experiment, [], []
    if (file := out / f"{experiment.name}{reproduction.ENDING}").exists():
        read_csv(file, store.left_out)
    for name in dict.fromkeys(setting.dataset for setting in experiment.settings):
        datasets.data_digest(name, machine.data_dir)  # part of a trial's name
    published = reproduction.read_back(store, out, experiment.settings)
    _tell(order, _known(store, experiment.cells), breakdown)
    if isinstance(store, Store):
        try:
            failed = _run(order, store, machine)
        except DataUnavailable as error:
            without_data.append(order.protocol.name)
            click.echo(f"not run: {error}", err=True)
    known = _known(store, experiment.cells)
    searched, more = _search(order, store, machine if breakdown else None, out, known)
    _show(order, arena.ranking(order.protocol, experiment, known, order.seeds))
    kept = dataclasses.replace(experiment, cells=(*order.cells, *searched))
    files = reproduction.keep_trials(kept, store, out, published)
    _write(order, known, out, files)
    return [*failed, *more], without_data


def _known(store: Archive, cells: Iterable[Cell]) -> Known:
    return {cell.setting: store.find(cell.setting, SEEDS) for cell in cells}


def _tell(order: Order, known: Known, breakdown: bool) -> None:
    """Say before it starts what is at hand, what will be run and how long that takes."""
    for line in arena_report.left_out(order.refused, len(order.experiment.rows)):
        click.echo(line, err=True)
    left = arena.missing(order.cells, known, order.seeds)
    seconds = arena.seconds_of(order.experiment, known)
    time = reproduction.core_time(sum(n * seconds[cell.column] for cell, n in left.items()))
    rules, attacks = len(order.rows), len(order.experiment.columns) - 1
    told = f"{rules} rule{'s' * (rules > 1)} under {attacks} attack{'s' * (attacks > 1)}"
    more = rules * arena.most_trials(order.cells[0].setting.workers)
    searched = f"; then at most {more:,} trials for the breakdown" * breakdown
    to_run = f"{sum(left.values()):,} trials to run{time}{searched}"
    click.echo(f"{order.protocol.name}: {told}: {to_run}", err=True)


def _run(order: Order, store: Store, machine: Machine) -> list[Failure]:
    """Run the few seeds everywhere, then all where they count."""
    few = order.seeds[:FEW]
    failed = sweep.run_missing(order.cells, few, store, machine).failed
    plan = arena.wanted(order.cells, _known(store, order.cells), order.seeds)
    refined = [cell for cell, seeds in plan.items() if len(seeds) > len(few)]
    return failed + (
        sweep.run_missing(refined, order.seeds, store, machine).failed if refined else []
    )


def _search(
    order: Order, store: Archive, machine: Machine | None, out: Path, known: Known
) -> tuple[list[Cell], list[Failure]]:
    """Add to `known` the trials of each row's breakdown, run on a machine where one is given."""
    searched: list[Cell] = []
    failed: list[Failure] = []
    rows = arena.rows_of(order.experiment.cells)
    while asked := [
        cell
        for own in rows.values()
        for cell in arena.breakdown(own, known, order.seeds).asked
        if cell.setting not in known
    ]:
        reproduction.read_back(store, out, [cell.setting for cell in asked])
        to_run = [cell for cell in asked if cell.row in order.rows]
        if machine is not None and isinstance(store, Store) and to_run:
            failed += sweep.run_missing(to_run, order.seeds[:FEW], store, machine).failed
        known.update(_known(store, asked))
        searched += to_run
    return searched, failed


def _show(order: Order, found: Standings) -> None:
    click.echo(f"{arena_report.heading(found, order.knowledge)}")
    near = order.rows if len(order.rows) < len(order.experiment.rows) else ()
    for name, entries in arena_report.groups(found).items():
        if not near or any(entry.row in near for entry in entries):
            click.echo(f"\n{name}\n{arena_report.table(entries, 'simple', near)}")
    click.echo()
    for line in arena_report.notes(found, order.rows):
        click.echo(line)


def _write(order: Order, known: Known, out: Path, files: Sequence[Path]) -> None:
    found = arena.ranking(order.protocol, order.experiment, known, order.seeds)
    if order.ranks and found.entries:
        page, table = (out / f"{order.experiment.name}.{ending}" for ending in ("md", "csv"))
        used = [trial for trials in known.values() for trial in trials]
        told = arena_report.notes(found, order.experiment.rows)
        write_text(table, arena_report.as_frame(found, order.knowledge).to_csv(index=False))
        write_text(page, arena_report.page(found, order.knowledge, order.experiment, used, told))
        files = [page, table, *files]
    if files:
        click.echo(reproduction.wrote(files))
