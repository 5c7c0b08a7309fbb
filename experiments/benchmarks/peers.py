"""Other libraries' aggregation rules, each behind the same two calls as ours.

A library gives, for a rule, a function of the updates (m, d) and c (= beta) that returns another
one to be timed; what turns the updates into the arrays that it likes best stays outside of that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Aggregate = Callable[[], Any]
Prepare = Callable[[np.ndarray, int], Aggregate]
DISTANCES = "distances"  # what Krum and Bulyan are made of; of numpy the Gram matrix alone


class Library(NamedTuple):
    """What has to be importable, and how to get its rules by our names."""

    needs: tuple[str, ...]
    load: Callable[[], dict[str, Prepare]]

    @property
    def missing(self) -> str:
        """Names of the packages that are not installed."""
        return ", ".join(name for name in self.needs if importlib.util.find_spec(name) is None)


def _ours() -> dict[str, Prepare]:
    from fltrust_repro.aggregation import rules
    from fltrust_repro.distances import squared_distances

    def distances(matrix: np.ndarray, c: int) -> Aggregate:
        return lambda: squared_distances(matrix)

    def prepare_as(name: str) -> Prepare:
        return lambda matrix, c: lambda: rules[name](matrix, c=c, beta=c)

    names = ("mean", "trimmed-mean", "median", "krum", "bulyan")
    return {**{name: prepare_as(name) for name in names}, DISTANCES: distances}


# --- plain numpy: what one would write first


def _squared_distances(matrix: np.ndarray) -> np.ndarray:
    products = matrix @ matrix.T
    norms = np.diag(products)
    squared = norms[:, None] + norms[None, :] - 2 * products
    np.fill_diagonal(squared, np.inf)
    return squared


def _nearest_sums(squared: np.ndarray, neighbours: int) -> np.ndarray:
    return np.partition(squared, neighbours - 1, axis=1)[:, :neighbours].sum(axis=1)


def _numpy_trimmed_mean(matrix: np.ndarray, c: int) -> np.ndarray:
    return np.sort(matrix, axis=0)[c : len(matrix) - c].mean(axis=0)


def _numpy_krum(matrix: np.ndarray, c: int) -> np.ndarray:
    return matrix[_nearest_sums(_squared_distances(matrix), len(matrix) - c - 2).argmin()]


def _numpy_bulyan(matrix: np.ndarray, c: int) -> np.ndarray:
    squared, left = _squared_distances(matrix), np.arange(len(matrix))
    selected = []
    for _ in range(len(matrix) - 2 * c):
        scores = _nearest_sums(squared[np.ix_(left, left)], max(len(left) - c - 2, 1))
        selected.append(left[scores.argmin()])
        left = left[left != selected[-1]]
    rows = matrix[selected]
    order = np.argsort(np.abs(rows - np.median(rows, axis=0)), axis=0)
    return np.take_along_axis(rows, order[: len(matrix) - 4 * c], axis=0).mean(axis=0)


def _numpy() -> dict[str, Prepare]:
    def prepare_as(function: Callable[[np.ndarray, int], np.ndarray]) -> Prepare:
        return lambda matrix, c: lambda: function(matrix, c)

    return {
        "mean": prepare_as(lambda matrix, c: matrix.mean(axis=0)),
        "trimmed-mean": prepare_as(_numpy_trimmed_mean),
        "median": prepare_as(lambda matrix, c: np.median(matrix, axis=0)),
        "krum": prepare_as(_numpy_krum),
        "bulyan": prepare_as(_numpy_bulyan),
        DISTANCES: prepare_as(lambda matrix, c: matrix @ matrix.T),
    }


# --- libraries that pip can install


def _torch() -> dict[str, Prepare]:
    import torch

    torch.set_num_threads(1)

    def middle(first: Callable[[int, int], int]) -> Prepare:
        def prepare(matrix: np.ndarray, c: int) -> Aggregate:
            tensor, m = torch.from_numpy(matrix), len(matrix)
            start = first(m, c)
            return lambda: torch.sort(tensor, dim=0)[0][start : m - start].mean(dim=0)

        return prepare

    return {
        "mean": lambda matrix, c: (lambda tensor: lambda: tensor.mean(dim=0))(
            torch.from_numpy(matrix)
        ),
        "trimmed-mean": middle(lambda m, c: c),
        "median": middle(lambda m, c: (m - 1) // 2),
    }


def _byzfl(array_of: Callable[[np.ndarray], Any]) -> dict[str, Prepare]:
    import byzfl

    def prepare_as(make: Callable[[int], Callable]) -> Prepare:
        def prepare(matrix: np.ndarray, c: int) -> Aggregate:
            vectors, aggregate = array_of(matrix), make(c)
            return lambda: aggregate(vectors)

        return prepare

    return {
        "mean": prepare_as(lambda c: byzfl.Average()),
        "trimmed-mean": prepare_as(byzfl.TrMean),
        "median": prepare_as(lambda c: byzfl.Median()),
        "krum": prepare_as(byzfl.Krum),
    }


def _byzfl_torch() -> dict[str, Prepare]:
    import torch

    torch.set_num_threads(1)
    return _byzfl(torch.from_numpy)


def _flower() -> dict[str, Prepare]:
    from flwr.server.strategy import aggregate as flower

    def prepare_as(function: Callable[[list, int], list[np.ndarray]]) -> Prepare:
        def prepare(matrix: np.ndarray, c: int) -> Aggregate:
            # One layer per client, a view of its row; made anew as Bulyan empties the list.
            return lambda: function([([row], 1) for row in matrix], c)[0]

        return prepare

    def bulyan(results: list, c: int) -> list[np.ndarray]:
        return flower.aggregate_bulyan(results, c, flower.aggregate_krum, to_keep=0)

    return {
        "mean": prepare_as(lambda results, c: flower.aggregate(results)),
        # Half a value more, so that rounding down the product gives c again.
        "trimmed-mean": prepare_as(
            lambda results, c: flower.aggregate_trimmed_avg(results, (c + 0.5) / len(results))
        ),
        "median": prepare_as(lambda results, c: flower.aggregate_median(results)),
        "krum": prepare_as(lambda results, c: flower.aggregate_krum(results, c, 0)),
        "bulyan": prepare_as(bulyan),
    }


OURS = "fltrust_repro"
LIBRARIES = {
    OURS: Library(("mxnet",), _ours),
    "numpy": Library((), _numpy),
    "torch": Library(("torch",), _torch),
    "byzfl, numpy": Library(("byzfl",), lambda: _byzfl(lambda matrix: matrix)),
    "byzfl, torch": Library(("byzfl", "torch"), _byzfl_torch),
    "flower": Library(("flwr",), _flower),
}

# Where a peer's definition is another one than the paper's.
DEFINITIONS = {
    ("byzfl, numpy", "krum"): "m - c - 1 neighbours, not m - c - 2",
    ("byzfl, torch", "krum"): "m - c - 1 neighbours, not m - c - 2",
}
