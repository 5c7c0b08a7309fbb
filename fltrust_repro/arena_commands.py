"""The command `arena`: it runs what a ranking needs, and prints it."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click

from fltrust_repro import (
    arena,
    arena_page,
    arena_protocols,
    arena_report,
    fall,
    options,
    reproduction,
    sweep,
)
from fltrust_repro.archive import Archive
from fltrust_repro.arena import FEW, SEEDS
from fltrust_repro.arena_protocols import Protocol, Table, protocols, table_of
from fltrust_repro.errors import BadInput, DataUnavailable, choose, shown, wrong_in
from fltrust_repro.experiments import Cell, Fields
from fltrust_repro.files import check_name, check_writable, in_name, write_text
from fltrust_repro.processes import Machine
from fltrust_repro.settings import FIELDS, Setting
from fltrust_repro.standings import NO_ATTACK, Standings
from fltrust_repro.store import Failure, Store
from fltrust_repro.trial_commands import end
from fltrust_repro.trials import Trial
from fltrust_repro.words import counted

Words = tuple[str, ...]
Known = dict[Setting, list[Trial]]


@dataclass(frozen=True)
class Order:
    """What is asked for of a protocol."""

    table: Table
    rows: Words  # to run
    own: Mapping[str, Fields]  # of these, which the protocol does not have
    seeds: range
    part: bool  # of the protocol's columns

    @property
    def cells(self) -> list[Cell]:
        """The cells to run."""
        return [cell for cell in self.table.experiment.cells if cell.row in self.rows]

    @property
    def refused(self) -> dict[str, list[tuple[str, str]]]:
        """The rows to run and columns that cannot be together, by the reason."""
        return {
            why: own
            for why, places in self.table.refused.items()
            if (own := [place for place in places if place[0] in self.rows])
        }

    @property
    def is_whole(self) -> bool:
        """Whether the ranking is the protocol's, to be kept in files."""
        return not self.part and len(self.seeds) == len(SEEDS)


class Judged(NamedTuple):
    """What an order gave: the trials that failed, and the protocol where its data are missing."""

    failed: list[Failure]
    without_data: str


@click.command("arena")
@click.option("--protocol", "names", multiple=True, default=("P1",), show_default=True,
              metavar="P1|P2|...", help="By which rules are judged; repeatable.")  # fmt: skip
@click.option("--rule", "rule_names", multiple=True, metavar="NAME",
              help="Only this row, or any rule as a row of its own; repeatable.")  # fmt: skip
@click.option("--pre", multiple=True, metavar="NAME", help="Before each --rule; repeatable.")
@click.option("--attack", "columns", multiple=True, metavar="COLUMN",
              help="Only this column, or any attack as one; repeatable.")  # fmt: skip
@click.option("--knowledge", **options.once("full"), show_default=True, metavar="NAME",
              help="Or partial: another table.")  # fmt: skip
@click.option("--breakdown", is_flag=True, help="Search the smallest c that doubles the error.")
@click.option("--draw", is_flag=True, help="Run nothing; rank what is at hand.")
@click.option("--trials", default=len(SEEDS), show_default=True, metavar="N",
              callback=options.count("--trials", 1, len(SEEDS)),
              help="Seeds at most; fewer are a quick look, of which no file is made.")  # fmt: skip
@click.option("--html", "as_html", is_flag=True,
              help="Write OUT/arena.html too, a page of all rankings, and pictures.")  # fmt: skip
@options.place_options()
@options.out_option
def arena_command(
    names: Words, rule_names: Words, pre: Words, columns: Words, knowledge: str, breakdown: bool,
    draw: bool, trials: int, as_html: bool, machine: Machine, store_path: Path, out: Path,
) -> None:  # fmt: skip
    """Rank rules by their error under the worst attack.

    By a frozen protocol every rule meets every attack with 3 seeds, then the three attacks that are
    worst for it, and none, with 20. Trials in the store, in OUT, or published with the program are
    not run again. `arena --plugin my_rule.py --rule clipped-mean` places a rule of your own.
    """
    known = protocols()
    for name in names:
        if name not in known:
            raise BadInput(f"--protocol is {shown(name)}; {choose(name, known)}")
    if pre and not rule_names:
        raise BadInput("--pre is given without --rule; name the rule that it is before.")
    if knowledge not in (allowed := FIELDS["knowledge"].metadata["choices"]):
        raise BadInput(f"--knowledge is {shown(knowledge)}; {choose(knowledge, allowed)}")
    seeds, printed = SEEDS[:trials], arena_protocols.reported()
    asked = rule_names, "+".join(pre), columns, knowledge, seeds, printed
    orders = [_order(known[name], *asked) for name in dict.fromkeys(names)]
    check_writable(out)
    with (Archive if draw else Store)(store_path) as store:
        ended = [_judge(order, store, machine, out, breakdown) for order in orders]
        if as_html:
            rows = {order.table.protocol.name: order.own for order in orders}
            found = arena_page.at_hand(reproduction.everything(store, out), rows)
            if files := arena_page.write(*found, out):
                click.echo(reproduction.wrote(files))
    without_data = [each.without_data for each in ended if each.without_data]
    end([failure for each in ended for failure in each.failed], without_data)


def _order(
    protocol: Protocol, rule_names: Words, pre: str, columns: Words, knowledge: str, seeds: range,
    printed: Mapping[Setting, float],
) -> Order:  # fmt: skip
    asked = dict(protocol.row(rule, pre) for rule in rule_names)
    own = {row: fields for row, fields in asked.items() if row not in protocol.rows}
    table = table_of(protocol, knowledge, own, columns, printed)
    if own:  # whose results take no other's place
        name = "-".join([table.experiment.name, *map(in_name, own)])
        check_name("the name of the files", name)
        table = table._replace(experiment=dataclasses.replace(table.experiment, name=name))
    rows = tuple(asked) or table.experiment.rows
    order = Order(table, rows, own, seeds[:FEW] if columns else seeds, bool(columns))
    if all(cell.column == NO_ATTACK for cell in order.cells):
        why = next((f" ({wrong_in(one)})" for one in order.refused), "")
        wrong = f"in {table.name} none of these rules can meet any of these attacks{why}"
        raise BadInput(f"{wrong}; choose others.")
    return order


def _judge(order: Order, store: Archive, machine: Machine, out: Path, breakdown: bool) -> Judged:
    """Run what is missing, where the store is to be written; print the ranking, write its files."""
    experiment, failed, data = order.table.experiment, [], ""
    reproduction.prepared([experiment], store, machine, out)
    for line in arena_report.left_out(order.refused, len(order.rows)):
        click.echo(line, err=True)
    if isinstance(store, Store):
        _tell(order, _known(store, experiment.cells), breakdown)
        try:
            failed = _run(order, store, machine)
        except DataUnavailable as error:
            data = order.table.name
            click.echo(f"not run: {error}", err=True)
    known = _known(store, experiment.cells)
    able = machine if breakdown and not data else None
    searched, more = _search(order, store, able, out, known)
    found = arena.ranking(order.table, known, order.seeds)
    _show(order, found)
    kept = dataclasses.replace(experiment, cells=(*order.cells, *searched))
    files = reproduction.keep_trials(kept, store, out)
    if order.is_whole and found.entries:
        files = [*_write(order, found, known, out), *files]
    if files:
        click.echo(reproduction.wrote(files))
    _place(order, found)
    if isinstance(store, Store):  # last, when all that was found is kept
        _explain(order, found, known, machine)
    return Judged([*failed, *more], data)


def _known(store: Archive, cells: Iterable[Cell]) -> Known:
    return {cell.setting: store.find(cell.setting, SEEDS) for cell in cells}


def _tell(order: Order, known: Known, breakdown: bool) -> None:
    """Say before it starts what will be run and about how long that takes."""
    experiment = order.table.experiment
    left = arena.missing(order.cells, known, order.seeds)
    seconds = arena.seconds_of(experiment, known)
    time = reproduction.core_time(sum(n * seconds[cell.column] for cell, n in left.items()))
    rules, attacks = len(order.rows), len(experiment.columns) - 1
    told = f"{counted(rules, 'rule')} under {counted(attacks, 'attack')}"
    more = rules * arena.most_trials(order.cells[0].setting.workers)
    searched = f"; then at most {counted(more, 'trial')} for the breakdown" * breakdown
    to_run = f"{counted(sum(left.values()), 'trial')} to run{time}{searched}"
    click.echo(f"{order.table.name}: {told}, {to_run}", err=True)
    if not order.is_whole:
        few = counted(len(order.seeds), "seed")
        click.echo(f"Only a part of the protocol, at most {few}: no ranking is kept.", err=True)


def _run(order: Order, store: Store, machine: Machine) -> list[Failure]:
    """Run the few seeds everywhere, then all where they count."""
    few = order.seeds[:FEW]
    failed = sweep.run_missing(order.cells, few, store, machine).failed
    plan = arena.wanted(order.cells, _known(store, order.cells), order.seeds)
    refined = [cell for cell, seeds in plan.items() if len(seeds) > len(few)]
    if refined:
        failed += sweep.run_missing(refined, order.seeds, store, machine).failed
    return failed


def _search(
    order: Order, store: Archive, machine: Machine | None, out: Path, known: Known
) -> tuple[list[Cell], list[Failure]]:
    """Add to `known` the trials of each row's breakdown, run on a machine where one is given.

    Returns the cells of the rows to run that were asked for, and the trials that failed.
    """
    searched: list[Cell] = []
    failed: list[Failure] = []
    while asked := [
        cell
        for own in arena.rows_of(order.table.experiment.cells).values()
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
    """Print the ranking; of some rows, these and their neighbours."""
    every = len(order.table.protocol.columns) - 1
    part = f"; of {every} attacks these alone: {', '.join(found.columns[1:])}" * order.part
    click.echo(_wrapped(arena_report.heading(found) + part))
    near = order.rows if set(order.rows) < set(order.table.experiment.rows) else ()
    for name, entries in arena_report.groups(found).items():
        if not near or any(entry.row in near for entry in entries):
            click.echo(f"\n{name}\n{arena_report.table(entries, 'simple', near)}")
    told = arena_report.notes(found, order.rows, len(order.seeds))
    if not near and (left := arena_report.incomplete(found)):
        told.append(left)
    click.echo("".join(f"\n{_wrapped(line)}" for line in told))


def _place(order: Order, found: Standings) -> None:
    """Say where each row of one's own stands."""
    for entry in found.entries:
        if entry.row in order.own:
            click.echo(f"\n{_wrapped(arena_report.summary(entry, found))}")


def _explain(order: Order, found: Standings, known: Known, machine: Machine) -> None:
    """Say how the worst attack on each row of one's own went about it, for which it is replayed."""
    for entry in found.entries:
        cells = order.table.experiment.choose([entry.row])
        hurt = entry.row in order.own and entry.worst != NO_ATTACK
        if hurt and (pair := arena.pair(cells, known, entry.worst)):
            click.echo(fall.explain(*pair, machine.data_dir))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 80, subsequent_indent="  ", break_on_hyphens=False)


def _write(order: Order, found: Standings, known: Known, out: Path) -> list[Path]:
    """Write the ranking as a page and as CSV."""
    experiment = order.table.experiment
    page, table = (out / f"{experiment.name}.{ending}" for ending in ("md", "csv"))
    told = arena_report.notes(found, experiment.rows, len(order.seeds))
    used = _used(experiment.cells, found, known)
    write_text(table, arena_report.as_frame(found).to_csv(index=False, float_format="%.4g"))
    write_text(page, arena_report.page(found, experiment.command, used, told))
    return [page, table]


def _used(cells: Iterable[Cell], found: Standings, known: Known) -> list[Trial]:
    """The trials that the ranking counts, and those of breakdowns."""
    errors = found.errors()
    seeds = {cell.setting: errors.get((cell.row, cell.column), ()) for cell in cells}
    return [
        trial
        for setting, trials in known.items()
        for trial in trials
        if trial.seed in seeds.get(setting, SEEDS)
    ]
