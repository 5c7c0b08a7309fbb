"""Byzantine-robust aggregation rules (paper, Section 2.2): (m, d) updates -> (d,) update.

All rules here are translation-equivariant, so that aggregating updates `delta_i = w_i - w_re` is
aggregating local models (paper, 2.1). A rule is a function of `updates` and, by name, of the
parameters it needs: `c`, how many workers may be compromised, and `beta`.

What a rule allocates beside its result of d numbers is stated for the CPU. A block of columns
takes about 10 MB for m = 100, whatever d.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fltrust_repro import backend
from fltrust_repro.backend import (
    array_view,
    as_numbers,
    as_updates,
    fetch,
    module_of,
    off_diagonal,
    take_rows,
    to_ndarray,
)
from fltrust_repro.compiled import compiled
from fltrust_repro.distances import squared_distances
from fltrust_repro.errors import BadInput
from fltrust_repro.kernels import mean_around_median, middle_mean, middle_means_without
from fltrust_repro.registry import Registry, is_built_in, place_of

if TYPE_CHECKING:
    from fltrust_repro.backend import NDArray


_FARTHEST = 1e300  # beyond all squares of float32, and sums of a million do not overflow


@dataclass(frozen=True)
class Limit:
    """A quantity of m, c and beta that has to be at least 1 for a rule or attack to make sense."""

    text: str
    value: Callable[[int, int, int], int]

    def check(self, user: str, m: int, c: int, beta: int) -> None:
        """Raise `BadInput` where the quantity is below 1."""
        try:
            value = int(self.value(m, c, beta))
        except (Exception, SystemExit) as error:  # a plug-in's limit may be anything
            problem = f"{type(error).__name__}: {error}"
            raise BadInput(f"the limit of {user} cannot be computed ({problem}).") from error
        if value < 1:
            raise BadInput(
                f"{user} needs {self.text} >= 1, but with m = {m} workers, c = {c} compromised and "
                f"beta = {beta} it is {value}; use more workers, or a smaller c or beta."
            )


class WithoutEach(NamedTuple):
    """What a rule gives when one worker is left out: for worker i, `aggregates[which[i]]`."""

    aggregates: NDArray  # (k, d); k < m where leaving out one or another gives the same
    which: np.ndarray  # int (m,)


@dataclass(frozen=True)
class Rule:
    """An aggregation rule with its limit; `parameters` are those of `c`, `beta` that it takes.

    `leave_one_out`, of the same parameters, is a fast way to `without_each`.
    """

    name: str
    function: Callable[..., NDArray]
    limit: Limit | None
    parameters: tuple[str, ...]
    leave_one_out: Callable[..., WithoutEach] | None = None

    def __call__(self, updates: Any, *, c: int, beta: int | None = None) -> Any:
        """Aggregate updates of shape (m, d) to shape (d,).

        Parameters
        ----------
        updates : NDArray or numpy array (m, d)
            All but a float32 NDArray is copied. The rule of a plug-in gets a copy, too, which it
            may change.
        c, beta : int
            beta is c unless given.

        Returns
        -------
        NDArray (d,), float32; a numpy array if the updates were no NDArray.

        Raises
        ------
        BadInput
            What is given or what the rule returns has another shape or holds no numbers, or m, c
            and beta are beyond the rule's limit.
        """
        rows, known = self._checked(updates, c, beta)
        given = rows if is_built_in(self.function) else rows.copy()
        result = as_numbers(
            self.function(given, **known),
            (rows.shape[1],),
            f"rule {self.name!r}{place_of(self.function)}",
            "its result",
            rows.ctx,
        )
        return result if isinstance(updates, backend.NDArray) else result.asnumpy()

    def without_each(self, updates: NDArray, *, c: int, beta: int | None = None) -> WithoutEach:
        """Aggregate the other m - 1 updates, for each of the m workers left out (Section 5)."""
        rows, known = self._checked(updates, c, beta)
        if self.leave_one_out is not None:
            given = rows if is_built_in(self.leave_one_out) else rows.copy()
            return self.leave_one_out(given, **known)
        workers = np.arange(len(rows))
        rest = (take_rows(rows, np.delete(workers, i)) for i in workers)
        return WithoutEach(
            backend.nd.stack(*[self(others, c=c, beta=beta) for others in rest]), workers
        )

    def _checked(self, updates: Any, c: int, beta: int | None) -> tuple[NDArray, dict[str, int]]:
        known = {"c": c, "beta": c if beta is None else beta}
        for name, value in known.items():
            if not isinstance(value, (int, np.integer)) or value < 0:
                raise BadInput(f"{name} is {value!r}; it must be a whole number of at least 0.")
        rows = as_updates(updates, f"rule {self.name!r}")
        if self.limit is not None:
            self.limit.check(f"rule {self.name!r}", len(rows), **known)
        return rows, {name: operator.index(known[name]) for name in self.parameters}


rules: Registry[Rule] = Registry("rule")


def rule(
    name: str,
    limit: Limit | None = None,
    leave_one_out: Callable[..., WithoutEach] | None = None,
) -> Callable:
    """Register a function `(updates[, c][, beta]) -> (d,)` as aggregation rule `name`.

    The function is given a float32 NDArray (m, d) within the limit, and returns d numbers, as an
    NDArray or a numpy array. Called by its own name it checks its arguments and result as
    `Rule.__call__` does.
    """

    def register(function: Callable[..., NDArray]) -> Callable[..., NDArray]:
        parameters = tuple(inspect.signature(function).parameters)[1:]
        strange = sorted(set(parameters) - {"c", "beta"})
        if strange:
            raise BadInput(
                f"rule {name!r} takes {', '.join(strange)}; after the updates a rule may take c "
                "and beta only."
            )
        entry = Rule(name, function, limit, parameters, leave_one_out)
        rules.add(name, entry)
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            (_, updates), *values = bound.arguments.items()
            return entry(updates, **{"c": 0, **dict(values)})

        return checked

    return register


def _each_its_own(aggregates: NDArray) -> WithoutEach:
    return WithoutEach(aggregates, np.arange(len(aggregates)))


def _mean_without(updates: NDArray) -> WithoutEach:
    # Not (total - own) / (m - 1): one large value would leave nothing of the others.
    return _each_its_own(middle_means_without(updates, 0, len(updates) - 1))


@rule("mean", leave_one_out=_mean_without)
def mean(updates: NDArray) -> NDArray:
    """Mean of each parameter (not robust).

    Summed in float32, or in float64 where that overflows. Allocates 2 bytes a parameter, or 10
    where a sum is not finite.

    >>> from fltrust_repro import mean
    >>> mean([[1, 2], [3, 6]])
    array([2., 4.], dtype=float32)
    """
    array, xp = array_view(updates)
    if xp is not np:
        return to_ndarray(array.mean(axis=0))
    with np.errstate(over="ignore", invalid="ignore"):
        out = array.mean(axis=0)
        lost = ~np.isfinite(out)
        if lost.any():
            np.copyto(out, array.mean(axis=0, dtype=np.float64), where=lost, casting="same_kind")
    return to_ndarray(out)


def krum_scores(squared: Any, neighbours: int) -> Any:
    """Krum's score of each of n models: summed squared distances to its nearest neighbours.

    `squared` holds squared distances, shape (..., n, n), on the host or a GPU, where the scores
    (..., n) stay; a model is no neighbour of itself. Summed from the nearest on, so that models
    with the same distances have the same score.
    """
    xp = module_of(squared)
    if neighbours < 1:
        return xp.zeros_like(squared[..., 0])
    nearest = xp.sort(xp.where(off_diagonal(squared), squared, np.inf), axis=-1)[..., :neighbours]
    if xp is not np:
        # The compensated sums of mx.np make NaN of infinities.
        return xp.minimum(nearest, _FARTHEST).sum(axis=-1)
    return nearest.cumsum(axis=-1)[..., -1]  # one after another, as `_krum_among` adds


def krum_choice(squared: Any, neighbours: int) -> Any:
    """Return the index of the model that Krum selects, shape (1,); among equals the lowest.

    Of squared distances (k, n, n) those of k selections, shape (k,).
    """
    scores = krum_scores(squared, neighbours)
    return scores.reshape(-1, scores.shape[-1]).argmin(axis=1)


@compiled
def _krum_among(
    squared: np.ndarray, nearest: np.ndarray, taking_part: np.ndarray, neighbours: int
) -> int:
    # `krum_choice` of the models taking part; row i of `nearest` is i and then the others by
    # distance from it.
    choice, least = -1, np.inf
    for i in range(len(squared)):
        if not taking_part[i]:
            continue
        score, counted = 0.0, 0
        for k in nearest[i, 1:]:
            if counted == neighbours:
                break
            if taking_part[k]:
                score += squared[i, k]
                counted += 1
        if choice < 0 or score < least:
            choice, least = i, score
    return choice


def _nearest_first(squared: np.ndarray) -> np.ndarray:
    itself_first = squared + np.diag(np.full(len(squared), -1.0))
    return np.argsort(itself_first, axis=1, kind="stable")


def _krum_without(updates: NDArray, c: int) -> WithoutEach:
    m = len(updates)
    [squared] = fetch(squared_distances(updates))
    nearest = _nearest_first(squared)
    taking_part = ~np.eye(m, dtype=bool)
    chosen = [_krum_among(squared, nearest, row, max(m - c - 3, 1)) for row in taking_part]
    few, which = np.unique(chosen, return_inverse=True)
    return WithoutEach(take_rows(updates, few), which)


@rule("krum", Limit("m - c - 2", lambda m, c, beta: m - c - 2), leave_one_out=_krum_without)
def krum(updates: NDArray, c: int) -> NDArray:
    """Select the update with the smallest sum of squared distances to its m - c - 2 nearest.

    Of equal ones the first is selected. Allocates a block of columns and a few (m, m) matrices.

    >>> from fltrust_repro import krum
    >>> krum([[0, 9], [1, 1], [1, 2], [2, 1], [1, 1.5]], c=1)
    array([1. , 1.5], dtype=float32)
    """
    return take_rows(updates, krum_choice(squared_distances(updates), len(updates) - c - 2))[0]


def bulyan_selection(squared: Any, c: int, theta: int) -> Any:
    """Select theta models by Krum, one after another, each among those not selected yet.

    `squared` holds squared distances, shape (m, m), on the host or a GPU, where the selection
    stays. With n models left, Krum looks at n - c - 2 neighbours, at least 1; of equal models it
    selects the first.
    """
    if module_of(squared) is not np:
        return _selection_operators(squared, c, theta)
    nearest = _nearest_first(squared)
    left = np.ones(len(squared), dtype=bool)
    selected = np.empty(theta, dtype=np.int64)
    for t in range(theta):
        selected[t] = _krum_among(squared, nearest, left, max(len(squared) - t - c - 2, 1))
        left[selected[t]] = False
    return selected


def _selection_operators(squared: Any, c: int, theta: int) -> Any:
    xp, m = module_of(squared), len(squared)
    number = xp.arange(m, dtype="int64", ctx=squared.ctx)  # argmin's type
    left, selected = number >= 0, []
    for t in range(theta):
        among = xp.where(left.reshape(1, -1), squared, np.inf)
        scores = xp.where(left, krum_scores(among, max(m - t - c - 2, 1)), np.inf)
        selected.append(scores.reshape(1, -1).argmin(axis=1))
        left = left * (number != selected[-1])
    return xp.concatenate(selected)


@rule("bulyan", Limit("m - 4c", lambda m, c, beta: m - 4 * c))
def bulyan(updates: NDArray, c: int) -> NDArray:
    """Mean of each parameter's gamma values closest to the median, of theta models Krum selects.

    theta = m - 2c and gamma = theta - 2c (2.2, Appendix A). Allocates what Krum does; the selected
    updates are not copied.

    >>> from fltrust_repro import bulyan
    >>> bulyan([[0], [1], [2], [4], [99]], c=1)
    array([1.], dtype=float32)
    """
    m = len(updates)
    selected = bulyan_selection(squared_distances(updates), c, m - 2 * c)
    return mean_around_median(updates, selected, m - 4 * c)


def _trimmed_mean_without(updates: NDArray, beta: int) -> WithoutEach:
    return _each_its_own(middle_means_without(updates, beta, len(updates) - 1 - beta))


@rule(
    "trimmed-mean",
    Limit("m - 2 beta", lambda m, c, beta: m - 2 * beta),
    leave_one_out=_trimmed_mean_without,
)
def trimmed_mean(updates: NDArray, beta: int) -> NDArray:
    """Mean of each parameter without its beta largest and beta smallest values.

    Allocates a block of columns.

    >>> from fltrust_repro import trimmed_mean
    >>> trimmed_mean([[1], [2], [4], [99]], beta=1)
    array([3.], dtype=float32)
    """
    return middle_mean(updates, beta, len(updates) - beta)


def _median_without(updates: NDArray) -> WithoutEach:
    left = len(updates) - 1
    return _each_its_own(middle_means_without(updates, (left - 1) // 2, left // 2 + 1))


@rule("median", leave_one_out=_median_without)
def median(updates: NDArray) -> NDArray:
    """Median of each parameter; for even m the mean of the middle two.

    Allocates a block of columns.

    >>> from fltrust_repro import median
    >>> median([[1], [2], [4], [99]])
    array([3.], dtype=float32)
    """
    m = len(updates)
    return middle_mean(updates, (m - 1) // 2, m // 2 + 1)
