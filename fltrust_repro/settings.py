"""Setting: one full parameter combination (Table 1, Section 4.1, README "Readings of the paper").

Each field's sentence is also the help text of its command-line option.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.datasets import data_digest, datasets
from fltrust_repro.defenses import defenses
from fltrust_repro.errors import BadInput, shown
from fltrust_repro.models import models

# The paper gives no learning rate; these are calibrated on its numbers without attack.
LEARNING_RATES = {
    ("lr", "mnist"): 0.1,
    ("cnn", "mnist"): 0.01,
    ("cnn", "breast-cancer"): 0.1,
}
DEFAULT_LEARNING_RATE = 0.1

# 455 examples are four or five for each of 100 workers; README "Readings of the paper".
DEALING = {"breast-cancer": "shared"}
DEFAULT_DEALING = "once"

# What only an attacker reads: without an attack, they change nothing and take their defaults.
ATTACK_FIELDS = (
    "epsilon",
    "b",
    "poisoned_fraction",
    "poisoned_share",
    "distribution",
    "goal",
    "direction",
    "attacker_assumes",
    "base",
    "interval_space",
)

# The default of a field when trials were first stored, or before it was a choice, where it is
# another now: what a stored setting that does not name the field means, and what names leave out.
FORMERLY: dict[str, Any] = {}

MOST = 1_000_000
MOST_EXAMPLES = 100_000_000  # drawn in one iteration, all workers together

CHOICES = {
    "knowledge": ("full", "partial"),
    "direction": ("mean", "rule"),
    "worker_order": ("shuffled", "grouped"),
    "attacker_assumes": ("zero", "added", "c"),
    "base": ("received", "before-attack"),
    "interval_space": ("update", "model"),
    "goal": ("directed-deviation", "deviation"),
    "distribution": ("uniform", "single-worker"),
    "dealing": ("once", "each-iteration", "shared"),
    "master_assumes": ("c", "zero"),
    "initial": ("xavier-3", "xavier-2.24", "xavier-1", "uniform-0.07"),
}


class MasterView(NamedTuple):
    """What the master device sees in one iteration: m updates, c of them maybe compromised."""

    m: int
    c: int
    beta: int


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Setting:
    """All that decides a trial's numbers but the seed; a wrong value raises `BadInput`.

    Fields left None take the paper's default for the data set, the model or c.
    """

    dataset: str = _field("mnist", "Data set.")
    model: str = _field("lr", "Classifier.")
    rule: str = _field("krum", "Aggregation rule of the master device.")
    attack: str = _field("none", "What the compromised workers do.")
    knowledge: str | None = _field("full", "Whether the attacker knows all workers or its own.")
    defense: str = _field("none", "What the master device removes before aggregating.")
    workers: int = _field(100, "Number of worker devices, m.")
    compromised: int = _field(20, "Number of compromised worker devices, c; the rules know it.")
    non_iid: float = _field(0.5, "Degree of non-IID, p.")
    beta: int | None = _field(None, "Values trimmed from each end by trimmed mean; default c.")
    epsilon: float = _field(0.01, "Largest distance between crafted models in the Krum attack.")
    b: float = _field(2.0, "Width of the interval in the trimmed mean attack, full knowledge.")
    iterations: int | None = _field(None, "Iterations; default 500 for lr, 2000 for others.")
    batch_size: int | None = _field(None, "Examples per batch; default 32, Fashion-MNIST 64.")
    learning_rate: float | None = _field(None, "alpha, on the batch-mean loss.")
    rounds: int = _field(1, "Local rounds of stochastic gradient descent per iteration.")
    selected: int | None = _field(None, "Workers selected at random per iteration; default all.")
    poisoned_fraction: float = _field(1.0, "Share of iterations that are attacked, at random.")
    goal: str = _field("directed-deviation", "What the attacker maximises.")
    poisoned_share: float = _field(0.04, "Examples of the back-gradient attack, of all examples.")
    distribution: str = _field("uniform", "Who holds these: any compromised worker, or one.")
    direction: str = _field("mean", "Changing direction s: of the mean update or of the rule.")
    worker_order: str = _field("shuffled", "Which workers are compromised: c random or first c.")
    attacker_assumes: str = _field("zero", "Compromised models the attacker's Krum assumes.")
    base: str = _field("received", "Model from which the Krum attack deviates.")
    interval_space: str = _field("update", "Where the trimmed mean attack takes [w_max, b w_max].")
    dealing: str | None = _field(None, "Examples: dealt once, each-iteration, or groups shared.")
    master_assumes: str = _field(
        "c", "Compromised workers the rule assumes once a defense has removed c or more."
    )
    initial: str = _field("xavier-3", "Initial model: MXNet's initializer and its magnitude.")

    def __post_init__(self) -> None:
        self._check_types()
        for name, default in self._defaults().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        entry = self._check_names()
        if not entry.has_knowledge:
            object.__setattr__(self, "knowledge", None)
        self._check_ranges()
        self._check_limits()
        without_effect = ATTACK_FIELDS if self.attack == "none" else ()
        if self.defense == "none" or "c" not in rules[self.rule].parameters:
            without_effect += ("master_assumes",)
        for field in dataclasses.fields(self):
            if field.name in without_effect:
                object.__setattr__(self, field.name, field.default)

    def _defaults(self) -> dict[str, Any]:
        return {
            "knowledge": "full",
            "beta": self.compromised,
            "iterations": 500 if self.model == "lr" else 2000,
            "batch_size": 64 if self.dataset == "fashion-mnist" else 32,
            "learning_rate": LEARNING_RATES.get((self.model, self.dataset), DEFAULT_LEARNING_RATE),
            "selected": self.workers,
            "dealing": DEALING.get(self.dataset, DEFAULT_DEALING),
        }

    @property
    def at_master(self) -> MasterView:
        """The workers that send an update in one iteration, and how c and beta shrink with them."""

        def share(count: int) -> int:
            return math.ceil(count * self.selected / self.workers)

        return MasterView(self.selected, share(self.compromised), share(self.beta))

    @property
    def c_left(self) -> int:
        """The c that the rule takes when it aggregates what the defense has left over."""
        return 0 if self.master_assumes == "zero" else self.at_master.c

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and "None" in field.type:
                continue
            if "int" in field.type:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise BadInput(f"{field.name} is {shown(value)}; give a whole number.")
            elif "float" in field.type:
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise BadInput(f"{field.name} is {shown(value)}; give a number.")
                try:
                    object.__setattr__(self, field.name, float(value))
                except OverflowError:
                    raise BadInput(f"{field.name} is beyond any float; give a number.") from None
            elif not isinstance(value, str):
                raise BadInput(f"{field.name} is {shown(value)}; give a name in quotes.")

    def _check_names(self) -> Any:
        datasets[self.dataset], models[self.model], rules[self.rule], defenses[self.defense]
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise BadInput(
                    f"{name} is {shown(getattr(self, name))}; choose one of {', '.join(allowed)}."
                )
        return attacks[self.attack]

    def _check_ranges(self) -> None:
        m, c = self.workers, self.compromised
        # A single worker that holds poisoned examples is centralized learning (4.4).
        alone = m == 1 and attacks[self.attack].inject is not None
        least_c = 0 if self.attack == "none" or alone else 1
        for name in ("workers", "iterations", "batch_size", "rounds"):
            value = getattr(self, name)
            _require(1 <= value <= MOST, name, value, f"at least 1 and at most {MOST:,}")
        _require(
            least_c <= c and 2 * c < m,
            "compromised",
            c,
            f"at least {least_c} and less than half of the {m} workers, as 2.3 assumes",
        )
        _require(1 <= self.selected <= m, "selected", self.selected, f"in [1, m], m = {m}")
        each = self.selected * self.rounds * self.batch_size
        _require(
            each <= MOST_EXAMPLES,
            "selected x rounds x batch_size",
            each,
            f"at most {MOST_EXAMPLES:,} examples an iteration",
        )
        share = self.poisoned_fraction
        _require(0 <= share <= 1, "poisoned_fraction", share, "in [0, 1]")
        _require(0 < self.poisoned_share <= 1, "poisoned_share", self.poisoned_share, "in (0, 1]")
        _require(self.beta >= 0 and 2 * self.beta < m, "beta", self.beta, f"in [0, m/2), m = {m}")
        _require(
            self.rule != "trimmed-mean" or self.beta >= c,
            "beta",
            self.beta,
            f"at least c = {c} for trimmed mean (2.2: c <= beta < m/2)",
        )
        _require(0 < self.non_iid <= 1, "non_iid", self.non_iid, "in (0, 1]")
        rate = self.learning_rate
        _require(0 < rate < math.inf, "learning_rate", rate, "a finite number above 0")
        _require(0 <= self.epsilon < math.inf, "epsilon", self.epsilon, "finite and at least 0")
        _require(1 < self.b < math.inf, "b", self.b, "a finite number above 1")

    def _check_limits(self) -> None:
        rule, attack, defense = rules[self.rule], attacks[self.attack], defenses[self.defense]
        m, c, beta = self.at_master
        if rule.limit is not None:
            rule.limit.check(f"rule {rule.name!r}", m, c, beta)
            if defense.most > 0:
                left = m - defense.most * c
                after = f"rule {rule.name!r} after defense {defense.name!r}"
                rule.limit.check(after, left, self.c_left, beta)
        if attack.limit is not None:
            attack.limit.check(f"attack {attack.name!r}", m, c, beta)
        if self.goal == "deviation" and attack.has_knowledge and self.knowledge == "partial":
            raise BadInput(
                "goal is 'deviation' with knowledge 'partial'; the paper has this goal for full "
                "knowledge only (Appendix B): use knowledge full."
            )

    def without_attack(self) -> Setting:
        """Return the setting with which an attacked one is compared."""
        return dataclasses.replace(self, attack="none")

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, defaults filled in."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def key(self) -> str:
        """Return a stable name of the setting, whatever the order or spelling-out of its fields.

        Fields are left out where they have the default that they were introduced with, so that
        neither a field added later nor a default changed later renames the settings there were.
        """
        return _key_of(self)

    def plugin_key(self) -> str:
        """Hash of the plug-ins that registered the setting's names; empty without any.

        Of a plug-in's data set the examples count too, which are loaded for it.
        """
        named = (
            (datasets, self.dataset),
            (models, self.model),
            (rules, self.rule),
            (attacks, self.attack),
            (defenses, self.defense),
        )
        digests = {registry.digest(name) for registry, name in named}
        digests.add(data_digest(self.dataset))
        return "+".join(sorted(digests - {None}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Setting:
        """Build from field values by name; `BadInput` names an unknown one."""
        known = [field.name for field in dataclasses.fields(cls)]
        strange = sorted(set(values) - set(known))
        if strange:
            raise BadInput(f"unknown setting {', '.join(strange)}; there are {', '.join(known)}.")
        return cls(**values)

    @classmethod
    def from_stored(cls, values: dict[str, Any]) -> Setting:
        """Build from what was stored with a trial, maybe by an earlier version."""
        return cls.from_dict({**FORMERLY, **values})


@cache  # asked for with every trial, of which thousands share a few settings
def _key_of(setting: Setting) -> str:
    fixed = {field.name: field.default for field in dataclasses.fields(setting)} | FORMERLY
    told = {name: value for name, value in setting.as_dict().items() if value != fixed[name]}
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise BadInput(f"{name} is {shown(value)}; it must be {allowed}.")
