"""Robust means of other papers (since 2017): each worker or value is kept, shortened or voted on.

Rules as in `aggregation`; each names its paper. Unless one's own parameter says so, no scale is
absolute: a radius counts in median lengths, since updates are `-alpha * gradient` and shrink as
training goes on. All workers count alike, however many examples they have. A row that is not finite
gets no weight in a mean of rows, which is NaN where none is left, and adds nothing to a sum of
shortened ones; where votes are counted, its values but NaN have theirs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from fltrust_repro.aggregation import rule
from fltrust_repro.diameters import smallest_diameter
from fltrust_repro.distances import (
    cosines,
    distances_from,
    inner_products,
    products_amid,
    squared_distances,
)
from fltrust_repro.doors import Limit, as_numbers
from fltrust_repro.errors import BadInput
from fltrust_repro.kernels import mean_around_median, mean_around_middle
from fltrust_repro.registry import check_default
from fltrust_repro.weighing import (
    finite_rows,
    lengths,
    shortening,
    sign_votes,
    weighted_mean,
    weighted_sum,
)

_MOST_STEPS = 1000
_LEAST_NU = 1e-7  # shorter distances are lost in the rounding of inner products
_SETTLED = 1e-4  # of the weight
_STILL = 1e-8  # a step this short beside the updates' distances is below float32's rounding
_MOST_REMOVED = 50  # by mda's exact search, whose time may grow 1.47 times with each


@rule("multi-krum", Limit("m - c - 2", lambda m, c, beta: m - c - 2))
def multi_krum(updates: np.ndarray, c: int, *, q: int | None = None) -> np.ndarray:
    """Mean of the q updates with the smallest sums of squared distances to their m - c - 2 nearest.

    Blanchard, El Mhamdi, Guerraoui, Stainer (NeurIPS 2017), in their experiments: one scoring
    selects all q; of equal scores the first. q is m - c unless given; with 1 it is Krum. A row that
    is not finite is not among them; where no other is, the result is NaN. Allocates what Krum does.

    >>> from fltrust_repro.robust_means import multi_krum
    >>> multi_krum([[0], [1], [2], [4], [99]], c=1, q=3)
    array([1.], dtype=float32)
    """
    m = len(updates)
    q = m - c if q is None else q
    check_default("rule 'multi-krum'", "q", q, int)
    if q > m:
        raise BadInput(f"rule 'multi-krum': q is {q} of m = {m} workers; give one from 1 to {m}.")
    scores = krum_scores(squared_distances(updates), m - c - 2)
    weights = np.zeros(m)
    weights[np.argsort(scores, kind="stable")[:q]] = 1
    weights[~finite_rows(updates)] = 0
    return weighted_mean(updates, weights)


def krum_scores(squared: np.ndarray, neighbours: int) -> np.ndarray:
    """Krum's score of each model: squared distances (m, m) to its nearest, summed from these on.

    One after the other, as `aggregation.Crowd` sums them: what is equal there is equal here.
    """
    itself_first = squared - np.eye(len(squared))
    return np.sort(itself_first, axis=1)[:, 1:].cumsum(axis=1)[:, neighbours - 1]


@rule("geometric-median")
def geometric_median(updates: np.ndarray, notes: Counter[str], *, nu: float = 1e-6) -> np.ndarray:
    """Point with the least sum of distances to all updates.

    Smoothed Weiszfeld iteration of Pillutla, Kakade, Harchaoui ("RFA", IEEE Transactions on Signal
    Processing 2022), Algorithm 2: z <- sum_i b_i x_i / sum_i b_i, where b_i = 1 / max(nu, |x_i -
    z|). Theirs makes a few steps from the mean; this one begins at the mean of the half of all rows
    that lie closest around one, so that rows however far away are not to be left behind first, and
    goes on until z stands still (notes: Weiszfeld steps). Their nu is absolute; here it counts in
    median distances from the row that half of all rows lie closest around. Rows that are not finite
    are left out. Each z is a mean of updates, so that its distances follow from their inner
    products: a Gram, as Krum's, and one sum over d at the end. Allocates what Krum does.

    >>> from fltrust_repro.robust_means import geometric_median
    >>> geometric_median([[0, 0], [2, 0], [0, 2], [2, 2], [1, 1]])
    array([1., 1.], dtype=float32)
    """
    check_default("rule 'geometric-median'", "nu", nu, float)
    if nu < _LEAST_NU:
        raise BadInput(f"rule 'geometric-median': nu is {nu}; give at least {_LEAST_NU}.")
    products, finite = products_amid(updates)
    weights = np.zeros(len(updates))
    if finite.any():
        weights[finite], steps = weiszfeld(products[np.ix_(finite, finite)], nu)
        notes["Weiszfeld steps"] += steps
    return weighted_mean(updates, weights)


def weiszfeld(products: np.ndarray, nu: float) -> tuple[np.ndarray, int]:
    """Weights (n,) of sum 1 under which points have their geometric median as mean, and the steps.

    `products`, float64 (n, n), are the inner products of the points, seen from near most of them:
    a far one's large products then meet a weight that is as small, and nothing cancels.
    """
    n = len(products)
    squared = distances_from(products, np.ones(n, dtype=bool))
    half_around = np.sort(squared, axis=1)[:, n // 2]
    scale = np.sqrt(half_around.min())
    close = squared[half_around.argmin()] <= half_around.min()
    weights, own, steps = close / np.count_nonzero(close), np.diag(products), 0
    if scale == 0:  # most points are one, which is the median
        return weights, steps
    still = min(_STILL, nu / 100)  # a first step away from a point is about nu
    for _ in range(_MOST_STEPS):
        steps += 1
        across = products @ weights
        away = np.sqrt(np.maximum(own - 2 * across + weights @ across, 0))
        nearness = 1 / np.maximum(away, nu * scale)
        change = nearness / nearness.sum() - weights
        weights = weights + change
        # While much weight moves, the rounding of products hides how far z does.
        if change @ products @ change <= (still * scale) ** 2 and np.abs(change).sum() < _SETTLED:
            break
    return weights, steps


def _shortening(away: np.ndarray, most: float, notes: Counter[str]) -> np.ndarray:
    """Factors that bring lengths down to `most`; how many shorten is counted."""
    factors = shortening(away, most)
    notes["updates shortened"] += np.count_nonzero(factors < 1)
    return factors


@rule("norm-clipping")
def norm_clipping(updates: np.ndarray, notes: Counter[str], *, radius: float = 1.0) -> np.ndarray:
    """Mean of all updates, each shortened to at most `radius` times the median length.

    (1/m) sum_i x_i min(1, M / |x_i|), after Sun, Kairouz, Suresh, McMahan ("Can You Really Backdoor
    Federated Learning?", 2019), whose M is absolute and whose noise is left out. A row that is not
    finite is infinitely long and adds nothing. Notes: updates shortened. Allocates 16 bytes a
    parameter.

    >>> from fltrust_repro.robust_means import norm_clipping
    >>> norm_clipping([[1, 0], [0, 2], [0, 80], [0, 2]])
    array([0.25, 1.5 ], dtype=float32)
    """
    check_default("rule 'norm-clipping'", "radius", radius, float)
    away = lengths(updates)
    factors = _shortening(away, radius * float(np.median(away)), notes)
    return _rounded(weighted_sum(updates, factors) / len(updates))


def _rounded(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


@rule("centered-clipping")
def centered_clipping(
    updates: np.ndarray,
    memory: dict[str, Any],
    notes: Counter[str],
    *,
    radius: float = 1.0,
    iterations: int = 1,
    tau: float | None = None,
) -> np.ndarray:
    """Last round's result and the mean of the differences from it, each shortened to tau at most.

    v <- v + (1/m) sum_i (x_i - v) min(1, tau / |x_i - v|), so many `iterations` on from the v of
    the round before, which is 0 at first (Karimireddy, He, Jaggi, ICML 2021; one iteration in its
    authors' code, three in that of their paper on bucketing, ICLR 2022). Their tau is absolute, for
    workers' momentum; here it is `radius` times the median |x_i - v| at the round's start, unless
    given: the later paper's of gradients, 10, is 10 times the learning rate of updates. A row that
    is not finite adds nothing. Notes: updates shortened. Allocates 32 bytes a parameter.

    >>> import numpy as np
    >>> from fltrust_repro.robust_means import centered_clipping
    >>> centered_clipping([[1], [2], [90]], memory={"centre": np.float32([1])})
    array([1.6666666], dtype=float32)
    """
    check_default("rule 'centered-clipping'", "radius", radius, float)
    check_default("rule 'centered-clipping'", "iterations", iterations, int)
    m, d = updates.shape
    kept = memory.get("centre", np.zeros(d))
    centre = as_numbers(kept, (d,), "rule 'centered-clipping'", "its centre").astype(np.float64)
    if tau is not None:
        check_default("rule 'centered-clipping'", "tau", tau, float)
    for _ in range(iterations):
        away = lengths(updates, centre)
        tau = radius * float(np.median(away)) if tau is None else tau
        factors = _shortening(away, tau, notes)
        centre = (1 - factors.sum() / m) * centre + weighted_sum(updates, factors) / m
    memory["centre"] = _rounded(centre)
    return memory["centre"].copy()


@rule("meamed", Limit("m - 2c", lambda m, c, beta: m - 2 * c))
def meamed(updates: np.ndarray, c: int) -> np.ndarray:
    """Mean of each parameter's m - c values closest to the median.

    "Mean around median" of Xie, Koyejo, Gupta ("Generalized Byzantine-tolerant SGD", 2018); of two
    equally far values the smaller one. Allocates a block of columns.

    >>> from fltrust_repro.robust_means import meamed
    >>> meamed([[1], [2], [4], [5], [99]], c=2)
    array([3.6666667], dtype=float32)
    """
    return mean_around_median(updates, np.arange(len(updates)), len(updates) - c)


@rule("phocas", Limit("m - 2 beta", lambda m, c, beta: m - 2 * beta))
def phocas(updates: np.ndarray, beta: int) -> np.ndarray:
    """Mean of each parameter's m - beta values closest to its trimmed mean.

    The trimmed mean is that without the beta largest and beta smallest values (Xie, Koyejo, Gupta,
    "Phocas: dimensional Byzantine-resilient stochastic gradient descent", 2018); of two equally far
    values the smaller one. Allocates a block of columns.

    >>> from fltrust_repro.robust_means import phocas
    >>> phocas([[1], [2], [4], [9], [99]], beta=1)
    array([4.], dtype=float32)
    """
    m = len(updates)
    return mean_around_middle(updates, np.arange(m), beta, m - beta)


@rule("mda", Limit("m - 2c", lambda m, c, beta: m - 2 * c))
def mda(updates: np.ndarray, c: int) -> np.ndarray:
    """Mean of the m - c updates with the smallest diameter: "minimum-diameter averaging".

    The diameter is the largest distance of two (El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault,
    PODC 2020, after Rousseeuw's estimators of 1985). Many selections have it, as the two farthest
    updates of one decide; the one kept is the first where workers are in the order of their squared
    distances to all finite ones, and so not by who sent what. Exact, and refused for c beyond 50,
    where nobody can say how long the search takes. Allocates what Krum does.

    >>> from fltrust_repro.robust_means import mda
    >>> mda([[0], [4], [5], [6], [99]], c=2)
    array([5.], dtype=float32)
    """
    if c > _MOST_REMOVED:
        raise BadInput(
            f"rule 'mda' searches exactly, which may take too long for c = {c} compromised; "
            f"use at most {_MOST_REMOVED}, or another rule, such as multi-krum."
        )
    squared, finite = squared_distances(updates), finite_rows(updates)
    far = squared.sum(axis=1, where=np.isfinite(squared))
    order = np.argsort(np.where(finite, far, np.inf), kind="stable")
    kept = np.empty(len(updates), dtype=bool)
    kept[order] = smallest_diameter(squared[np.ix_(order, order)], c)
    return weighted_mean(updates, kept & finite)


@rule("sign-vote")
def sign_vote(updates: np.ndarray, *, step: float = 1.0) -> np.ndarray:
    """Each parameter moves by the same amount, the way that most workers move it.

    eta sign(sum_i sign(x_i)), "signSGD with majority vote" (Bernstein, Zhao, Azizzadenesheli,
    Anandkumar, ICLR 2019, Algorithm 1 without momentum). Their eta is absolute; here the whole step
    is `step` times as long as the median update. A parameter with as many votes for as against
    stays; zero and NaN do not vote. Allocates 24 bytes a parameter.

    >>> from fltrust_repro.robust_means import sign_vote
    >>> sign_vote([[3, 4], [1, 2], [0, -90]], step=0.5)
    array([1.767767, 1.767767], dtype=float32)
    """
    check_default("rule 'sign-vote'", "step", step, float)
    signs = np.sign(sign_votes(updates))
    length = step * float(np.median(lengths(updates)))
    each = length / np.sqrt(max(np.count_nonzero(signs), 1))
    return _rounded(np.multiply(each, signs, out=np.zeros(len(signs)), where=signs != 0))


@rule("rlr")
def rlr(updates: np.ndarray, notes: Counter[str], *, theta: float = 0.4) -> np.ndarray:
    """Mean of each parameter, reversed where too few workers agree on its sign.

    "Robust learning rate" (Ozdayi, Kantarcioglu, Gel, AAAI 2021): the learning rate counts as
    negative where |sum_i sign(x_i)| is below a threshold, here `theta` times m; the authors' code
    takes 4 of 10 workers. Zero and NaN do not vote; rows that are not finite are left out of the
    mean. Notes: parameters reversed. Allocates 17 bytes a parameter.

    >>> from fltrust_repro.robust_means import rlr
    >>> rlr([[3, 4], [1, 2], [2, -3]], theta=0.4)
    array([ 2., -1.], dtype=float32)
    """
    check_default("rule 'rlr'", "theta", theta, float)
    if theta > 1:  # of all votes
        raise BadInput(f"rule 'rlr': theta is {theta}; give a share of the workers, at most 1.")
    agreed = np.abs(sign_votes(updates)) / len(updates) >= theta
    notes["parameters reversed"] += np.count_nonzero(~agreed)
    means = weighted_mean(updates, finite_rows(updates))
    return np.where(agreed, means, -means)


def larger_cluster(products: np.ndarray) -> np.ndarray:
    """Mark the larger of two clusters by cosine, average linkage, the first of equal: bool (n,).

    `products`, float64 (n, n), are the inner products as seen from zero. A row of zeros is at right
    angles to every other.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage  # takes a while to load

    n = len(products)
    if n < 2:
        return np.ones(n, dtype=bool)
    away = np.clip(1 - cosines(products), 0, 2)
    # Not at a height: where the last two merges have the same, there would be one cluster.
    cluster = cut_tree(linkage(away[np.triu_indices(n, 1)], "average"), 2)[:, 0]
    with_first = cluster == cluster[0]
    return with_first if 2 * np.count_nonzero(with_first) >= n else ~with_first


@rule("clipped-clustering")
def clipped_clustering(
    updates: np.ndarray, memory: dict[str, Any], notes: Counter[str]
) -> np.ndarray:
    """Mean of the larger of two clusters by cosine, of updates shortened to the median length.

    Li, Ngai, Voigt ("An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated
    Learning", IEEE Transactions on Big Data 2023): agglomerative clustering with average linkage;
    the median is that of all updates of this and all earlier rounds. Rows that are not finite are
    in neither. Notes: workers kept, updates shortened. Allocates what Krum does.

    >>> from fltrust_repro.robust_means import clipped_clustering
    >>> clipped_clustering([[2, 0], [2, 0], [4, 0], [0, 9]])
    array([2.3333333, 0.       ], dtype=float32)
    """
    away = lengths(updates)
    memory["lengths"] = np.concatenate([memory.get("lengths", away[:0]), away])
    factors = _shortening(away, float(np.median(memory["lengths"])), notes)
    products, finite = inner_products(updates)
    kept = finite.copy()
    kept[finite] = larger_cluster(products[np.ix_(finite, finite)])
    notes["workers kept"] += np.count_nonzero(kept)
    if not kept.any():
        return np.full(updates.shape[1], np.nan, dtype=np.float32)
    return _rounded(weighted_sum(updates, kept * factors) / np.count_nonzero(kept))
