"""Byzantine-robust aggregation rules (paper, Section 2.2): (m, d) updates -> (d,) update.

All rules here are translation-equivariant, so that aggregating updates `delta_i = w_i - w_re` is
aggregating local models (paper, 2.1). A rule is a function of `updates` and, by name, of the
parameters it needs: `c`, how many workers may be compromised, and `beta`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fltrust_repro.backend import NDArray, array_view, to_ndarray
from fltrust_repro.errors import BadInput
from fltrust_repro.kernels import middle_mean, squared_distances
from fltrust_repro.registry import Registry


@dataclass(frozen=True)
class Limit:
    """A quantity of m, c and beta that has to be at least 1 for a rule or attack to make sense."""

    text: str
    value: Callable[[int, int, int], int]

    def check(self, user: str, m: int, c: int, beta: int) -> None:
        """Raise `BadInput` where the quantity is below 1."""
        value = self.value(m, c, beta)
        if value < 1:
            raise BadInput(
                f"{user} needs {self.text} >= 1, but with m = {m} workers, c = {c} compromised and "
                f"beta = {beta} it is {value}; use more workers, or a smaller c or beta."
            )


@dataclass(frozen=True)
class Rule:
    """An aggregation rule with its limit; `parameters` are those of `c`, `beta` that it takes."""

    name: str
    function: Callable[..., NDArray]
    limit: Limit | None
    parameters: tuple[str, ...]

    def __call__(self, updates: NDArray, *, c: int, beta: int) -> NDArray:
        """Aggregate updates of shape (m, d) to shape (d,)."""
        known = {"c": c, "beta": beta}
        return self.function(updates, **{name: known[name] for name in self.parameters})


rules: Registry[Rule] = Registry("rule")


def rule(name: str, limit: Limit | None = None) -> Callable:
    """Register a function `(updates[, c][, beta]) -> (d,)` as aggregation rule `name`."""

    def register(function: Callable[..., NDArray]) -> Callable[..., NDArray]:
        parameters = tuple(inspect.signature(function).parameters)[1:]
        strange = sorted(set(parameters) - {"c", "beta"})
        if strange:
            raise BadInput(
                f"rule {name!r} takes {', '.join(strange)}; after the updates a rule may take c "
                "and beta only."
            )
        rules.add(name, Rule(name, function, limit, parameters))
        return function

    return register


@rule("mean")
def mean(updates: NDArray) -> NDArray:
    """Mean of each parameter (not robust).

    >>> mean(nd.array([[1, 2], [3, 6]])).asnumpy()
    array([2., 4.], dtype=float32)
    """
    array, _ = array_view(updates)
    return to_ndarray(array.mean(axis=0))


def krum_scores(squared: np.ndarray, neighbours: int) -> np.ndarray:
    """Krum's score of each of n models: summed squared distances to its nearest neighbours.

    `squared` holds squared distances, shape (n, n); a model is no neighbour of itself.
    """
    if neighbours < 1:
        return np.zeros(len(squared))
    others = squared + np.diag(np.full(len(squared), np.inf))
    return np.partition(others, neighbours - 1, axis=1)[:, :neighbours].sum(axis=1)


def krum_choice(squared: np.ndarray, neighbours: int) -> int:
    """Return the index of the model that Krum selects; among equals the first."""
    return int(np.argmin(krum_scores(squared, neighbours)))


@rule("krum", Limit("m - c - 2", lambda m, c, beta: m - c - 2))
def krum(updates: NDArray, c: int) -> NDArray:
    """Select the update with the smallest sum of squared distances to its m - c - 2 nearest.

    >>> krum(nd.array([[0, 9], [1, 1], [1, 2], [2, 1], [1, 1.5]]), c=1).asnumpy()
    array([1. , 1.5], dtype=float32)
    """
    chosen = krum_choice(squared_distances(updates), len(updates) - c - 2)
    return updates[chosen].copy()


@rule("trimmed-mean", Limit("m - 2 beta", lambda m, c, beta: m - 2 * beta))
def trimmed_mean(updates: NDArray, beta: int) -> NDArray:
    """Mean of each parameter without its beta largest and beta smallest values.

    >>> trimmed_mean(nd.array([[1], [2], [4], [99]]), beta=1).asnumpy()
    array([3.], dtype=float32)
    """
    return middle_mean(updates, beta, len(updates) - beta)


@rule("median")
def median(updates: NDArray) -> NDArray:
    """Median of each parameter; for even m the mean of the middle two.

    >>> median(nd.array([[1], [2], [4], [99]])).asnumpy()
    array([3.], dtype=float32)
    """
    m = len(updates)
    return middle_mean(updates, (m - 1) // 2, m // 2 + 1)
