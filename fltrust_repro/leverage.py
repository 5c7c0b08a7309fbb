"""A rule of this program: a mean of what workers keep saying, in which what many say counts once.

Of one iteration's updates nobody can tell 20 workers who push the model a little, all the same way,
from 20 who hold other examples. Three things can be told. Over iterations the noise of batches
averages out, and what a worker keeps saying is left. Attackers who agree share one direction among
many of them, where workers with examples of their own bring one each: their leverage is low. And
what is common to workers of many kinds stands out once each is compared with those most like it.

`experiments/leverage.md` has the numbers that decided each part, and those that it cannot hold.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from fltrust_repro.aggregation import rule
from fltrust_repro.distances import nearest, squared_distances
from fltrust_repro.doors import Limit
from fltrust_repro.errors import BadInput
from fltrust_repro.preaggregations import clip
from fltrust_repro.registry import check_default
from fltrust_repro.spectral import filtered, products_of
from fltrust_repro.weighing import lengths, weighted_mean

_RIDGES = (1.0, 100.0)  # of the median eigenvalue: with the noise of each worker, and beyond it
_PRICE = 1.0  # of weight taken away, for the spectral filter


def remembered(
    rows: np.ndarray, workers: np.ndarray, memory: dict[str, Any], decay: float
) -> np.ndarray:
    """Return each worker's running mean of its rows so far, this one included: float32 (m, d).

    sum_t decay^(n - t) x_t / sum_t decay^(n - t) over its own n rows; one that is not there keeps
    what it has.
    """
    missing = int(workers.max()) + 1 - len(memory.setdefault("counts", np.zeros(0)))
    if missing > 0:
        empty = np.zeros((missing, rows.shape[1]), dtype=np.float32)
        memory["counts"] = np.concatenate([memory["counts"], np.zeros(missing)])
        memory["sums"] = np.concatenate([memory.get("sums", empty[:0]), empty])
    memory["sums"][workers] = np.float32(decay) * memory["sums"][workers] + rows
    memory["counts"][workers] = decay * memory["counts"][workers] + 1
    return memory["sums"][workers] / memory["counts"][workers].astype(np.float32)[:, None]


def _alike(m: int) -> np.ndarray:
    return np.full(m, 1 / m)


def leverages(products: np.ndarray, ridge: float) -> np.ndarray:
    """Return how much of the span of all each point holds alone, float64 (m,).

    That is the leverage h_i, the diagonal of G (G + rho I)^-1, where G holds the inner products
    and rho is `ridge` times its median eigenvalue. Of k points at one place each has 1/k at most.
    """
    values, vectors = np.linalg.eigh(products)
    values = np.maximum(values, 0)
    below = values + ridge * np.median(values)
    shares = np.divide(values, below, out=np.zeros_like(values), where=below > 0)
    return np.square(vectors) @ shares


def voices(products: np.ndarray) -> np.ndarray:
    """Return weights, float64 (m,): (h_i / med h)^2, at most 1; of both ridges the smaller one."""
    least = np.ones(len(products))
    for ridge in _RIDGES:
        found = leverages(products, ridge)
        middle = np.median(found)
        if middle > 0:
            least = np.minimum(least, np.square(found / middle))
    return least


def beside_the_nearest(squared: np.ndarray, near: int) -> np.ndarray:
    """Squared distances (m, m) of what points differ by from the mean of their `near` nearest."""
    m = len(squared)
    others = nearest(squared, near + 1)[:, 1:]
    differing = np.eye(m)
    np.put_along_axis(differing, others, -1 / max(others.shape[1], 1), axis=1)
    products = differing @ products_of(squared, _alike(m)) @ differing.T
    own = np.diag(products)
    return np.maximum(own[:, None] + own - 2 * products, 0)


@rule("leverage", Limit("m - 2c", lambda m, c, beta: m - 2 * c))
def leverage(
    updates: np.ndarray,
    c: int,
    memory: dict[str, Any],
    workers: np.ndarray,
    notes: Counter[str],
    *,
    decay: float = 0.9,
    near: int = 4,
) -> np.ndarray:
    """Leverage: a mean of what workers keep saying, in which what many say counts once.

    (1) Updates are shortened to their median length. (2) e_i is the running mean of worker i's, of
    weight `decay` an iteration, shortened likewise. (3) With G the inner products of e_i - mean and
    h_i the diagonal of G (G + rho I)^-1, a worker's voice is (h_i / med h)^2, at most 1; of rho = 1
    and 100 times the median eigenvalue of G, the smaller voice. (4) It is multiplied by the weights
    of CAF's filter, at most 2c of them lost, on e_i, and on e_i less the mean of its `near`
    nearest; of the weights on the way those of the least leading eigenvalue, divided by the share
    of weight that is left. The result is the mean of (1) under these weights.

    This program's own, for updates of workers who are known by identity. A row that is not finite
    is left out, and not remembered. Remembers (m, d) numbers, and allocates as many twice.
    Notes: "workers kept", by their weights, summed over iterations. Needs m - 2c >= 1.

    >>> from fltrust_repro.leverage import leverage
    >>> leverage([[1, 2], [2, 1], [1, 1], [2, 2], [0, 0.1], [0, 0.1]], c=2).round(1)
    array([1.2, 1.2], dtype=float32)
    """
    check_default("rule 'leverage'", "near", near, int)
    if not 0 <= decay < 1:
        raise BadInput(f"rule 'leverage': decay is {decay}; give a number from 0 to below 1.")
    finite = np.isfinite(lengths(updates))
    rows = updates if finite.all() else updates[finite]
    if not len(rows):
        return weighted_mean(updates, np.zeros(len(updates)))
    rows = clip(rows)
    said = clip(remembered(rows, workers[finite], memory, decay))
    squared = squared_distances(said)
    weights = voices(products_of(squared, _alike(len(rows))))
    for distances in (squared, beside_the_nearest(squared, near)):
        weights = weights * filtered(distances, len(rows) - 2 * c, _PRICE)
    notes["workers kept"] += weights.sum()
    return weighted_mean(rows, weights if weights.any() else np.ones(len(rows)))
