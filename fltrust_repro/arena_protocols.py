"""The arena's frozen protocols: which rules meet which attacks in what setting.

Rows are rules, columns attacks; a protocol's cells are the settings of both. Rows and columns of a
user's own stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.errors import BadInput, choose, shown
from fltrust_repro.experiment_files import read
from fltrust_repro.experiments import Cell, Experiment, home, readable
from fltrust_repro.preaggregations import behind, steps_of
from fltrust_repro.server import of_root_data
from fltrust_repro.settings import Setting
from fltrust_repro.standings import NO_ATTACK
from fltrust_repro.varied import Fields

ROOT_EXAMPLES = 100  # of the server's own, for a rule that asks for them


@dataclass(frozen=True)
class Protocol:
    """What rules are judged by; two versions of one are never in one ranking."""

    name: str
    version: int
    title: str
    seconds: float  # of one trial on one CPU core, where none is known
    setting: Fields
    rows: Mapping[str, Fields]
    columns: Mapping[str, Fields]

    def row(self, rule: str, pre: str = "") -> tuple[str, Fields]:
        """Return the name and the fields of a row, or of one to be made of any registered rule.

        Raises `BadInput` where there is neither.
        """
        pre = "+".join(steps_of(pre))
        if rule in self.rows and not pre:
            return rule, self.rows[rule]
        if rule in self.rows and rule not in rules:
            what = f"{shown(rule)} is a row of {self.name} and no rule, which --pre comes before"
            raise BadInput(f"{what}; leave --pre out, or {choose(rule, rules)}")
        if rule not in rules:
            wrong = f"{self.name} has no row {shown(rule)}, and there is no such rule"
            raise BadInput(f"{wrong}; {choose(rule, dict.fromkeys([*self.rows, *rules]))}")
        made = behind(pre, rules[rule])
        if made.name in self.rows:
            return made.name, self.rows[made.name]
        root = {"root_size": ROOT_EXAMPLES} if of_root_data(made.parameters) else {}
        return made.name, {"rule": rule, "pre": pre, **root}


def protocols() -> dict[str, Protocol]:
    """Return the protocols of experiments/arena.toml by name."""
    content = read(home() / "arena.toml")
    shared = {part: content[part] for part in ("rows", "columns")}
    return {name: Protocol(name, **own, **shared) for name, own in content["protocols"].items()}


class Table(NamedTuple):
    """A protocol's cells, and why others are left out: rows and columns by the reason."""

    protocol: Protocol
    name: str  # "P1", with partial knowledge "P1 partial"
    experiment: Experiment
    refused: dict[str, list[tuple[str, str]]]


def table_of(
    protocol: Protocol,
    knowledge: str = "full",
    rows: Mapping[str, Fields] | None = None,
    columns: Sequence[str] = (),
    printed: Mapping[Setting, float] | None = None,
) -> Table:
    """Arrange a protocol's rows, and those of one's own, under its columns, or some and no attack.

    Some are columns of the protocol or any attack's name. With partial knowledge, the columns are
    those whose attack it makes a difference to. A cell that a limit of its rule or attack forbids
    is left out; so is, unless its column is named, an attack on what the server trains itself,
    where it has no examples. `BadInput` for a column that is neither, and for a row of one's own
    that no column allows. `printed` is what `reported` returns.
    """
    told = _columns(protocol, knowledge, columns)
    asking = {name for name, fields in told.items() if _asks(fields["attack"])} - {*columns}
    every, cells = {**protocol.rows, **(rows or {})}, []
    refused: dict[str, list[tuple[str, str]]] = {}
    for row, own in every.items():
        for column, fields in told.items():
            if column in asking and not own.get("root_size"):
                continue
            try:
                setting = Setting.from_dict({**protocol.setting, **own, **fields})
            except BadInput as error:
                refused.setdefault(str(error), []).append((row, column))
            else:
                cells.append(Cell(row, column, setting, (printed or {}).get(setting)))
        if row in (rows or {}) and not any(cell.row == row for cell in cells):
            raise BadInput(
                next(why for why, places in refused.items() if (row, NO_ATTACK) in places)
            )
    name = f"{protocol.name} {knowledge}".removesuffix(" full")
    experiment = Experiment(
        f"arena-{name.lower().replace(' ', '-')}",
        f"arena --protocol {protocol.name}" + f" --knowledge {knowledge}" * (name != protocol.name),
        protocol.title, tuple(every), tuple(told), tuple(cells), seconds=protocol.seconds,
        packed=True,
    )  # fmt: skip
    return Table(protocol, name, experiment, refused)


def _columns(protocol: Protocol, knowledge: str, some: Sequence[str]) -> dict[str, Fields]:
    """The columns of a table, all or no attack and some, with what each has settings have."""
    own = {name: {"attack": name} for name in some if name not in protocol.columns}
    known = dict.fromkeys([*protocol.columns, *attacks])
    del known["none"]  # which NO_ATTACK is
    for name in own:
        if name not in attacks or name == "none":
            wrong = f"{protocol.name} has no column {shown(name)}, and there is no such attack"
            raise BadInput(f"{wrong}; {choose(name, known)}")
    every = {
        name: {**fields, "knowledge": knowledge}
        for name, fields in {**protocol.columns, **own}.items()
        if name == NO_ATTACK or _differs(fields["attack"], knowledge)
    }
    for name in some:
        if name not in every:
            same = f"column {shown(name)} is the same with {knowledge} knowledge"
            raise BadInput(f"{same}; leave --knowledge out, or the column.")
    if {*some} == {NO_ATTACK}:
        raise BadInput(f"{NO_ATTACK} alone ranks nothing; give the column of an attack too.")
    return {name: every[name] for name in every if name in {NO_ATTACK, *(some or every)}}


def _differs(attack: str, knowledge: str) -> bool:
    """Whether an attack belongs into the table; one that is not known, to be named there."""
    return knowledge == "full" or attack not in attacks or attacks[attack].has_knowledge


def _asks(attack: str) -> bool:
    """Whether an attack asks for the server's own update."""
    return attack in attacks and bool(attacks[attack].asks)


@cache
def reported() -> Mapping[Setting, float]:
    """Return the values that papers print in the experiments at hand, by setting."""
    cells = [cell for experiment in readable() for cell in experiment.cells]
    return {cell.setting: cell.paper for cell in reversed(cells) if cell.paper is not None}
