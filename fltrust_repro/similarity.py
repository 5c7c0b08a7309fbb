"""Rules that compare the directions of updates, by cosines or signs, and look at lengths apart.

But for GAS, which looks at distances in groups of parameters, they need not be told how many
workers are compromised, and it matters where updates are counted from, as in their papers: they are
not translation-equivariant. A row that is not finite is left out first, and takes part in no
median, cluster or scale, but in what GAS's base makes of all. Notes: "workers kept", by their
weights, summed over iterations.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from fltrust_repro.aggregation import rule, rules
from fltrust_repro.compiled import Array, compiled
from fltrust_repro.distances import cosines, inner_products, lengths_and_slopes
from fltrust_repro.doors import Limit
from fltrust_repro.errors import BadInput, shown
from fltrust_repro.mean_shift import mean_shift, reach
from fltrust_repro.registry import check_default
from fltrust_repro.server import ServerState, check_base
from fltrust_repro.weighing import finite_rows, lengths, shortening, weighted_mean, weighted_sum

# --- FoolsGold

_ROUNDING = 1e-6  # of a cosine


@rule("foolsgold")
def foolsgold(
    updates: np.ndarray, memory: dict[str, Any], notes: Counter[str], workers: np.ndarray
) -> np.ndarray:
    """FoolsGold: a mean in which workers whose updates went the same way so far count little.

    With H_i the sum of worker i's updates of all iterations, s_ij the cosine of H_i and H_j, 0 on
    the diagonal, and v_i = max_j s_ij:

        s_ij <- s_ij v_i / v_j   where v_i < v_j  (pardoning),
        a_i = 1 - max_j s_ij,  clipped to [0, 1], divided by max a,
        a_i <- ln(a_i / (1 - a_i)) + 1/2,  clipped to [0, 1].

    The result is sum_i a_i x_i / sum_i a_i, and zero where nobody is trusted.

    Fung, Yoon and Beschastnikh, "The limitations of federated learning in Sybil settings", RAID
    2020, Algorithm 1. The paper adds the a_i x_i up; divided by their sum the step is a mean, as
    other rules' are. Without the paper's choice of indicative features, which needs to know the
    last layer; who has a cosine within 1e-6 of 1 has no trust. Histories are kept by identity: a
    worker that is not selected, or whose update a defense removes, keeps its own. A worker that
    ever sends a value that is not finite has no say from then on. Remembers d numbers a worker,
    allocates (m, d), and two (m, m) matrices.

    >>> from fltrust_repro.similarity import foolsgold
    >>> foolsgold([[1, 0], [0, 1], [-1, -1], [-1, -1]])
    array([0.5, 0.5], dtype=float32)
    """
    histories, history = memory.setdefault("histories", {}), updates.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for total, worker in zip(history, map(str, workers.tolist())):
            total += histories.get(worker, 0)
            histories[worker] = total.copy()
    finite = finite_rows(history)
    weights = np.zeros(len(updates))
    if finite.any():
        products, _ = inner_products(history)
        weights[finite] = _foolsgold_weights(cosines(products[np.ix_(finite, finite)]))
    notes["workers kept"] += weights.sum()
    return weighted_sum(updates, weights / (weights.sum() or 1)).astype(np.float32)


def _foolsgold_weights(similar: np.ndarray) -> np.ndarray:
    np.fill_diagonal(similar, 0)
    most = similar.max(axis=1)
    ratios = np.ones_like(similar)
    np.divide(most[:, None], most, out=ratios, where=most[:, None] < most)
    trust = np.clip(1 - (similar * ratios).max(axis=1), 0, 1)
    trust[trust < _ROUNDING] = 0  # of copies, which else would have the trust of everybody
    trust /= trust.max() or 1
    with np.errstate(divide="ignore"):
        return np.clip(np.log(trust / (1 - trust)) + 0.5, 0, 1)


# --- SignGuard


@rule("signguard")
def signguard(
    updates: np.ndarray,
    rng: np.random.Generator,
    memory: dict[str, Any],
    notes: Counter[str],
    *,
    similarity: str | None = None,
    share: float = 0.1,
    lower: float = 0.1,
    upper: float = 3.0,
) -> np.ndarray:
    """SignGuard: mean of the updates of ordinary length whose signs are those of the largest group.

    With M the median length: (1) updates are trusted whose length is above `lower` M and below
    `upper` M; (2) of a `share` of all coordinates, drawn at random, an update's features are how
    many are positive, zero and negative, each relative to the most that any update has; mean shift
    groups them, its bandwidth the mean distance that reaches half of all, oneself among them; (3)
    the trusted updates of the largest group, shortened to length M where they are longer, are
    averaged. Where that group has no trusted one, all trusted ones are; where there is no group,
    all are one.

    `similarity="cosine"` is SignGuard-Sim: a fourth feature is min(max(s, 0), med s) / (5 med s)
    with s the cosine of an update and the last aggregate, in the first iteration (in the authors'
    code, the first three epochs) the median of its cosines to the others.

    Xu, Huang, Song and Lan, "Byzantine-robust federated learning through collaborative malicious
    gradient filtering", ICDCS 2022; mean shift as the authors' code sets it, which takes one window
    of adjacent coordinates, where the paper draws them. Allocates m d `share` numbers.

    >>> from fltrust_repro.similarity import signguard
    >>> signguard([[1, 2], [2, 1], [1, 1], [2, 2], [-2, -2]], share=1.0).round(2)
    array([1.4, 1.4], dtype=float32)
    """
    if similarity not in (None, "cosine") or not 0 < share <= 1 or not 0 <= lower < upper:
        raise BadInput(
            f"rule 'signguard': similarity is {shown(similarity)}, share {share}, lower {lower}, "
            f"upper {upper}; give cosine or no similarity, 0 < share <= 1 and 0 <= lower < upper."
        )
    long = lengths(updates)
    finite = np.flatnonzero(np.isfinite(long))
    if not finite.size:
        return weighted_mean(updates, np.zeros(len(updates)))
    median = np.median(long[finite])
    d = updates.shape[1]
    columns = np.sort(rng.choice(d, max(round(share * d), 1), replace=False))
    features = _sign_shares(updates[np.ix_(finite, columns)])
    if similarity is not None:
        features = np.column_stack([features, _alike(updates, long, finite, memory)])
    trusted = (long > lower * median) & (long < upper * median)
    group = np.zeros(len(updates), dtype=bool)
    group[finite[_largest_group(features, rng)]] = True
    kept = next(some for some in (trusted & group, trusted, np.isfinite(long)) if some.any())
    notes["workers kept"] += np.count_nonzero(kept)
    shrink = shortening(long, median)
    result = weighted_sum(updates, kept * shrink / kept.sum()).astype(np.float32)
    if similarity is not None:
        memory["last"] = result.copy()
    return result


def _sign_shares(part: np.ndarray) -> np.ndarray:
    shares = np.column_stack([(part > 0).mean(1), (part == 0).mean(1), (part < 0).mean(1)])
    most = shares.max(axis=0)
    return np.divide(shares, most, out=shares, where=most > 0)


def _alike(
    updates: np.ndarray, long: np.ndarray, finite: np.ndarray, memory: dict[str, Any]
) -> np.ndarray:
    last = memory.get("last")
    if last is None:
        among = cosines(inner_products(updates)[0][np.ix_(finite, finite)])
        np.fill_diagonal(among, np.nan)
        cosine = np.nanmedian(among, axis=1) if len(finite) > 1 else np.zeros(1)
    else:
        slopes = lengths_and_slopes(updates, last)[1][finite]
        scale = long[finite] * np.linalg.norm(last)
        cosine = np.divide(slopes, scale, out=np.zeros_like(slopes), where=scale > 0)
    median = np.median(cosine)
    return np.clip(cosine, 0, median) / (5 * median) if median > 0 else np.zeros(len(finite))


def _largest_group(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Which rows of features (n, k) are of the largest group that mean shift finds, or all if none.
    drawn = np.random.RandomState(int(rng.integers(2**31))).permutation(len(features))[:50]
    width = reach(features[drawn], 0.5)
    groups = mean_shift(features, width) if width > 0 else np.full(len(features), -1)
    found = groups[groups >= 0]
    return groups == np.bincount(found).argmax() if found.size else groups < 0


# --- FLAME


@rule("flame")
def flame(
    updates: np.ndarray,
    rng: np.random.Generator,
    notes: Counter[str],
    w_re: np.ndarray,
    *,
    noise: float = 0.001,
) -> np.ndarray:
    """FLAME: mean of the majority's updates, shortened to the median length, with some noise.

    (1) The local models w_re + x_i are clustered by HDBSCAN on their cosine distances, where a
    cluster needs more than half of the models; others are left out. (2) With S the median length of
    all updates, those longer are shortened to S. (3) The mean of those kept is the result, with
    normal noise of standard deviation `noise` S on each parameter.

    Nguyen et al., "FLAME: taming backdoors in federated learning", USENIX Security 2022, Algorithm
    1. Late in training all these cosines are nearly 1: they are made of products of updates and, in
    float64, of `w_re`. With `w_re` zero, the updates are clustered. Allocates what Krum does, and
    24 bytes a parameter.

    >>> from fltrust_repro.similarity import flame
    >>> flame([[1, 2], [2, 1], [1.5, 1.5], [9, -9]], noise=0.0).round(2)
    array([1.5, 1.5], dtype=float32)
    """
    if noise < 0:
        raise BadInput(f"rule 'flame': noise is {noise}; give a number of at least 0.")
    long = lengths(updates)
    finite = np.flatnonzero(np.isfinite(long))
    if not finite.size:
        return weighted_mean(updates, np.zeros(len(updates)))
    median = np.median(long[finite])
    slopes = lengths_and_slopes(updates, w_re)[1][finite]
    of_models = inner_products(updates)[0][np.ix_(finite, finite)]
    of_models += slopes[:, None] + slopes + np.square(w_re, dtype=np.float64).sum()
    kept = finite[_majority(np.clip(1 - cosines(of_models), 0, 2))]
    notes["workers kept"] += len(kept)
    weights = np.zeros(len(updates))
    weights[kept] = 1 / len(kept)
    weights *= shortening(long, median)
    clean = weighted_sum(updates, weights)
    return (clean + noise * median * rng.standard_normal(clean.size)).astype(np.float32)


def _majority(apart: np.ndarray) -> np.ndarray:
    # Which points, by their distances (n, n), are in the cluster of more than half: bool (n,).
    from sklearn.cluster import HDBSCAN

    n = len(apart)
    if n == 1:
        return np.ones(1, dtype=bool)
    clustering = HDBSCAN(
        min_cluster_size=n // 2 + 1,
        min_samples=1,
        metric="precomputed",
        allow_single_cluster=True,
        copy=True,
    )
    return clustering.fit(apart).labels_ >= 0


# --- GAS

_BY_PARAMETER = ("mean", "median", "trimmed-mean", "meamed", "phocas")
_GROUPS = 100  # gathered at once: columns that lie apart are read a row at a time, not one by one


@rule("gas", Limit("m - c", lambda m, c, beta: m - c))
def gas(
    updates: np.ndarray,
    c: int,
    rng: np.random.Generator,
    notes: Counter[str],
    *,
    base: str = "median",
    p: int = 1000,
) -> np.ndarray:
    """Gradient splitting: mean of the m - c updates that are closest to a robust one, by parts.

    The coordinates are split at random into p groups of nearly the same size, or fewer of one each.
    In each group the rule `base` aggregates them; an update's score is the sum of its distances
    from these aggregates over all groups, and those of the m - c smallest scores are averaged.

    Liu et al., "Byzantine-robust learning on heterogeneous data via gradient splitting", ICML 2023.
    The paper combines it with many rules: the median is our choice; a trimmed mean cuts c values at
    each end, as in their code. A row that is not finite scores infinity, and where `base` gives
    what is not, the result is NaN. Calls `base` p times, but once where it looks at each parameter
    by itself; allocates what that does, 24 bytes a parameter, and in the first case m d / 10
    numbers. `base` is a rule that looks at the updates alone, since it keeps nothing.

    >>> from fltrust_repro.similarity import gas
    >>> gas([[1, 2], [2, 1], [1, 1], [2, 2], [99, -99]], c=1)
    array([1.5, 1.5], dtype=float32)
    """
    check_default("rule 'gas'", "p", p, int)
    check_base("rule 'gas'", base, rules[base].parameters)
    (m, d), aggregate = updates.shape, partial(rules[base], c=c, state=ServerState(rng))
    order, p = rng.permutation(d), min(p, d)
    ends = np.cumsum([len(group) for group in np.array_split(order, p)])
    if base in _BY_PARAMETER:  # then its result in a group is its result, there
        robust = np.asarray(aggregate(updates))
    else:
        robust = np.empty(d, dtype=np.float32)
        for some in np.array_split(np.arange(p), -(-p // _GROUPS)):
            first = ends[some[0] - 1] if some[0] else 0
            columns = order[first : ends[some[-1]]]
            parts = np.split(updates.take(columns, 1), ends[some[:-1]] - first, axis=1)
            robust[columns] = np.concatenate([aggregate(part) for part in parts])
    group = np.empty(d, dtype=np.int32)
    group[order] = np.repeat(np.arange(p), np.diff(ends, prepend=0))
    scores = np.empty(m)
    _distances_by_group(updates, robust, group, np.empty(p), scores)
    kept = np.zeros(m, dtype=bool)
    kept[np.argsort(scores, kind="stable")[: m - c]] = True
    kept &= np.isfinite(scores)
    notes["workers kept"] += np.count_nonzero(kept)
    return weighted_mean(updates, kept)


@compiled
def _distances_by_group(
    updates: Array, robust: Array, group: Array, squares: Array, out: Array
) -> None:
    # Of each row the sum over groups of columns of its distances from a robust row there.
    for i in range(len(updates)):
        row = updates[i]
        squares[:] = 0.0
        for j in range(row.size):
            away = np.float64(row[j]) - robust[j]
            squares[group[j]] += away * away
        out[i] = np.sqrt(squares).sum()
