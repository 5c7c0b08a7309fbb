"""Byzantine-robust aggregation rules (paper, Section 2.2): (m, d) updates -> (d,) update.

All rules here are translation-equivariant, so that aggregating updates `delta_i = w_i - w_re` is
aggregating local models (paper, 2.1). A rule is a function of `updates` and, by name, of what it
asks for: `c`, how many workers may be compromised, `beta`, and what a `ServerState` holds. What
follows by keyword alone are its own parameters, which a user may choose: `multi-krum:q=5`.

What a rule allocates beside its result of d numbers is stated; a block of columns takes about 10 MB
for m = 100, whatever d.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Union

import numpy as np

from fltrust_repro.compiled import Array, compiled
from fltrust_repro.distances import nearest, squared_distances
from fltrust_repro.doors import (
    Limit,
    Numbers,
    as_given,
    as_numbers,
    as_updates,
    check_limit,
    lent,
    taken_back,
)
from fltrust_repro.errors import BadInput
from fltrust_repro.kernels import (
    column_mean,
    mean_around_median,
    middle_mean,
    middle_means_without,
)
from fltrust_repro.parameters import asked_for, chosen, name_with, own_parameters, with_values
from fltrust_repro.registry import Registry, check_default, check_named
from fltrust_repro.server import ASKED, ServerState, as_state


class WithoutEach(NamedTuple):
    """What a rule gives when one worker is left out: for worker i, `aggregates[which[i]]`."""

    aggregates: np.ndarray  # (k, d); k < m where leaving out one or another gives the same
    which: np.ndarray  # int (m,)


LeaveOneOut = Callable[..., Union[np.ndarray, WithoutEach]]


@dataclass(frozen=True)
class Rule:
    """An aggregation rule with its limit; `parameters` are those of `ASKED` that it asks for.

    `leave_one_out`, of the same parameters, is a fast way to `without_each`: the m aggregates.
    Called without a state, it looks at a copy of `state`, or of an empty one.
    """

    name: str
    function: Callable[..., np.ndarray]
    limit: Limit | None
    parameters: tuple[str, ...]
    leave_one_out: LeaveOneOut | None = None
    state: ServerState | None = None

    def having(self, text: str) -> Rule:
        """Return the rule with its own parameters as chosen: `q=5`; `BadInput` for a wrong one."""
        values = chosen(f"rule {self.name!r}", self.function, text)
        without = self.leave_one_out and with_values(self.leave_one_out, values)
        function, name = with_values(self.function, values), name_with(self.name, values)
        return replace(self, name=name, function=function, leave_one_out=without)

    def seen_at(self, state: ServerState) -> Rule:
        """Return the rule as others may query it: each call looks at a copy of the state."""
        return replace(self, state=state)

    def __call__(
        self,
        updates: Numbers,
        *,
        c: int,
        beta: int | None = None,
        state: ServerState | None = None,
    ) -> Numbers:
        """Aggregate updates (m, d), an array or list of any numbers; beta is c unless given.

        A `state` that is given is moved on: the master device's own call. Returns float32 (d,), of
        the kind of array that was given. A plug-in's rule gets a copy, which it may change. Raises
        `BadInput` where what is given or what the rule returns has another shape or holds no
        numbers, or m, c and beta are beyond the rule's limit.
        """
        rows, known = self._checked(updates, c, beta, as_state(state, f"rule {self.name!r}"))
        result = self.function(lent(rows, self.function), **known)
        user, shape = f"rule {self.name!r}", rows.shape[1:]
        return as_given(taken_back(result, shape, self.function, user, "its result"), updates)

    def without_each(self, updates: Numbers, *, c: int, beta: int | None = None) -> WithoutEach:
        """Aggregate the other m - 1 updates, for each of the m workers left out (Section 5)."""
        rows, known = self._checked(updates, c, beta, None)
        if self.leave_one_out is not None:
            if self.limit is not None:  # which else each call checks
                others, beta = len(rows) - 1, c if beta is None else beta
                self.limit.check(f"rule {self.name!r}", others, c, beta)
            found = self.leave_one_out(lent(rows, self.leave_one_out), **known)
        else:
            rest = ((self._without(i, len(rows)), np.delete(rows, i, 0)) for i in range(len(rows)))
            found = np.stack([rule(others, c=c, beta=beta) for rule, others in rest])
        if isinstance(found, WithoutEach):  # which only this package's own make
            return found
        found = as_numbers(found, rows.shape, f"rule {self.name!r}", "its leave_one_out")
        return WithoutEach(found, np.arange(len(rows)))

    def _without(self, row: int, m: int) -> Rule:
        """The rule as others may query it about all of m workers but the one of this row."""
        state = self.state or ServerState()
        return self.seen_at(replace(state, workers=np.delete(state.senders(m), row)))

    def _checked(
        self, updates: Numbers, c: int, beta: int | None, state: ServerState | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        known: dict[str, Any] = {"c": c, "beta": c if beta is None else beta}
        for name, value in known.items():
            if not isinstance(value, (int, np.integer)) or value < 0:
                raise BadInput(f"{name} is {value!r}; it must be a whole number of at least 0.")
            known[name] = operator.index(value)
        rows = as_updates(updates, f"rule {self.name!r}")
        if self.limit is not None:
            self.limit.check(f"rule {self.name!r}", len(rows), **known)
        if set(self.parameters) - {"c", "beta"}:
            at = state or (self.state or ServerState()).copied()
            known |= at.told(self.parameters, rows, f"rule {self.name!r}")
        return rows, {name: known[name] for name in self.parameters}


rules: Registry[Rule] = Registry("rule")


def rule(
    name: str, limit: Limit | None = None, leave_one_out: LeaveOneOut | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function `(updates[, c][, beta][, ...]) -> (d,)` as aggregation rule `name`.

    The function is given a float32 numpy array (m, d) within the limit, by name what it asks for of
    `ASKED`, and its own parameters, which are by keyword alone; it returns d numbers. Called by its
    own name it checks its arguments and result as `Rule.__call__` does.
    """
    check_named("rule", name)
    check_limit(f"rule {name!r}", limit)

    def register(function: Callable[..., np.ndarray]) -> Callable[..., Numbers]:
        signature, own = inspect.signature(function), own_parameters(function)
        parameters = asked_for("rule", name, function, ASKED, leave_one_out)
        entry = Rule(name, function, limit, parameters, leave_one_out)
        rules.add(name, entry)
        updates_c_beta = [
            one for one in signature.parameters.values() if one.name not in (*own, *ASKED[2:])
        ]
        counted = signature.replace(parameters=updates_c_beta)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Numbers:
            values = {key: kwargs.pop(key) for key in own.keys() & kwargs}
            kept = {key: kwargs.pop(key) for key in {*ASKED[2:]} & {*parameters} & {*kwargs}}
            bound = counted.bind(*args, **kwargs)
            bound.apply_defaults()
            (_, updates), *counts = bound.arguments.items()
            mine = replace(entry, function=with_values(function, values))
            return mine(
                updates, **{"c": 0, **dict(counts)}, state=ServerState(**kept) if kept else None
            )

        return checked

    return register


# Without one not as (total - own) / (m - 1): a large value would leave nothing of the others.
@rule("mean", leave_one_out=lambda rows: middle_means_without(rows, 0, len(rows) - 1))
def mean(updates: np.ndarray) -> np.ndarray:
    """Mean of each parameter (not robust).

    Allocates 2 bytes a parameter, or 10 where a sum is not finite.

    >>> from fltrust_repro import mean
    >>> mean([[1, 2], [3, 6]])
    array([2., 4.], dtype=float32)
    """
    return column_mean(updates)


@compiled
def _krum(
    squared: Array, nearest: Array, among: Array, neighbours: int, crafted: Array, copies: int
) -> tuple[int, float]:
    # Scores are summed from the nearest on, so that models with the same distances have the same.
    choice, least = -1, np.inf
    if copies > 0:  # they are each other's nearest
        counted = min(copies - 1, neighbours)
        least = 0.0
        for distance in np.sort(crafted)[: neighbours - counted]:
            least += distance
    for i in range(len(squared)):
        if not among[i]:
            continue
        score, counted, left = 0.0, 0, copies
        for k in nearest[i]:
            if not among[k]:
                continue
            while left > 0 and counted < neighbours and crafted[i] < squared[i, k]:
                score += crafted[i]
                counted += 1
                left -= 1
            if counted == neighbours:
                break
            score += squared[i, k]
            counted += 1
        for _ in range(min(left, neighbours - counted)):
            score += crafted[i]
        if score < least or (choice < 0 and copies == 0):
            choice, least = i, score
    return choice, least


class Crowd:
    """Models as Krum sees them: by their squared distances, each one's others from the nearest on.

    `squared` is float64 (n, n), as `squared_distances` returns it.
    """

    def __init__(self, squared: np.ndarray) -> None:
        self._squared = squared
        self._nearest = nearest(squared, len(squared))[:, 1:]
        self._everyone = np.ones(len(squared), dtype=bool)

    def select(
        self,
        neighbours: int,
        among: np.ndarray | None = None,
        crafted: np.ndarray | None = None,
        copies: int = 0,
    ) -> tuple[int, float]:
        """Return which model Krum selects, and its score: the first of those with the least.

        A score sums squared distances to so many nearest neighbours, itself not counted. Models
        marked in `among`, bool (n,), take part, by default all. Copies of one more model come
        first, at squared distances `crafted`, float64 (n,); if Krum selects them, that is -1.
        """
        among = self._everyone if among is None else among
        crafted = self._squared[0] if crafted is None else crafted
        return _krum(self._squared, self._nearest, among, neighbours, crafted, copies)


def _crowd(updates: np.ndarray, power: float) -> Crowd:
    check_default("rule 'krum'", "power", power, float)
    return Crowd(squared_distances(updates) ** (power / 2))


def _krum_without(updates: np.ndarray, c: int, *, power: float = 2.0) -> WithoutEach:
    m, crowd = len(updates), _crowd(updates, power)
    chosen = [crowd.select(m - c - 3, others)[0] for others in ~np.eye(m, dtype=bool)]
    few, which = np.unique(chosen, return_inverse=True)
    return WithoutEach(updates[few], which)


@rule("krum", Limit("m - c - 2", lambda m, c, beta: m - c - 2), leave_one_out=_krum_without)
def krum(updates: np.ndarray, c: int, *, power: float = 2.0) -> np.ndarray:
    """Select the update with the smallest sum of squared distances to its m - c - 2 nearest.

    Of equal ones the first is selected, in a trial a compromised one if one is: where m - c - 2
    is 1 the two models nearest to each other always are equal. With `power=4` the squares are
    squared once more, as the code of the bucketing paper does by mistake
    (experiments/bucketing.toml); the Krum attack still expects squares. Allocates a block of
    columns and a few (m, m) matrices.

    >>> from fltrust_repro import krum
    >>> krum([[0, 9], [1, 1], [1, 2], [2, 1], [1, 1.5]], c=1)
    array([1. , 1.5], dtype=float32)
    """
    choice, _ = _crowd(updates, power).select(len(updates) - c - 2)
    return updates[choice].copy()


def bulyan_selection(squared: np.ndarray, c: int, theta: int) -> np.ndarray:
    """Select theta models by Krum, one after another, each among those not selected yet.

    With n models left, Krum looks at n - c - 2 neighbours, at least 1.
    """
    crowd, left = Crowd(squared), np.ones(len(squared), dtype=bool)
    selected = np.empty(theta, dtype=np.int64)
    for t in range(theta):
        selected[t], _ = crowd.select(max(len(squared) - t - c - 2, 1), left)
        left[selected[t]] = False
    return selected


@rule("bulyan", Limit("m - 4c", lambda m, c, beta: m - 4 * c))
def bulyan(updates: np.ndarray, c: int) -> np.ndarray:
    """Mean of each parameter's gamma values closest to the median, of theta models Krum selects.

    theta = m - 2c and gamma = theta - 2c (2.2, Appendix A). With c of 1 or 2 Krum selects the last
    ones by one neighbour, which leaves more to the workers' order than to their models. Allocates
    what Krum does; the selected updates are not copied.

    >>> from fltrust_repro import bulyan
    >>> bulyan([[0], [1], [2], [4], [99]], c=1)
    array([1.], dtype=float32)
    """
    m = len(updates)
    selected = bulyan_selection(squared_distances(updates), c, m - 2 * c)
    return mean_around_median(updates, selected, m - 4 * c)


@rule(
    "trimmed-mean",
    Limit("m - 2 beta", lambda m, c, beta: m - 2 * beta),
    leave_one_out=lambda rows, beta: middle_means_without(rows, beta, len(rows) - 1 - beta),
)
def trimmed_mean(updates: np.ndarray, beta: int) -> np.ndarray:
    """Mean of each parameter without its beta largest and beta smallest values.

    Allocates a block of columns.

    >>> from fltrust_repro import trimmed_mean
    >>> trimmed_mean([[1], [2], [4], [99]], beta=1)
    array([3.], dtype=float32)
    """
    return middle_mean(updates, beta, len(updates) - beta)


@rule(
    "median",
    leave_one_out=lambda rows: middle_means_without(rows, len(rows) // 2 - 1, (len(rows) + 1) // 2),
)
def median(updates: np.ndarray) -> np.ndarray:
    """Median of each parameter; for even m the mean of the middle two.

    Allocates a block of columns.

    >>> from fltrust_repro import median
    >>> median([[1], [2], [4], [99]])
    array([3.], dtype=float32)
    """
    m = len(updates)
    return middle_mean(updates, (m - 1) // 2, m // 2 + 1)
