"""Setting: one full parameter combination (Table 1, Section 4.1), and `Readings` of the paper.

Each field's sentence is also the help text of its command-line option, and its choices are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.datasets import DEALINGS, data_digest, datasets
from fltrust_repro.defenses import defenses
from fltrust_repro.errors import BadInput, BeyondLimit, choose, shown
from fltrust_repro.models import models
from fltrust_repro.parameters import words_of
from fltrust_repro.preaggregations import behind, preaggregations, steps_of
from fltrust_repro.registry import Registry
from fltrust_repro.server import lacks_root_data, of_root_data
from fltrust_repro.threat import CHOICES, Master, Parameters

# The default of a field when trials were first stored, or before it was a choice, where it is
# another now: what a stored setting that does not name the field means, and what names leave out.
FORMERLY: dict[str, Any] = {}

MOST = 1_000_000
MOST_EXAMPLES = 100_000_000  # drawn in one iteration, all workers together


def _field(default: Any, text: str, *others: str, attackers: bool = False) -> Any:
    """A field, its help text, and what else may be chosen."""
    choices = tuple(filter(None, (default, *others))) if others else ()
    metadata = {"help": text, "choices": choices, "attackers": attackers}
    return dataclasses.field(default=default, metadata=metadata)


def _attackers(name: str, text: str) -> Any:
    """A field that only an attacker reads, with the default and choices of its parameter."""
    others = CHOICES.get(name, ())[1:]
    return _field(getattr(Parameters, name), text, *others, attackers=True)


@dataclass(frozen=True)
class Readings:
    """What the paper leaves open; the defaults fit its tables (experiments/README.md).

    `dealing` None is the data set's own.
    """

    direction: str = _attackers("direction", "of this update s is the sign")
    worker_order: str = _field("shuffled", "whose first c attack", "grouped")
    attacker_assumes: str = _attackers("attacker_assumes", "bad models in its Krum")
    base: str = _attackers("base", "the Krum attack's start")
    interval_space: str = _attackers("interval_space", "of [w_max, b w_max]")
    search: str = _attackers("search", "for the Krum attack's lambda")
    dealing: str | None = _field(None, "", *DEALINGS)
    master_assumes: str = _field("c", "compromised, after a defense", "zero")
    initial: str = _field("xavier-3", "", "xavier-2.24", "xavier-1", "uniform-0.07")
    batches: str = _field("distinct", "", "with-replacement")
    gradient: str = _field("mean", "", "sum")  # over a batch

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class Setting:
    """All that decides a trial's numbers but the seed; a wrong value raises `BadInput`.

    Fields left None take the paper's default for the data set, the model or c.

    >>> import fltrust_repro as fl
    >>> fl.Setting(attack="krum", readings=fl.Readings(direction="rule")).iterations
    500
    """

    dataset: str = _field("mnist", "Data set.")
    model: str = _field("lr", "Classifier.")
    rule: str = _field("krum", "Aggregation rule.")
    pre: str = _field("", "Before the rule, repeatable.")
    attack: str = _field("none", "What the compromised workers do.")
    knowledge: str | None = _field("full", "What the attacker knows", "partial")
    defense: str = _field("none", "What is removed before the rule.")
    workers: int = _field(100, "Workers, m.")
    compromised: int = _field(20, "Compromised among them, c.")
    non_iid: float = _field(0.5, "Degree of non-IID, p.")
    beta: int = _field(None, "Values that trimmed mean cuts off at each end; default c.")
    epsilon: float = _attackers("epsilon", "Largest distance of crafted models.")
    b: float = _attackers("b", "Interval of the trimmed mean attack, above 1.")
    iterations: int = _field(None, "Iterations; default the model's.")
    batch_size: int = _field(None, "Examples per batch; default the data set's.")
    learning_rate: float = _field(None, "alpha on the mean loss; default the data set's.")
    rounds: int = _field(1, "Local rounds of SGD per iteration.")
    momentum: float = _field(0.0, "Of each worker's updates, 0 to 1.")
    selected: int = _field(None, "Workers selected per iteration; default all.")
    root_size: int = _field(0, "The server's own examples (FLTrust).")
    root_bias: float = _field(None, "Share of class 1 in these; default at random.")
    poisoned_fraction: float = _field(1.0, "Share of iterations attacked.", attackers=True)
    goal: str = _attackers("goal", "What is maximised")
    poisoned_share: float = _field(0.04, "Share of examples poisoned (4.4).", attackers=True)
    distribution: str = _field("uniform", "Holders of these", "single-worker", attackers=True)
    readings: Readings = dataclasses.field(default_factory=Readings)

    def __post_init__(self) -> None:
        _check_fields(self)
        data, model, _ = datasets[self.dataset], models[self.model], rules[self.rule]
        attack, _ = attacks[self.attack], defenses[self.defense]
        named = ("rule", "pre", "attack")
        self._put({name: canonical_name(name, getattr(self, name)) for name in named})
        defaults = {
            "knowledge": "full",
            "beta": self.compromised,
            "iterations": model.iterations,
            "batch_size": data.batch_size,
            "learning_rate": data.learning_rate(self.model),
            "selected": self.workers,
            "dealing": data.dealing,
        }
        given = self.as_dict()
        self._put({name: value for name, value in defaults.items() if given[name] is None})
        if not attack.has_knowledge:
            self._put({"knowledge": None})
        self._check_ranges()
        self._check_limits()
        # What changes nothing takes its default.
        if attack.name == "none":
            self._put({n: f.default for n, f in FIELDS.items() if f.metadata["attackers"]})
        if self.readings.dealing in ("sorted", "natural"):
            self._put({"non_iid": FIELDS["non_iid"].default})
        if self.defense == "none" or "c" not in self.at_master.rule.parameters:
            self._put({"master_assumes": FIELDS["master_assumes"].default})
        if not self.root_data:
            self._put({name: FIELDS[name].default for name in ("root_size", "root_bias")})

    def _put(self, values: Mapping[str, Any]) -> None:
        """Set fields, as only the making of a setting may."""
        own, readings = _parted(values)
        if any(getattr(self.readings, name) != value for name, value in readings.items()):
            own["readings"] = dataclasses.replace(self.readings, **readings)
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def at_master(self) -> Master:
        """What it has in one iteration: its rule, and m, c and beta of the workers selected."""
        counts = self.compromised, self.beta
        c, beta = (math.ceil(count * self.selected / self.workers) for count in counts)
        return Master(self.selected, c, beta, behind(self.pre, rules[self.rule]))

    @property
    def numbered(self) -> bool:
        """Whether a user's own code looks at updates at the master device (`Numbering`)."""
        kinds = rules.kind, preaggregations.kind, defenses.kind
        return any(one.owner(name) for one, name in self.registered if one.kind in kinds)

    @property
    def root_data(self) -> tuple[str, ...]:
        """What the rule or the attack asks for that takes examples of the server's own."""
        return of_root_data({*self.at_master.rule.parameters, *attacks[self.attack].asks})

    def parameters(self) -> Parameters:
        """What the attacker chooses."""
        values = self.as_dict()
        return Parameters(**{one.name: values[one.name] for one in dataclasses.fields(Parameters)})

    @property
    def c_left(self) -> int:
        """The c that the rule takes when it aggregates what the defense has left over."""
        return 0 if self.readings.master_assumes == "zero" else self.at_master.c

    def _check_ranges(self) -> None:
        m, c, beta = self.workers, self.compromised, self.beta
        # A single worker that holds poisoned examples is centralized learning (4.4).
        alone = m == 1 and attacks[self.attack].inject is not None
        least_c = 0 if self.attack == "none" or alone else 1
        each = self.selected * self.rounds * self.batch_size
        compares = defenses[self.defense].most > 0  # what is made of updates with and without one
        counts = ("workers", "iterations", "batch_size", "rounds")
        below_half = f"at least {least_c} and less than half of the {m} workers, as 2.3 assumes"
        examples = f"at most {MOST_EXAMPLES:,} examples an iteration"
        given = {**vars(self), "selected x rounds x batch_size": each}
        for name, holds, allowed in (
            *((n, 1 <= given[n] <= MOST, f"at least 1 and at most {MOST:,}") for n in counts),
            ("compromised", least_c <= c and 2 * c < m, below_half),
            ("selected", 1 <= self.selected <= m, f"in [1, m], m = {m}"),
            ("selected", self.selected > 1 or not compares, "at least 2 with a defense"),
            ("selected x rounds x batch_size", each <= MOST_EXAMPLES, examples),
            ("poisoned_fraction", 0 <= self.poisoned_fraction <= 1, "in [0, 1]"),
            ("poisoned_share", 0 < self.poisoned_share <= 1, "in (0, 1]"),
            ("beta", beta >= 0 and 2 * beta < m, f"in [0, m/2), m = {m}"),
            ("non_iid", 0 < self.non_iid <= 1, "in (0, 1]"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and less than 1"),
            ("root_size", 0 <= self.root_size <= MOST, f"at least 0 and at most {MOST:,}"),
            ("root_bias", 0 <= (self.root_bias or 0) <= 1, "in [0, 1]"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a finite number above 0"),
        ):
            if not holds:
                raise BadInput(f"{name} is {shown(given[name])}; it must be {allowed}.")
        self.parameters()  # checks its own

    def _check_limits(self) -> None:
        attack, defense, master = attacks[self.attack], defenses[self.defense], self.at_master
        m, c, beta, rule = master.m, master.c, master.beta, master.rule
        if self.rule == "trimmed-mean" and self.beta < self.compromised:
            at_least = f"at least c = {self.compromised} for trimmed mean (2.2: c <= beta < m/2)"
            raise BeyondLimit(f"beta is {shown(self.beta)}; it must be {at_least}.")
        if defense.most * c >= m:
            most = f"of the {m} workers that take part with c = {c}, {defense.name!r} may remove"
            raise BeyondLimit(f"{most} {defense.most * c}; select more, or compromise fewer.")
        bases = [behind(self.pre, rules[one]) for one in words_of(self.rule) if one in rules]
        for one in [rule, *bases]:
            if one.limit is None:
                continue
            one.limit.check(f"rule {one.name!r}", m, c, beta)
            if defense.most > 0:
                after = f"rule {one.name!r} after defense {defense.name!r}"
                one.limit.check(after, m - defense.most * c, self.c_left, beta)
                one.limit.check(f"{one.name!r}, asked by {defense.name!r},", m - 1, c, beta)
        if attack.limit is not None:
            attack.limit.check(f"attack {attack.name!r}", m, c, beta)
        if self.root_data and self.root_size == 0:
            by_rule = of_root_data(rule.parameters)
            user = f"rule {rule.name!r}" if by_rule else f"attack {attack.name!r}"
            raise lacks_root_data(user, self.root_data[0], "use --root-size 100 (root_size)")
        attack.check_goal(self.goal, self.knowledge)

    def without_attack(self) -> Setting:
        """Return what an attacked one is compared with; root data are for rules alone."""
        return dataclasses.replace(self, attack="none")

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, the readings among them, defaults filled in."""
        values = {**vars(self), **vars(self.readings)}
        return {name: values[name] for name in FIELDS}

    def key(self) -> str:
        """Return a stable name of the setting, whatever the order or spelling-out of its fields.

        Fields are left out that have the default they were introduced with, so that neither a later
        field nor a later default renames the settings there were.
        """
        return _key_of(self)

    @property
    def registered(self) -> list[tuple[Registry[Any], str]]:
        """Each registered name of the setting, with its registry."""
        steps = steps_of(self.pre)
        told = [word for one in (self.rule, self.attack, *steps) for word in words_of(one)]
        return [
            (datasets, self.dataset), (models, self.model), (attacks, self.attack),
            (defenses, self.defense), *((preaggregations, one) for one in steps),
            *((rules, one) for one in [self.rule, *told] if one in rules),  # gas:base=my-rule
        ]  # fmt: skip

    def plugin_key(self) -> str:
        """Hash of the plug-ins that registered the setting's names, and of their data; or empty."""
        digests = {registry.digest(name) for registry, name in self.registered}
        digests.add(data_digest(self.dataset))
        return "+".join(sorted(filter(None, digests)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Setting:
        """Build from the values of fields and readings by name; `BadInput` names an unknown one.

        >>> from fltrust_repro.settings import Setting
        >>> Setting.from_dict({"attack": "krum", "direction": "rule"}).readings.direction
        'rule'
        """
        for name in values:
            if name not in FIELDS:
                raise BadInput(f"unknown setting {name}; {choose(name, FIELDS)}")
        own, readings = _parted(values)
        return cls(**own, readings=Readings(**readings))

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> Setting:
        """Build from what was stored with a trial, maybe by an earlier version."""
        return cls.from_dict({**FORMERLY, **values})


# By name, as `Setting.as_dict` has them.
FIELDS = {f.name: f for kind in (Setting, Readings) for f in dataclasses.fields(kind)}
del FIELDS["readings"]

# Of each field whether it may be None, its choices, its kind.
_ALLOWED = {
    kind: [
        (one.name, one.default is None or "None" in one.type, one.metadata.get("choices") or (),
         one.type.split(" ")[0])
        for one in dataclasses.fields(kind)
    ]
    for kind in (Setting, Readings)
}  # fmt: skip


_READINGS = frozenset(field.name for field in dataclasses.fields(Readings))


def _parted(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a setting's own fields, and those of its readings."""
    own = {name: value for name, value in values.items() if name not in _READINGS}
    return own, {name: value for name, value in values.items() if name in _READINGS}


_KINDS: dict[str, tuple[type, Callable[[Any], Any], str]] = {
    "int": (Integral, int, "a whole number"),
    "float": (Real, float, "a number"),
    "str": (str, str, "a name in quotes"),
    "Readings": (Readings, lambda readings: readings, "Readings(...)"),
}


def canonical_name(field: str, text: str) -> str:
    """Return the one name of what a field names, however its own parameters are written."""
    known: dict[str, Registry[Any]] = {"rule": rules, "attack": attacks, "pre": preaggregations}
    steps = steps_of(text) if field == "pre" else [text]
    return "+".join(known[field][step].name if ":" in step else step for step in steps)


def _check_fields(part: Setting | Readings) -> None:
    """Raise `BadInput` for a value that is not of its field's type, or none of its choices."""
    for name, may_lack, choices, type_name in _ALLOWED[type(part)]:
        value = getattr(part, name)
        if value is None and may_lack:
            continue
        wanted, convert, words = _KINDS[type_name]
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise BadInput(f"{name} is {shown(value)}; give {words}.")
        if choices and value not in choices:
            raise BadInput(f"{name} is {shown(value)}; {choose(value, choices)}")
        try:
            object.__setattr__(part, name, convert(value))
        except OverflowError:
            raise BadInput(f"{name} is beyond any float; give a number.") from None


@cache  # asked for with every trial, of which thousands share a few settings
def _key_of(setting: Setting) -> str:
    fixed = {name: field.default for name, field in FIELDS.items()} | FORMERLY
    told = {name: value for name, value in setting.as_dict().items() if value != fixed[name]}
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
