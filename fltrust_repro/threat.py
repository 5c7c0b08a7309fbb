"""The threat model (paper, Section 2.3): what an attacker knows and chooses, and how one is asked.

In the space of updates `delta_i = w_i - w_re`, where the received global model is the origin.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any, cast

import numpy as np

from fltrust_repro.aggregation import Rule, rules
from fltrust_repro.doors import (
    LAST_SEED,
    Limit,
    Numbers,
    as_given,
    as_numbers,
    as_updates,
    check_limit,
    lent_parts,
    take_in,
    taken_back,
    whole_number,
)
from fltrust_repro.errors import BadInput, choose, shown
from fltrust_repro.notes import Notes
from fltrust_repro.parameters import check_called, chosen, name_with, with_values
from fltrust_repro.poisoning import Backdoor, PoisonedSet
from fltrust_repro.registry import Registry, check_named, summary
from fltrust_repro.server import ServerState, lacks_root_data

CHOICES = {
    "knowledge": ("full", "partial"),
    "goal": ("directed-deviation", "deviation"),
    "direction": ("mean", "rule"),
    "base": ("received", "before-attack"),
    "attacker_assumes": ("zero", "added", "c"),
    "interval_space": ("update", "model"),
    "search": ("halving", "exact"),
}


def _check_choice(name: str, value: object) -> None:
    if value not in CHOICES[name]:
        raise BadInput(f"{name} is {shown(value)}; {choose(value, CHOICES[name])}")


@dataclass(frozen=True)
class Parameters:
    """What an attacker chooses; `BadInput` for a wrong value."""

    epsilon: float = 0.01  # largest distance between the models of the Krum attack (3.2)
    b: float = 2.0  # width of the interval of the trimmed mean attack, with full knowledge (3.3)
    goal: str = "directed-deviation"  # what is maximised (3.1), or "deviation" (Appendix B)
    direction: str = "mean"  # s: sign of the known updates' mean, or what the "rule" makes of them
    base: str = "received"  # the model the Krum attack deviates from, or the "before-attack" one
    attacker_assumes: str = "zero"  # compromised models for its own Krum: "zero", "added" or "c"
    interval_space: str = "update"  # where [w_max, b w_max] is taken, or on the "model"
    search: str = "halving"  # for the Krum attack's lambda, which may stop at half, or "exact"

    def __post_init__(self) -> None:
        for name in CHOICES.keys() - {"knowledge"}:
            _check_choice(name, getattr(self, name))
        for name, allowed, holds in (
            ("epsilon", "finite and at least 0", lambda value: 0 <= value < math.inf),
            ("b", "a finite number above 1", lambda value: 1 < value < math.inf),
        ):
            value = getattr(self, name)
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not number or not holds(value):
                raise BadInput(f"{name} is {shown(value)}; it must be {allowed}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Parameters:
        """Build from values by name; `BadInput` names an unknown one."""
        known = [one.name for one in dataclasses.fields(cls)]
        strange = ", ".join(sorted(set(values) - set(known)))
        if strange:
            raise BadInput(f"unknown parameter {strange}; there are {', '.join(known)}.")
        return cls(**values)


@dataclass(frozen=True)
class Master:
    """What the attacker knows of the master device: its rule, and what it takes for m, c, beta.

    `defended` makes of updates (m, d), in each of some states, what the rule makes of those that a
    defense leaves.
    """

    m: int
    c: int
    beta: int
    rule: Rule
    defended: Callable[[np.ndarray, list[ServerState]], list[np.ndarray]] | None = None

    def answer(self, updates: np.ndarray) -> np.ndarray:
        """What the master device would make of updates (m, d), its defense included: (d,).

        What rule and defense draw is the same for all that is asked in an iteration, and not what
        the master device will draw.
        """
        return self._answers(updates, [self._state()])[0]

    def answers(self, updates: np.ndarray, rngs: Sequence[np.random.Generator]) -> list[np.ndarray]:
        """What it would make of updates (m, d), where each of `rngs` draws for rule and defense."""
        return self._answers(updates, [self._state(rng=rng) for rng in rngs])

    def _state(self, **changes: Any) -> ServerState:
        return (self.rule.state or ServerState()).copied(**changes)

    def _answers(self, updates: np.ndarray, states: list[ServerState]) -> list[np.ndarray]:
        if self.defended is not None:
            return self.defended(updates, states)
        return [self.rule(updates, c=self.c, beta=self.beta, state=state) for state in states]


@dataclass(frozen=True)
class Round:
    """What an attack is given in one iteration; `BadInput` where the arrays and c do not fit."""

    known: np.ndarray  # float32, before-attack updates; (m, d), with partial knowledge (c, d)
    c: int  # compromised workers that take part, at least 1: rows 0..c-1
    w_re: np.ndarray  # float32 (d,), the global model that the workers received
    knowledge: str  # "full" or "partial"
    rng: np.random.Generator  # the attacker's own
    master: Master
    parameters: Parameters = Parameters()
    notes: Counter[str] = field(default_factory=Notes)  # to be counted over the trial, by name
    memory: dict[str, Any] = field(default_factory=dict)  # the attack's, between iterations
    root: np.ndarray | None = None  # float32 (d,), the server's own update, if the attack asks

    def __post_init__(self) -> None:
        _check_choice("knowledge", self.knowledge)
        take_in(self, "an attack", "known")
        if self.root is not None:
            root = as_numbers(self.root, self.w_re.shape, "an attack", "the server's own update")
            object.__setattr__(self, "root", root)
        rows = len(self.known)
        fits = self.c == rows if self.partial else 1 <= self.c < rows
        if not fits:
            wanted = f"exactly these, {rows}" if self.partial else f"from 1 to {rows - 1}"
            raise BadInput(f"c is {self.c}, but {rows} updates are known; it must be {wanted}.")

    @property
    def partial(self) -> bool:
        """Whether the attacker knows the compromised workers only."""
        return self.knowledge == "partial"


Craft = Callable[[Round], Any]


@dataclass(frozen=True)
class Attack:
    """A named attack: on the updates sent (`craft`), or on data.

    Data are attacked by the labels of the compromised workers' batches (`poison`, as in `relabel`),
    or by examples that they hold beside their own (`inject`: Dataset, share, generator,
    function to call after each step -> PoisonedSet). With a `backdoor`, `craft` is given updates of
    compromised workers who train on its trigger, and the trial notes how often it succeeds.
    `against` are the rules that it is made for, its own first; `asks` is ("root",) where it is said
    to know the server's own update.

    >>> from fltrust_repro import trimmed_mean_attack
    >>> trimmed_mean_attack([[-1, 1], [-2, 2], [-3, 3], [-4, 4]], c=1, b=1.0001).round(2)
    array([[-2.,  2.]], dtype=float32)
    """

    name: str
    craft: Craft | None = None
    poison: Callable[..., Any] | None = None
    inject: Callable[..., PoisonedSet] | None = None
    has_knowledge: bool = False
    limit: Limit | None = None
    against: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    backdoor: Backdoor | None = None

    def __post_init__(self) -> None:
        check_limit(f"attack {self.name!r}", self.limit)
        for what in ("against", "asks"):
            if isinstance(one := getattr(self, what), str):
                example = f"{what}=({one!r},)"
                raise BadInput(
                    f"attack {self.name!r}: {what} is one name; give several, {example}."
                )
        if not isinstance(self.backdoor, (Backdoor, type(None))):
            wrong = f"its backdoor is {shown(self.backdoor)}"
            raise BadInput(f"attack {self.name!r}: {wrong}; give Backdoor(trigger, target).")
        if strange := set(self.asks) - {"root"}:
            raise BadInput(
                f"attack {self.name!r} asks for {', '.join(map(str, sorted(strange, key=str)))}; "
                "an attack may ask for root, the server's own update."
            )

    def having(self, text: str) -> Attack:
        """Return the attack with own parameters as chosen: `z=1`; `BadInput` for a wrong one."""
        if self.craft is None:
            raise BadInput(f"attack {self.name!r} has no parameters.")
        values = chosen(f"attack {self.name!r}", self.craft, text)
        craft = with_values(self.craft, values)
        return replace(self, name=name_with(self.name, values), craft=craft)

    def crafted(self, step: Round) -> np.ndarray:
        """What the c compromised workers send, float32 (c, d), checked; `BadInput` if it is wrong.

        A plug-in's attack is given copies, which it may change.
        """
        craft = cast(Craft, self.craft)
        with np.errstate(over="ignore", invalid="ignore"):  # workers may have sent anything
            sent = craft(lent_parts(step, craft))
        shape = (step.c, step.known.shape[1])
        return taken_back(sent, shape, craft, f"attack {self.name!r}", "what it sends")

    def check_goal(self, goal: str, knowledge: str | None) -> None:
        """Raise `BadInput` where an attack has this goal for full knowledge only."""
        if goal == "deviation" and self.has_knowledge and knowledge == "partial":
            raise BadInput(
                "goal is 'deviation' with knowledge 'partial'; the paper has this goal for full "
                "knowledge only (Appendix B): use knowledge full."
            )

    def __call__(
        self,
        updates: Numbers,
        *,
        c: int,
        knowledge: str = "full",
        seed: int = 0,
        w_re: Numbers | None = None,
        rule: str | None = None,
        beta: int | None = None,
        root: Numbers | None = None,
        **parameters: Any,
    ) -> Numbers:
        """Craft what the c compromised workers send, in one iteration and outside of a trial.

        Of the before-attack updates (m, d), numbers of any type, rows 0..c-1 are the compromised
        workers'; with partial knowledge the others are not looked at. Unless given, the received
        model `w_re` is zeros, the master's rule what the attack is made for, else mean, its beta c.
        `seed` is of the attacker's draws; `root`, (d,), is the server's own update, if the attack
        asks for it; `parameters` are those of `Parameters`, as `epsilon=0.1`.

        Returns float32 (c, d), of the kind of array that was given. Raises `BadInput` where what is
        given does not fit, or the attack crafts no updates.
        """
        user = f"attack {self.name!r}"
        if self.craft is None:
            raise BadInput(f"{user} crafts no updates; it changes data, or nothing.")
        rows = as_updates(updates, user)
        m = len(rows)
        if not isinstance(c, (int, np.integer)) or not 1 <= c < m / 2:
            raise BadInput(f"c is {c!r}; it must be at least 1 and less than half of m = {m}.")
        beta = c if beta is None else whole_number(f"{user}: beta", beta, 0, (m - 1) // 2)
        _check_choice("knowledge", knowledge)
        if self.limit is not None:
            self.limit.check(user, m, c, beta)
        if "root" in self.asks and root is None:
            raise lacks_root_data(user, "root", "give root=..., an update as a worker's")
        made_for = next(iter(self.against), "mean")
        master = Master(m, c, beta, rules[made_for if rule is None else rule])
        if root is not None:
            root = as_numbers(root, rows.shape[1:], user, "root")
            master = replace(master, rule=master.rule.seen_at(ServerState(root=root)))
        seed = whole_number(f"{user}: seed", seed, 0, LAST_SEED)
        chosen, rng = Parameters.from_dict(parameters), np.random.default_rng(seed)
        self.check_goal(chosen.goal, knowledge)
        knowledge = knowledge if self.has_knowledge else "full"
        known = rows[:c] if knowledge == "partial" else rows
        w_re = np.zeros(rows.shape[1]) if w_re is None else w_re
        known_root = root if self.asks else None
        step = Round(known, c, w_re, knowledge, rng, master, chosen, root=known_root)
        return as_given(self.crafted(step), updates)

    def relabel(
        self,
        labels: np.ndarray,
        classes: int,
        rng: np.random.Generator,
        scores: Callable[[], np.ndarray],
    ) -> Any:
        """What `poison` makes of the labels (rounds, c, batch size) of the examples in this turn.

        It is given these and the number of classes, and by name what else it asks for: `rng`, the
        attacker's, or `scores`, which gives the received model's for each of the examples, float32
        (rounds, c, batch size, classes).
        """
        poison = cast(Callable[..., Any], self.poison)
        asked = {"rng": rng, "scores": scores}
        wanted = asked.keys() & signature(poison).parameters
        return poison(labels, classes, **{name: asked[name] for name in wanted})

    @property
    def summary(self) -> str:
        """What `list` prints beside the name."""
        function = self.craft or self.poison or self.inject
        return summary(function) if function else "The compromised workers behave."


attacks: Registry[Attack] = Registry("attack")


def attack(
    name: str,
    has_knowledge: bool = True,
    limit: Limit | None = None,
    against: tuple[str, ...] = (),
    asks: tuple[str, ...] = (),
    backdoor: Backdoor | None = None,
) -> Callable[[Craft], Craft]:
    """Register a function `(Round) -> array (c, d)` as attack `name`; what it returns is checked.

    `has_knowledge` says whether full and partial knowledge make a difference; without it the
    attack is given all m before-attack updates. `against` names the rules that it is made for.
    With `asks=("root",)` it is given the server's own update as `step.root`, whatever the rule;
    with a `backdoor` its workers train on triggered examples first.
    """
    check_named("attack", name)

    def register(craft: Craft) -> Craft:
        check_called(f"attack {name!r}", craft, ())
        entry = Attack(
            name, craft=craft, has_knowledge=has_knowledge, limit=limit, against=against,
            asks=asks, backdoor=backdoor,
        )  # fmt: skip
        attacks.add(name, entry)
        return craft

    return register
