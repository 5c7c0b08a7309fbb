"""What the master device makes of updates before the rule: (m, d) -> (k, d), one after another.

    --pre nnm --pre clip --rule trimmed-mean      # or --pre nnm+clip

A pre-aggregation asks by name for what it needs, as a rule does, and may have own parameters.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fltrust_repro.aggregation import Rule
from fltrust_repro.distances import nearest, squared_distances
from fltrust_repro.doors import as_numbers, lent, lent_values, taken_back
from fltrust_repro.errors import BadInput, in_words, shown
from fltrust_repro.kernels import column_mean, extremes
from fltrust_repro.parameters import (
    asked_for,
    check_called,
    chosen,
    name_with,
    own_parameters,
    with_values,
)
from fltrust_repro.registry import Registry, check_default, check_named, place_of
from fltrust_repro.server import ASKED
from fltrust_repro.weighing import finite_rows, lengths, shortening, weighted_sums

Rows = Callable[..., int]

_SOME = 100  # rows, of which a step leaves as many or not
_NO_STEP = ("", "none")
_PLUS = re.compile(r"\+(?!(?<==\+)[\d.]|(?<=\d[eE]\+)\d)")  # but in a number: =+1, 1e+3


@dataclass(frozen=True)
class PreAggregation:
    """A named step before the rule; `rows(m, **own parameters)` is how many rows it leaves of m."""

    name: str
    function: Callable[..., np.ndarray]
    parameters: tuple[str, ...]
    rows: Rows

    def having(self, text: str) -> PreAggregation:
        """Return the step with own parameters as chosen: `size=3`; `BadInput` for a wrong one."""
        values = chosen(f"pre-aggregation {self.name!r}", self.function, text)
        asked = own_parameters(self.rows)
        rows = with_values(self.rows, {name: v for name, v in values.items() if name in asked})
        name, function = name_with(self.name, values), with_values(self.function, values)
        return replace(self, name=name, function=function, rows=rows)

    def rows_left(self, m: int) -> int:
        """How many rows the step leaves of m; `BadInput` where its `rows` does not tell."""
        try:
            return operator.index(self.rows(m))
        except BadInput:  # of a parameter that it reads
            raise
        except (Exception, SystemExit) as error:  # a plug-in's may be anything
            problem = f"of {m} cannot be told ({in_words(error)})"
            do = "let its rows=... return a whole number"
            raise BadInput(f"pre-aggregation {self.name!r}: its rows {problem}; {do}.") from error

    @property
    def mixes(self) -> bool:
        """Whether its rows are no worker's any more."""
        return self.rows_left(_SOME) != _SOME


preaggregations: Registry[PreAggregation] = Registry("pre-aggregation")


def preaggregation(name: str, rows: Rows = lambda m: m) -> Callable[[Callable], Callable]:
    """Register a function `(updates[, c][, ...]) -> (k, d)` as pre-aggregation `name`.

    It is given float32 (m, d), a plug-in a copy that it may change, and by name what it asks for of
    `server.ASKED`; own parameters are by keyword alone. `rows` tells k: as many unless given.
    """
    check_named("pre-aggregation", name)
    if "+" in name:
        raise BadInput(f"a pre-aggregation has the name {name!r}; what follows a + is another.")
    if name in _NO_STEP:
        raise BadInput(f"a pre-aggregation has the name {name!r}, which is no step; take another.")
    if not callable(rows):
        do = "give a function of m, as rows=lambda m: m // 2"
        raise BadInput(f"pre-aggregation {name!r}: rows is {shown(rows)}; {do}.")

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        names = asked_for("pre-aggregation", name, function, ASKED)
        check_called(f"pre-aggregation {name!r}: its rows", rows, ())
        if strange := own_parameters(rows).keys() - own_parameters(function).keys():
            wrong = f"its rows read {', '.join(sorted(strange))}, which it does not have"
            raise BadInput(f"pre-aggregation {name!r}: {wrong}; give both the same.")
        preaggregations.add(name, PreAggregation(name, function, names, rows))
        return function

    return register


def steps_of(names: str) -> list[str]:
    """Return each step's name of those that are joined by +; "none" is no step.

    >>> from fltrust_repro.preaggregations import steps_of
    >>> steps_of("nnm+clip:radius=1e+3")
    ['nnm', 'clip:radius=1e+3']
    """
    return [step for step in map(str.strip, _PLUS.split(names)) if step not in _NO_STEP]


def behind(names: str, rule: Rule) -> Rule:
    """Return the rule on what the steps `names`, joined by +, make of updates; on these without."""
    steps = [preaggregations[name] for name in steps_of(names)]
    if not steps:
        return rule
    own = rule.limit
    users: list[PreAggregation | Rule] = [*steps, rule]
    for place, one in enumerate(users):
        mixing = [step.name for step in steps[:place] if step.mixes]
        if mixing and {"workers", "memory"} <= {*one.parameters}:
            user = "rule" if one is rule else "pre-aggregation"
            wrong = f"{mixing[0]!r} leaves rows of nobody's"
            raise BadInput(f"{user} {one.name!r} remembers workers, and {wrong}; leave it out.")

    def rows(m: int) -> int:
        for step in steps:
            m = step.rows_left(m)
        return m

    def ask(place: int, step: PreAggregation | Rule, updates: np.ndarray, known: Any) -> Any:
        memory = known["memory"].setdefault(f"{place} {step.name}", {})  # each has its own
        asked = {**known, "memory": memory}
        given = {name: asked[name] for name in step.parameters}
        # Each has its own copies, so that none sees what another makes of the server's update.
        return step.function(lent(updates, step.function), **lent_values(given, step.function))

    def aggregate(updates: np.ndarray, **known: Any) -> np.ndarray:
        for place, step in enumerate(steps):
            user = f"pre-aggregation {step.name!r}{place_of(step.function)}"
            (before, d), found = updates.shape, ask(place, step, updates, known)
            updates = as_numbers(found, (None, d), user, "its result")
            if "workers" in known and len(updates) != before:  # rows are no worker's any more
                known["workers"] = np.arange(len(updates))
        if own is not None:  # steps may leave other numbers of rows than they tell
            counts = known.get("c", 0), known.get("beta", 0)
            own.check(f"rule {rule.name!r} behind {names!r}", len(updates), *counts)
        found = ask(len(steps), rule, updates, known)  # of a plug-in a copy: it may keep its own
        return taken_back(found, updates.shape[1:], rule.function, f"rule {name!r}", "its result")

    limit = replace(own, rows=rows) if own else None
    name = "+".join([*(step.name for step in steps), rule.name])
    together = {"memory", *rule.parameters}.union(*(step.parameters for step in steps))
    asked = tuple(one for one in ASKED if one in together)
    return replace(
        rule, name=name, function=aggregate, parameters=asked, limit=limit, leave_one_out=None
    )


@preaggregation("nnm")
def nearest_neighbour_mixing(updates: np.ndarray, c: int) -> np.ndarray:
    """Nearest-neighbour mixing: the mean of each update's m - c nearest, itself among them.

    Allouah et al., AISTATS 2023. Of equally near ones the first count. A row that is not finite is
    nearest to none, and mixes with itself and the first of the others. Needs c < m. Allocates
    (m, d) numbers.

    >>> import numpy as np
    >>> from fltrust_repro.preaggregations import nearest_neighbour_mixing
    >>> nearest_neighbour_mixing(np.float32([[0], [2], [99]]), c=1).ravel().tolist()
    [1.0, 1.0, 50.5]
    """
    m = _more_than_c("nnm", c, updates)
    mixed = nearest(squared_distances(updates), m - c)
    mixing = np.zeros((m, m), dtype=np.float32)
    np.put_along_axis(mixing, mixed, np.float32(1 / mixed.shape[1]), axis=1)
    return weighted_sums(updates, mixing)


def _more_than_c(name: str, c: int, updates: np.ndarray) -> int:
    """Return m, the number of updates, if the c compromised workers' are not all of them."""
    m = len(updates)
    if c >= m:
        raise BadInput(f"pre-aggregation {name!r}: c is {c}; with m = {m} it must be below {m}.")
    return m


def _buckets(m: int, *, size: int = 2) -> int:
    if size < 1:
        raise BadInput(f"pre-aggregation 'bucketing': size is {size}; it must be at least 1.")
    return -(-m // size)


@preaggregation("bucketing", rows=_buckets)
def bucketing(updates: np.ndarray, rng: np.random.Generator, *, size: int = 2) -> np.ndarray:
    """Means of buckets of `size` updates, drawn anew in each iteration; the last may be smaller.

    Karimireddy, He, Jaggi, ICLR 2022; the rule takes the same c on ceil(m / size) rows. Those of
    size 1 stay in their order. Allocates these rows.

    >>> import numpy as np
    >>> from fltrust_repro.preaggregations import bucketing
    >>> bucketing(np.ones((5, 2), dtype=np.float32), np.random.default_rng(0)).shape
    (3, 2)
    """
    _buckets(len(updates), size=size)
    if size == 1:
        return updates.copy()  # as many rows are taken for the same workers'
    order = rng.permutation(len(updates))
    buckets = np.split(order, range(size, len(updates), size))
    return np.stack([column_mean(updates[bucket]) for bucket in buckets])


@preaggregation("clip")
def clip(updates: np.ndarray, *, radius: float = 1.0) -> np.ndarray:
    """Updates clipped to a length of `radius` times their median length.

    Norm bounding of Sun et al., 2019, its bound relative to the round. Allocates (m, d) numbers.

    >>> import numpy as np
    >>> from fltrust_repro.preaggregations import clip
    >>> clip(np.float32([[3, 4], [6, 8], [30, 40]])).tolist()
    [[3.0, 4.0], [6.0, 8.0], [6.0, 8.0]]
    """
    check_default("pre-aggregation 'clip'", "radius", radius, float)
    long = lengths(updates)
    return _clipped(updates, long, radius * np.median(long))


@preaggregation("arc")
def adaptive_robust_clipping(updates: np.ndarray, c: int) -> np.ndarray:
    """Adaptive robust clipping: the k longest updates are clipped to the length of the next.

    k = floor(2 (c / m) (m - c)): Allouah et al., "Adaptive gradient clipping for robust federated
    learning", ICLR 2025 (ARC). Needs c < m. Allocates (m, d) numbers.

    >>> import numpy as np
    >>> from fltrust_repro.preaggregations import adaptive_robust_clipping
    >>> adaptive_robust_clipping(np.float32([[1], [2], [3], [99]]), c=1).ravel().tolist()
    [1.0, 2.0, 3.0, 3.0]
    """
    m, long = _more_than_c("arc", c, updates), lengths(updates)
    k = 2 * c * (m - c) // m
    return _clipped(updates, long, np.sort(long)[m - k - 1])


def _with_copies(m: int, *, share: float = 0.5) -> int:
    if not 0 <= share < np.inf:
        raise BadInput(f"pre-aggregation 'foundation': share is {share}; give at least 0.")
    return m + int(share * m + 1e-9)  # 0.29 of 100 are 29, though 0.29 * 100 is less


@preaggregation("foundation", rows=_with_copies)
def foundation(updates: np.ndarray, *, share: float = 0.5) -> np.ndarray:
    """FoundationFL: all updates, and `share` m copies of the one that is farthest from extremes.

    With g_max and g_min the largest and the smallest value of each parameter, the update of the
    largest s_i = min(|x_i - g_max|, |x_i - g_min|), the first of equal ones, is appended as so many
    "synthetic" ones (Equations 2 to 7); the rule takes the same c on all of them.

    Fang, Nabavirazavi, Liu, Sun, Iyengar and Yang, "Do we really need to design new
    Byzantine-robust aggregation rules?", NDSS 2025, with trimmed mean or median behind it and m / 2
    copies. Attackers decide which update that is: where two send K and -K in each parameter, it is
    a third one's long vector whose values add up to 0, and where one sends a vector far beyond all
    others, above them in some parameters and below them in as many, it is that one, whose copies
    are more than trimming cuts (experiments/foundation). A row that is not finite is no extreme,
    and is not copied. Allocates (m + share m, d) numbers.

    >>> import numpy as np
    >>> from fltrust_repro.preaggregations import foundation
    >>> foundation(np.float32([[1, 0], [0, 1], [9, 9], [-9, -9], [5, -5], [0, 0]]))[6:].tolist()
    [[5.0, -5.0], [5.0, -5.0], [5.0, -5.0]]
    """
    added = _with_copies(len(updates), share=share) - len(updates)
    finite = finite_rows(updates)
    if not finite.any():
        return updates[np.arange(len(updates) + added) % len(updates)]
    known, up = updates if finite.all() else updates[finite], np.ones(updates.shape[1], np.float32)
    away = np.minimum(*(lengths(updates, extremes(known, side)) for side in (up, -up)))
    away[~finite] = -1
    copies = np.full(added, away.argmax())
    return updates[np.concatenate([np.arange(len(updates)), copies])]


def _clipped(updates: np.ndarray, long: np.ndarray, bound: float) -> np.ndarray:
    """Rows, so long, shortened to the bound; one that is not finite becomes 0."""
    with np.errstate(invalid="ignore"):
        clipped = updates * shortening(long, bound).astype(np.float32)[:, None]
    clipped[~np.isfinite(long)] = 0
    return clipped
