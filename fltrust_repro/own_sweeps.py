"""A figure of one's own from what is typed: its axes, panels, lines, title and name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.errors import BadInput, choose, shown
from fltrust_repro.experiments import Experiment, figure_of, grid_of
from fltrust_repro.files import in_name
from fltrust_repro.ranges import values_of
from fltrust_repro.settings import FIELDS
from fltrust_repro.varied import Axis, OwnParameter, Varied, axis, varied

_FIGURE_2 = {
    "no attack": {"attack": "none"},
    "gaussian": {"attack": "gaussian"},
    "label-flip": {"attack": "label-flip"},
    "partial": {"knowledge": "partial"},
    "full": {"knowledge": "full"},
}
_SEEN = ("values", "rule_names", "attack_names", "knowledges")  # in the picture itself


def axes_of(names: Sequence[str], values: Sequence[str], workers: int) -> list[Axis]:
    """Return what is varied: one parameter or two, with `values` as they are typed for each.

    Raises `BadInput` for more, for two that decide the same, and for wrong values.
    """
    if len(names) > 2:
        raise BadInput(f"--vary is given {len(names)} times; vary one parameter, or two.")
    if len(values) > len(names):
        told = f"--values is given {len(values)} times, --vary {len(names)}"
        raise BadInput(f"{told}; give each --vary its --values, in the same order.")
    every = [varied(name) for name in names]
    if len(every) == 2 and _overlap(*every):
        told = f"--vary {names[0]} and --vary {names[1]} decide the same"
        raise BadInput(f"{told}; vary one of them, or another parameter.")
    hundred = None if any(one.field == "workers" for one in every) else workers
    typed = [
        values_of(text, one.name, one.is_whole, one.hundred(hundred))
        for one, text in zip(every, values)
    ]
    return [axis(one.name, some) for one, some in zip_longest(every, typed)]


def _overlap(first: Varied, second: Varied) -> bool:
    return first == second or any(second.decides(field, ()) for field in first.fields(1, {}))


def arranged(
    axes: Sequence[Axis],
    rule_names: Sequence[str],
    attack_names: Sequence[str],
    knowledges: Sequence[str],
    setting: Mapping[str, Any],
    others: Mapping[str, Any],
    command: str,
) -> Experiment:
    """Arrange a panel per rule and a line per attack over one axis, or a heat map each over two.

    `others` is what was typed beside the axes, the data set and the model: it stands in the title,
    and makes another name, so that no two sweeps have the same files. Raises `BadInput`.
    """
    panels = {name: {"rule": rules[name].name, "attack": _made_for(name)} for name in rule_names}
    lines = _attack_lines(attack_names, knowledges)
    names = [one.varied.name for one in axes]
    words = ["sweep", *names, setting["dataset"], setting["model"]]
    name = in_name("-".join(words))
    alone = [*panels] if len(panels) == 1 else []  # else each panel has its name
    varied_by = f"{' and '.join(names)} varied"
    title = ", ".join([*alone, f"{setting['model']} on {setting['dataset']}", varied_by])
    title = "; ".join(filter(None, [title, ", ".join(_told(others))]))
    if len(axes) == 1:
        points = names[0], axes[0].values
        made = figure_of(name, command, title, setting, panels, lines, *points)
    else:
        made = grid_of(name, command, title, setting, panels, lines, *axes)
    for one in axes:
        if isinstance(one.varied, OwnParameter) and not any(
            map(one.varied.is_read_by, made.settings)
        ):
            wrong = f"no rule or attack of the sweep has {one.varied.name}"
            raise BadInput(f"{wrong}; name one that has it by --rule, --attack or --pre.")
    return replace(made, name=f"{name}-{_digest(made)}") if others else made


def _told(others: Mapping[str, Any]) -> list[str]:
    """What was typed and cannot be seen in the picture."""
    told = []
    for field, value in others.items():
        if field not in _SEEN:
            text = ", ".join(map(str, value if isinstance(value, tuple) else (value,)))
            told.append(f"{field.replace('_', '-')} {text}")
    return told


def _digest(made: Experiment) -> str:
    """A few letters that tell a sweep from others of its name."""
    cells = [[cell.row, cell.column, cell.setting.as_dict()] for cell in made.cells]
    return hashlib.sha256(json.dumps([made.columns, cells]).encode()).hexdigest()[:6]


def _made_for(rule: str) -> str:
    """The attack that is made for a rule; for all others that for the trimmed mean (3.3)."""
    name = rule.partition(":")[0]
    return next((key for key, one in attacks.items() if name in one.against), "trimmed-mean")


def _attack_lines(names: Sequence[str], knowledges: Sequence[str]) -> dict[str, dict[str, Any]]:
    allowed = FIELDS["knowledge"].metadata["choices"]
    for knowledge in set(knowledges) - set(allowed):
        raise BadInput(f"knowledge is {shown(knowledge)}; {choose(knowledge, allowed)}")
    if not names:
        told = (*knowledges, None)
        return {name: line for name, line in _FIGURE_2.items() if line.get("knowledge") in told}
    return {
        f"{name}, {knowledge}" if knowledge else name: {"attack": name, "knowledge": knowledge}
        for name in names
        for knowledge in (knowledges if attacks[name].has_knowledge else (None,))
    }
