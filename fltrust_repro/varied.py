"""What figures vary: any number of a setting, or a parameter of a rule's or an attack's own.

    --vary c --values 5..30          --vary learning-rate --values 0.01..1
    --vary c --values 0%:40%:10%     --vary multi-krum:q --values 20,50,80

What neither the rule nor the attack of a line reads is not varied for it: it is one setting. Only
c is varied in every line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.defenses import defenses
from fltrust_repro.errors import BadInput, choose, shown
from fltrust_repro.parameters import name_with, own_parameters, takes_whole
from fltrust_repro.preaggregations import preaggregations, steps_of
from fltrust_repro.registry import is_built_in
from fltrust_repro.settings import FIELDS, Setting

Fields = Mapping[str, Any]
_COUNTS = ("compromised", "beta", "selected")  # of workers
_SHARES = ("non_iid", "poisoned_fraction", "poisoned_share", "root_bias")


@dataclass(frozen=True)
class Varied:
    """A parameter that figures vary: its name, axis, setting field, the paper's values, assumed."""

    name: str
    label: str
    field: str
    values: tuple[float, ...] = ()

    def fields(self, value: Any, row: Fields) -> dict[str, Any]:
        """Return what a row's setting has at one of the values.

        Where no worker is compromised nobody attacks, unless a single one is all there are.
        """
        if self.name == "m":
            return {"workers": value, "compromised": value // 5}
        nobody = self.field == "compromised" and value == 0 and row.get("workers") != 1
        return {self.field: value, **({"attack": "none"} if nobody else {})}

    def decides(self, field: str, _given: Any) -> bool:
        """Whether it takes the place of what is given for a field."""
        return field in self.fields(1, {})

    @property
    def instead(self) -> str:
        """What to do where it decides what is given too."""
        return "leave it out"

    def hundred(self, workers: int | None) -> int | None:
        """What 100% of it are: these workers, 1, or not known."""
        return workers if self.field in _COUNTS else 1 if self.field in _SHARES else None

    @property
    def is_whole(self) -> bool:
        """Whether all its values are whole numbers."""
        return self.field in FIELDS and FIELDS[self.field].type.startswith("int")

    def is_read_by(self, setting: Setting) -> bool:
        """Whether a trial of the setting can depend on it."""
        return _reads(setting, self.field)


class OwnParameter(Varied):
    """A parameter of a rule's, an attack's or a pre-aggregation's own: `multi-krum:q`."""

    @property
    def is_whole(self) -> bool:
        """Whether all its values are whole numbers."""
        owner, _, parameter = self.name.partition(":")
        functions = _functions_of(owner).values()
        return any(takes_whole(one, parameter) for one in functions)

    def fields(self, value: Any, row: Fields) -> dict[str, Any]:
        """Return what a row's setting has at one of the values: nothing where none has it."""
        owner, _, parameter = self.name.partition(":")
        told = {}
        for kind in _owned(owner, parameter):
            before = _steps(row.get(kind))
            steps = [
                (name, {**own, parameter: value} if name == owner else own) for name, own in before
            ]
            if steps != before:
                told[kind] = "+".join(name_with(*step) for step in steps)
        return told

    def decides(self, field: str, given: Any) -> bool:
        """Whether it is given already, with a name of the field."""
        owner, _, parameter = self.name.partition(":")
        names = given if isinstance(given, tuple) else (given,)
        steps = [step for name in names for step in _steps(name)]
        return field in _owned(owner, parameter) and any(
            name == owner and parameter in own for name, own in steps
        )

    @property
    def instead(self) -> str:
        """What to do where it decides what is given too."""
        owner, _, parameter = self.name.partition(":")
        return f"write {owner} without {parameter}"

    def is_read_by(self, setting: Setting) -> bool:
        """Whether something of the setting has it."""
        return bool(self.fields(None, setting.as_dict()))


def _steps(names: Any) -> list[tuple[str, dict[str, Any]]]:
    """The entries of `nnm+clip:radius=2`, each with what is chosen of its own parameters."""
    found = []
    for text in steps_of(str(names or "")):
        name, _, chosen = text.partition(":")
        parts = (part.partition("=") for part in chosen.split(",") if part)
        found.append((name, {key.strip(): value for key, _, value in parts}))
    return found


def _functions_of(owner: str) -> dict[str, Callable[..., Any]]:
    """The functions of what has the name, by the field of a setting where it stands."""
    entries: dict[str, Callable[..., Any] | None] = {
        "rule": rules[owner].function if owner in rules else None,
        "attack": attacks[owner].craft if owner in attacks else None,
        "pre": preaggregations[owner].function if owner in preaggregations else None,
    }
    return {field: one for field, one in entries.items() if one}


def _own_of(owner: str) -> dict[str, dict[str, Any]]:
    """The own parameters of what has the name, by the field of a setting where it stands."""
    return {field: own_parameters(one) for field, one in _functions_of(owner).items()}


def _owned(owner: str, parameter: str) -> list[str]:
    """In which fields of a setting an entry of the name has the parameter."""
    return [field for field, known in _own_of(owner).items() if parameter in known]


def _numbers_of_a_setting() -> Iterator[Varied]:
    paper = {
        "m": ("number of worker devices m (c = m / 5)", "workers", (25, 50, 75, 100, 150)),
        "c": ("compromised worker devices c", "compromised", (5, 10, 15, 20, 25, 30)),
        "p": ("degree of non-IID p", "non_iid", (0.1, 0.3, 0.5, 0.7, 0.9)),
        "beta": ("trimmed values per side beta", "beta", (20, 25, 30, 35, 40, 45)),
        "epsilon": ("epsilon of the Krum attack", "epsilon", (0.01, 0.05, 0.1, 0.5, 1.0, 2.0)),
        "rounds": ("rounds of local SGD", "rounds", (1, 2, 3, 5, 10)),
        "selected": ("worker devices selected per iteration", "selected", (20, 40, 60, 80, 100)),
        "poisoned-fraction": (
            "fraction of poisoned iterations", "poisoned_fraction", (0.0, 0.25, 0.5, 0.75, 1.0),
        ),
    }  # fmt: skip
    for name, told in paper.items():
        yield Varied(name, *told)
    known = {field for name, (_, field, _) in paper.items() if name != "m"}
    for field in FIELDS.values():
        if field.type.startswith(("int", "float")) and field.name not in known:
            yield Varied(field.name.replace("_", "-"), field.name.replace("_", " "), field.name)


VARIED = {one.name: one for one in _numbers_of_a_setting()}
_BY_FIELD = {one.field.replace("_", "-"): one for one in VARIED.values() if one.name != "m"}


def varied(name: str) -> Varied:
    """Return what a name stands for; `BadInput` where nothing of this name can be varied."""
    owner, colon, parameter = name.partition(":")
    if colon and _owned(owner, parameter):
        return OwnParameter(name, name, "")
    if colon and (known := [*chain(*_own_of(owner).values())]):
        told = f"{owner} has no parameter {shown(parameter)}; {choose(parameter, known)}"
        raise BadInput(f"vary is {shown(name)}, but {told}")
    typed = name.replace("_", "-")
    if typed not in VARIED and typed not in _BY_FIELD:
        own = "a parameter of a rule's or an attack's own is NAME:PARAMETER, as multi-krum:q"
        raise BadInput(f"vary is {shown(name)}; {choose(name, VARIED)} And {own}.")
    return VARIED.get(typed) or _BY_FIELD[typed]


# ---- who reads it -------------------------------------------------------------------------------

# The Krum attack, that on the trimmed mean, and the built-in attacks that try or begin with them.
_TAILORED = ("tailored", "tailored-persistent", "tailored-pull")
_KRUM = ("krum", *_TAILORED)
_TRIMMED_MEAN = ("trimmed-mean", "fltrust-adaptive", *_TAILORED)


def _reads(setting: Setting, field: str) -> bool:
    """Whether a trial can depend on a field; of a plug-in's attack or defense anything can."""
    attack, asked = attacks[setting.attack], {*setting.at_master.rule.parameters}
    name, defense = attack.name.partition(":")[0], defenses[setting.defense]
    codes = attack.craft, attack.poison, attack.inject, defense.function
    if _is_dropped(setting, field):
        return False
    if any(code is not None and not is_built_in(code) for code in codes):
        return True
    if field == "epsilon":
        return name in _KRUM
    if field == "b":
        return name in _TRIMMED_MEAN and setting.knowledge != "partial"
    if field == "beta":
        return "beta" in asked or (name in _TRIMMED_MEAN and setting.goal == "deviation")
    return field != "poisoned_share" or attack.inject is not None


def _is_dropped(setting: Setting, field: str) -> bool:
    """Whether a setting itself has the default of a field, since it changes nothing."""
    if field == "non_iid":
        return setting.readings.dealing in ("sorted", "natural")
    if field in ("root_size", "root_bias"):
        return not setting.root_data
    return setting.attack == "none" and FIELDS[field].metadata["attackers"]


# ---- its values ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A parameter with the values that it is given."""

    varied: Varied
    values: tuple[float, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Each value in as few digits, at least six, as tell them apart."""
        rounded = ([f"{value:.{n}g}" for value in self.values] for n in range(6, 18))
        apart = (texts for texts in rounded if len({*texts}) == len(texts))
        return tuple(next(apart, map(repr, self.values)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Each value as a table names it."""
        return tuple(f"{self.varied.name} = {label}" for label in self.labels)


def axis(name: str, values: Sequence[float] | None = None) -> Axis:
    """Return a parameter with these values, or the paper's; `BadInput` for wrong ones."""
    one = varied(name)
    points = tuple(one.values if values is None else values)
    if values is None and not points:
        raise BadInput(f"the paper has no values of {name}; give some, as --values 1,2,5.")
    if not all(map(is_number, points)) or len({*points}) < max(len(points), 1):
        allowed = "at least one number, each finite and none twice"
        raise BadInput(f"values are {shown(list(points))}; give {allowed}.")
    return Axis(one, tuple(sorted(points)))


def is_number(value: Any) -> bool:
    """Whether a value of a file or command line is a finite number that a float can hold."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def setting_at(row: Fields, point: Mapping[Axis, float]) -> Setting:
    """Return a row's setting at values of parameters, without those that nothing of it reads.

    These keep what the row has, or else the first value that it can have. Raises `BadInput`, where
    the values are beyond a limit of the row's rule or attack as `BeyondLimit`.
    """
    setting = _made(row, point)
    for one in point:
        if not one.varied.is_read_by(setting):
            others = {other: value for other, value in point.items() if other != one}
            choices = [others, *({**others, one: value} for value in one.values)]
            point = next(choice for choice in choices if _can_be(row, choice))
    return _made(row, point)


def _made(row: Fields, point: Mapping[Axis, float]) -> Setting:
    told = dict(row)
    for one, value in point.items():
        told.update(one.varied.fields(value, told))
    return Setting.from_dict(told)


def _can_be(row: Fields, point: Mapping[Axis, float]) -> bool:
    try:
        _made(row, point)
    except BadInput:
        return False
    return True


# ---- what a reader should know of the points ----------------------------------------------------


def left_out(
    groups: Mapping[str, Sequence[str]], refused: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Say of rows at which columns they have no setting; `refused` says why.

    `groups` name rows that belong together: one name stands for them where all are the same.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for unit, row in _units(groups, lambda row: tuple(refused.get(row, ()))):
        if reasons := refused.get(row):
            first, *others = reasons  # c = 25, 30
            columns = ", ".join([first, *(other.rpartition(" = ")[2] for other in others)])
            alike.setdefault((columns, reasons[first]), []).append(unit)
    return [f"Left out: {'; '.join(n)} at {columns}: {why}" for (columns, why), n in alike.items()]


def level(
    axes: Sequence[Axis],
    groups: Mapping[str, Sequence[str]],
    settings: Mapping[str, Sequence[Setting]],
) -> list[str]:
    """Say in which rows nothing reads a parameter, and what all are at c = 0."""
    told = []
    if any(0 in axis.values and axis.varied.field == "compromised" for axis in axes):
        told.append("At c = 0 no worker is compromised, and nobody attacks.")
    for one in (axis.varied for axis in axes if len(axis.values) > 1):
        unread = {row for row, some in settings.items() if not any(map(one.is_read_by, some))}
        if rows := [unit for unit, row in _units(groups, unread.__contains__) if row in unread]:
            told.append(f"Nothing reads {one.name} in {'; '.join(rows)}: it is not varied there.")
    return told


def _units(
    groups: Mapping[str, Sequence[str]], told: Callable[[str], Any]
) -> Iterator[tuple[str, str]]:
    """Names with a row each: a group's where the same is told of all its rows, else the rows'."""
    for name, rows in groups.items():
        together = len({told(row) for row in rows}) == 1
        yield from [(name, rows[0])] if together else zip(rows, rows)
