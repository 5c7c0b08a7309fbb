"""Rules that look along the direction in which the updates spread most.

Attackers who push the aggregate one way stand out together there. Both rules see the updates by
their squared distances D alone: with weights p of sum 1 and the mean mu = sum_i p_i x_i, the inner
product of x_i - mu and x_j - mu is

    B_ij = ((D p)_i + (D p)_j - D_ij - p' D p) / 2,

and with u the leading eigenvector, of eigenvalue lambda, of the (m, m) matrix sqrt(p_i p_j) B_ij,
the leading eigenvector v of the covariance, which has d entries, has lambda for its eigenvalue and

    (x_i - mu) . v = sum_j B_ij sqrt(p_j) u_j / sqrt(lambda).

That is exact, the same at every call, and costs what Krum's distances do. Rows that are not finite
are the first to be left out; where no row is finite, the result is NaN. Notes: "workers kept",
by their weights, summed over iterations.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from fltrust_repro.aggregation import rule
from fltrust_repro.distances import squared_distances
from fltrust_repro.doors import Limit
from fltrust_repro.errors import BadInput
from fltrust_repro.registry import check_default
from fltrust_repro.weighing import finite_rows, weighted_mean


def products_of(squared: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """Return B, float64 (n, n): inner products of points seen from their mean.

    Under `shares`, float64 (n,), of sum 1; all the same unless given.
    """
    shares = _equal(squared) if shares is None else shares
    away = squared @ shares
    return (away[:, None] + away - squared - shares @ away) / 2


def _equal(squared: np.ndarray) -> np.ndarray:
    return np.full(len(squared), 1 / len(squared))


def spread(squared: np.ndarray, shares: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Return the largest variance that points have along any direction, and where they lie on it.

    `squared`, float64 (n, n), holds the points' squared distances, `shares`, float64 (n,), their
    weights, of sum 1, all the same unless given. Places, float64 (n,), are counted from the
    weighted mean, either way along the direction; they are zeros where the variance is 0.
    """
    from scipy.linalg import eigh  # which takes a while to load

    shares = _equal(squared) if shares is None else shares
    products = products_of(squared, shares)
    roots, last = np.sqrt(shares), len(squared) - 1
    values, vectors = eigh(roots[:, None] * products * roots, subset_by_index=[last, last])
    if values[0] <= 0:
        return 0.0, np.zeros(len(squared))
    return float(values[0]), products @ (roots * vectors[:, 0]) / np.sqrt(values[0])


def filtered(squared: np.ndarray, enough: int, price: float = 0.0) -> np.ndarray:
    """Return CAF's weights, float64 (n,), of points by their squared distances.

    Of all on the way whose sum is above `enough`, those of least variance along their widest
    direction, divided by the share of weight left to the power of `price`.
    """
    weights = best = np.ones(len(squared))
    least = np.inf
    while weights.sum() > enough:
        variance, places = spread(squared, weights / weights.sum())
        variance /= (weights.sum() / len(squared)) ** price
        if variance < least:
            least, best = variance, weights
        outlying = np.square(places)
        farthest = outlying.max(where=weights > 0, initial=0.0)
        if farthest == 0:
            break
        weights = weights * np.maximum(1 - outlying / farthest, 0)
    return best


@rule("caf", Limit("m - 2c", lambda m, c, beta: m - 2 * c))
def caf(updates: np.ndarray, c: int, notes: Counter[str]) -> np.ndarray:
    """Covariance-bound-agnostic filter: the weighted mean whose covariance is least at its largest.

    From weights q_i = 1 on, while their sum is above m - 2c: with the weighted mean mu and the
    leading eigenvector v of the weighted covariance, tau_i = ((x_i - mu) . v)^2 and
    q_i <- q_i (1 - tau_i / max tau), the maximum over rows of weight left. The mean of the least
    leading eigenvalue on the way is the result: the plain mean where c = 0. At most 2c eigenvectors
    of (m, m) matrices are computed.

    Allouah, Guerraoui and Stephan, "Towards trustworthy federated learning with untrusted
    participants", ICML 2025. The code in ByzFL takes v from one step of a power iteration with a
    random start, and the maximum over all rows. Needs m - 2c >= 1. Allocates what Krum does.

    >>> from fltrust_repro.spectral import caf
    >>> caf([[1, 2], [2, 1], [1, 1], [2, 2], [99, -99]], c=1).round(2)
    array([1.5, 1.5], dtype=float32)
    """
    finite = finite_rows(updates)
    weights = np.zeros(len(updates))
    squared = squared_distances(updates)[np.ix_(finite, finite)]
    weights[finite] = filtered(squared, len(updates) - 2 * c)
    notes["workers kept"] += weights.sum()
    return weighted_mean(updates, weights)


@rule("dnc", Limit("m - c", lambda m, c, beta: m - c))
def dnc(
    updates: np.ndarray,
    c: int,
    rng: np.random.Generator,
    notes: Counter[str],
    *,
    iterations: int = 1,
    fraction: float = 1.0,
    b: int = 10_000,
) -> np.ndarray:
    """Divide and conquer: mean of the updates that lie least far along the widest direction.

    In each iteration, on b coordinates drawn at random (all, if there are no more), with the mean
    mu and the leading right singular vector v of the centred updates, those of the m - fraction c
    smallest scores ((x_i - mu) . v)^2 are kept. The result is the mean, in all coordinates, of
    those kept in every iteration; if there are none, of those kept most often.

    Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, Algorithm 2. They published
    no code; public code takes 1 or 5 iterations: each may lose c others. fraction c is rounded; it
    has to be below m. Allocates m b numbers, and what Krum does for b columns.

    >>> from fltrust_repro.spectral import dnc
    >>> dnc([[1, 2], [2, 1], [1, 1], [2, 2], [99, -99]], c=1)
    array([1.5, 1.5], dtype=float32)
    """
    (m, d), finite = updates.shape, finite_rows(updates)
    keep = m - round(fraction * c)
    check_default("rule 'dnc'", "iterations", iterations, int)
    check_default("rule 'dnc'", "b", b, int)
    if not 1 <= keep <= m:
        raise BadInput(
            f"rule 'dnc': fraction is {fraction}; fraction * c must be at least 0 and below m "
            f"(c = {c} compromised, m = {m} workers)."
        )
    kept = np.zeros(m)
    for _ in range(iterations if finite.any() else 0):
        part = updates if b >= d else updates.take(np.sort(rng.choice(d, b, replace=False)), 1)
        squared = squared_distances(part)[np.ix_(finite, finite)]
        _, places = spread(squared)
        lowest = np.argsort(np.abs(places), kind="stable")[:keep]
        kept[np.flatnonzero(finite)[lowest]] += 1
    most = (kept > 0) & (kept == kept.max())
    notes["workers kept"] += np.count_nonzero(most)
    return weighted_mean(updates, most)
