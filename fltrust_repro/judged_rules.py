"""Rules that have models judged on examples of the server's own, whatever updates look like.

They ask for `judge`, and are compared with rules that have such examples alone. A model is the
received one plus an update; where it is not finite its loss is infinite. With logistic regression
the judging of m models is one product. Notes: "workers kept", summed over iterations.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from fltrust_repro.aggregation import rule
from fltrust_repro.doors import Limit
from fltrust_repro.errors import BadInput
from fltrust_repro.server import Judge
from fltrust_repro.weighing import finite_rows, lengths, weighted_mean

_AT_ONCE = 16  # models that FedGreed has judged together, of which it may need the first few


def losses(updates: np.ndarray, w_re: np.ndarray, judge: Judge) -> np.ndarray:
    """Mean losses of the models that these updates (k, d) make of `w_re`: float64 (k,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        models = w_re + updates
    finite = finite_rows(models)
    models[~finite] = w_re  # a judge need not bear what is not finite
    return np.where(finite, np.asarray(judge(models)[1], dtype=np.float64), np.inf)


@rule("zeno", Limit("m - c", lambda m, c, beta: m - c))
def zeno(
    updates: np.ndarray,
    c: int,
    w_re: np.ndarray,
    judge: Judge,
    notes: Counter[str],
    *,
    rho: float = 0.005,
    b: int | None = None,
) -> np.ndarray:
    """Zeno: mean of the m - b updates that lower the server's loss most, long ones paying for it.

    An update's "stochastic descendant score", the higher the better, of equal ones the first, is

        F(w_re) - F(w_re + x_i) - rho D |x_i|^2 / M^2,

    F the mean loss on the server's examples, M the median length and D the median of
    |F(w_re) - F(w_re + x_i)|, both over finite ones. b is c unless given.

    Xie, Koyejo and Gupta, "Zeno: distributed stochastic gradient descent with suspicion-based
    fault-tolerance", ICML 2019, Definition 2 and Algorithm 1. Their rho multiplies the squared
    length of a gradient; that of their script is the learning rate over 200, so that the penalty
    is 1/200 of what a step lowers the loss by in the first order: relative to the round, as here.
    (Their code takes the mean of squares for it, which makes it vanish.) They draw a few examples
    anew in each iteration, 4 in the script; here F is of all that the server has. A row that is not
    finite is never kept. Has m + 1 models judged at once; allocates (m + 1, d) numbers twice.

    >>> import numpy as np
    >>> from fltrust_repro.judged_rules import zeno
    >>> def judge(models):  # the loss is the distance from 3
    ...     return np.zeros(len(models)), np.abs(models - 3).ravel()
    >>> zeno([[1], [2], [3], [-9]], c=1, w_re=np.float32([0]), judge=judge)
    array([2.], dtype=float32)
    """
    m, removed = len(updates), c if b is None else b
    if not np.isfinite(rho) or rho < 0:
        raise BadInput(f"rule 'zeno': rho is {rho}; give a finite number of at least 0.")
    if not isinstance(removed, int) or not 0 <= removed < m:
        raise BadInput(
            f"rule 'zeno': b is {removed} of m = {m} workers; give a whole number from 0 to "
            f"{m - 1}."
        )
    own, *others = losses(np.vstack([np.zeros_like(updates[:1]), updates]), w_re, judge)
    lowered, long = own - np.array(others), lengths(updates)
    finite = np.isfinite(lowered) & np.isfinite(long)
    kept = np.zeros(m)
    if finite.any():
        scores = lowered[finite] - rho * _relative(np.abs(lowered[finite]), long[finite])
        best = np.argsort(-scores, kind="stable")[: m - removed]
        kept[np.flatnonzero(finite)[best]] = 1
    notes["workers kept"] += np.count_nonzero(kept)
    return weighted_mean(updates, kept)


def _relative(changes: np.ndarray, long: np.ndarray) -> np.ndarray:
    # Squared lengths in units of the median one, times the median change of the loss.
    median = np.median(long)
    ratios = np.divide(long, median, out=np.zeros(len(long)), where=median > 0)
    return np.median(changes) * np.square(ratios)


@rule("fedgreed")
def fedgreed(
    updates: np.ndarray, w_re: np.ndarray, judge: Judge, notes: Counter[str]
) -> np.ndarray:
    """FedGreed: mean of the first k updates by the server's loss, k as long as that mean's falls.

    Sorted by F(w_re + x_i), the lowest first, of equal ones the first in order,

        l_k = F(w_re + (x_1 + ... + x_k) / k)

    is taken for k = 1, 2, ... until it rises, and the k of the lowest is kept, of equal ones the
    smallest. It need not be told how many workers are compromised.

    Kritharakis, Jakovetic, Makris and Tserpes, "FedGreed: a Byzantine-robust loss-based aggregation
    method for federated learning", IEEE FLTA 2025 (arXiv 2508.18060), and their code. A row that is
    not finite comes last, and is never kept. Has m models judged at once, then 16 more at a time;
    allocates (m, d) numbers, or 2 x (16, d) where that is more.

    >>> import numpy as np
    >>> from fltrust_repro.judged_rules import fedgreed
    >>> def judge(models):  # the loss is the distance from 3
    ...     return np.zeros(len(models)), np.abs(models - 3).ravel()
    >>> fedgreed([[1], [4.5], [2], [-9]], w_re=np.float32([0]), judge=judge)
    array([3.25], dtype=float32)
    """
    alone = losses(updates, w_re, judge)
    order = np.argsort(alone, kind="stable")[: np.count_nonzero(np.isfinite(alone))]
    kept = np.zeros(len(updates))
    kept[order[: _lowest(updates, order, w_re, judge)]] = 1
    notes["workers kept"] += np.count_nonzero(kept)
    return weighted_mean(updates, kept)


def _lowest(updates: np.ndarray, order: np.ndarray, w_re: np.ndarray, judge: Judge) -> int:
    # How many rows in this order have the mean of the lowest loss, before it rises for once.
    total, best, least = np.zeros(updates.shape[1]), 0, np.inf
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        means = np.empty((len(some), len(total)), dtype=np.float32)
        for i, row in enumerate(some):
            total += updates[row]
            means[i] = total / (start + i + 1)
        for k, loss in enumerate(losses(means, w_re, judge), start + 1):
            if loss > least:
                return best
            if loss < least:
                best, least = k, loss
    return best
