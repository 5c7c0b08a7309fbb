"""A rule of this program: a mean of what workers keep saying, in which what many say counts once.

Of one iteration's updates nobody can tell 20 workers who push the model a little, all the same way,
from 20 who hold other examples. Four things can be told. Over iterations the noise of batches
averages out, and what a worker keeps saying is left. Attackers who agree share one direction among
many of them, where workers with examples of their own bring one each: their leverage is low. And
what is common to workers of many kinds stands out once each is compared with those most like it.
And who descends a loss of its own answers to where the model went, which other updates do not.

`experiments/leverage/README.md` has the numbers that decided each part, and what it cannot hold.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from fltrust_repro.aggregation import rule
from fltrust_repro.compiled import Array, compiled
from fltrust_repro.distances import nearest, squared_distances
from fltrust_repro.doors import Limit
from fltrust_repro.errors import BadInput
from fltrust_repro.registry import check_default
from fltrust_repro.spectral import filtered, products_of
from fltrust_repro.weighing import lengths, shortening, weighted_mean, weighted_sum

RIDGE = 100.0  # of the eigenvalue that is noise: far beyond what each worker has of its own
LEAST = 1e-5  # of the mean eigenvalue: what distances of float32 say below it is rounding
PRICE = 1.0  # of weight taken away, for the spectral filter: an exponent
ROUNDING = 1e-5  # of a product of float32 numbers: more than it is off


@compiled(fastmath={"reassoc", "nsz", "contract"})
def _take_in(
    rows: Array, factors: Array, workers: Array, decay: float, way: Array, sums: Array, along: Array
) -> None:
    for i in range(len(rows)):
        row, factor, total = rows[i], factors[i], sums[workers[i]]
        now = before = np.float32(0)
        for j in range(row.size):
            short = factor * row[j]
            now += short * way[j]
            before += total[j] * way[j]
            total[j] = decay * total[j] + short
        along[i, 0], along[i, 1] = now, before


def make_room(workers: np.ndarray, d: int, memory: dict[str, Any]) -> None:
    """Let memory begin, and hold what is kept of each of these workers."""
    if "counts" not in memory:
        memory.update(counts=np.zeros(0), sums=np.zeros((0, d), dtype=np.float32))
        memory.update(lengths=np.zeros(0), answers=np.zeros(0), doubts=np.zeros(0))
        memory.update(model=np.zeros(d), usual=np.zeros(d), age=0.0)
    missing = int(workers.max()) + 1 - len(memory["counts"])
    if missing > 0:
        for name in ("counts", "sums", "lengths", "answers", "doubts"):
            memory[name] = np.pad(memory[name], [(0, missing)] + [(0, 0)] * (memory[name].ndim - 1))


def take_in(
    rows: np.ndarray,
    factors: np.ndarray,
    workers: np.ndarray,
    memory: dict[str, Any],
    decay: float,
) -> None:
    """Take in each worker's row, (m, d), times its factor; in memory there is room for them.

    Of a worker's own n rows sum_t decay^(n - t) x_t is kept in "sums", and sum_t decay^(n - t), by
    which it is divided for the running mean, in "counts"; one that is not there keeps what it has.
    So are its "answers", sum_t decay^(n - t) (x_t - mean) . (w_t - mean) with w_t where the model
    was.
    """
    past, along = decay * memory["counts"][workers], np.empty((len(rows), 2), dtype=np.float32)
    ahead = _ahead(memory, decay)
    far = np.linalg.norm(ahead)
    way = (ahead / far if far > 0 else ahead).astype(np.float32)  # no product is too large for it
    sums, short = memory["sums"], factors.astype(np.float32)
    _take_in(rows, short, workers, np.float32(decay), way, sums, along)
    _take_in_answers(far * along.astype(np.float64), past, workers, memory, decay)
    memory["counts"][workers] = past + 1


def _ahead(memory: dict[str, Any], decay: float) -> np.ndarray:
    """How far the model is from its mean so far, float64 (d,), which then takes its place in."""
    ahead = memory["model"] - memory["usual"]
    memory["age"] = decay * memory["age"] + 1
    memory["usual"] += ahead / memory["age"]
    return ahead


def _take_in_answers(
    along: np.ndarray, past: np.ndarray, workers: np.ndarray, memory: dict[str, Any], decay: float
) -> None:
    """Take in products (m, 2) of rows, and of sums before them, with how far the model is ahead.

    What each adds to a worker's answers is a sample of noise and of a slope; its square is kept as
    what may be noise, and that of its rounding.
    """
    now, before = past * along[:, 0] / (past + 1), decay * along[:, 1] / (past + 1)
    added, off = now - before, ROUNDING * (np.abs(now) + np.abs(before))
    memory["answers"][workers] = decay * memory["answers"][workers] + added
    doubted = np.square(added) + np.square(off)
    memory["doubts"][workers] = decay**2 * memory["doubts"][workers] + doubted


def answering(answers: np.ndarray, doubts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weights, float64 (m,), of workers by how their updates answer to where the model went.

    A worker's answer is the covariance of its updates and the model's places. On the way down a
    convex loss it is not above 0, whichever way that was: (u_t - u_s)(w_t - w_s) <= 0 for
    u = -grad L(w). What does not depend on the model has 0, reversed updates the opposite sign.
    A worker's weight is twice its share of the median worker's answer, from 0 to 1, after three
    standard errors (the root of its doubt) in its favour; 1 for who has said one update alone, and
    for all where the median answer is not two such errors below 0, as where updates never change.
    """
    known, errors = counts > 1, np.sqrt(doubts)
    middle, error = (np.median(of[known]) if known.any() else 0.0 for of in (answers, errors))
    if not middle < -2 * error:  # nor where it is not a number, since the model has overflown
        return np.ones(len(answers))
    return np.where(known, np.clip(2 * (answers - 3 * errors) / middle, 0, 1), 1.0)


class Said(NamedTuple):
    """What m workers send now, and what all n known so far keep saying."""

    rows: np.ndarray  # float32 (m, d), those that are finite
    factors: np.ndarray  # float64 (m,), that shorten them to the median length of the n
    places: np.ndarray  # of the m among the n
    squared: np.ndarray  # float64 (n, n), distances of the running means, shortened likewise
    answered: np.ndarray  # float64 (n,), weights by how they answer to where the model went

    def mean(self, weights: np.ndarray) -> np.ndarray:
        """Mean of the shortened rows under weights (m,), of all where these are 0: float32 (d,)."""
        shares = (
            weights / weights.sum() if weights.any() else np.full(len(weights), 1 / len(weights))
        )
        return weighted_sum(self.rows, self.factors * shares).astype(np.float32)


def said(updates: np.ndarray, workers: np.ndarray, memory: dict[str, Any], decay: float) -> Said:
    """Take in the updates (m, d) that are finite: steps (1) and (2) of `leverage`."""
    long = lengths(updates)
    finite = long <= (1 - decay) * np.finfo(np.float32).max  # and so will the sums be
    if not finite.any():
        return Said(updates[:0], np.zeros(0), workers[:0], np.zeros((0, 0)), np.zeros(0))
    if not finite.all():
        updates, long, workers = updates[finite], long[finite], workers[finite]
    make_room(workers, updates.shape[1], memory)
    memory["lengths"][workers] = long
    known = np.union1d(np.flatnonzero(memory["counts"]), workers)
    factors = shortening(long, np.median(memory["lengths"][known]))
    take_in(updates, factors, workers, memory, decay)
    everybody = len(known) == len(memory["sums"])
    sums, counts = memory["sums"] if everybody else memory["sums"][known], memory["counts"][known]
    mean = lengths(sums) / counts
    squared = squared_distances(sums, shortening(mean, np.median(mean)) / counts)
    answered = answering(memory["answers"][known], memory["doubts"][known], counts)
    return Said(updates, factors, np.searchsorted(known, workers), squared, answered)


def among_all(m: int, c: int, now: Said) -> tuple[int, int]:
    """Return how many workers are compared, n, and how many of them to expect, as c of m send."""
    n = max(m, len(now.squared))
    return n, c * n // m


def follow(
    now: Said, weights: np.ndarray, memory: dict[str, Any], notes: Counter[str]
) -> np.ndarray:
    """Mean (d,) of what is sent now, under weights (n,) of all who are known; moves the model."""
    heard = weights[now.places]
    notes["workers kept"] += heard.sum()
    if weights.any() and not heard.any():
        return np.zeros(now.rows.shape[1], dtype=np.float32)
    result = now.mean(heard)
    memory["model"] += result
    return result


def leverages(products: np.ndarray, c: int, ridge: float = RIDGE) -> np.ndarray:
    """Return how much of the span of all each of m points holds alone, float64 (m,).

    That is the leverage h_i, the diagonal of G (G + rho I)^-1, where G holds the inner products and
    rho is `ridge` times its (c + 1)th smallest eigenvalue, or times 1e-5 of the mean one if that is
    more. Of k points at one place each has 1/k at most. c points at one place are c eigenvalues of
    0, and whatever c points are, the eigenvalue lies between the smallest and the (c + 1)th
    smallest of the others' (Cauchy).
    """
    from scipy.linalg import eigh  # which takes a while to load

    m = len(products)
    place = min(c, m - 1)
    [noise] = eigh(products, eigvals_only=True, subset_by_index=[place, place])
    rho = ridge * max(noise, LEAST * np.trace(products) / m)
    return 1 - rho * np.diag(np.linalg.inv(products + rho * np.eye(m))) if rho > 0 else np.zeros(m)


def voices(squared: np.ndarray, c: int, ridge: float = RIDGE) -> np.ndarray:
    """Weights, float64 (m,), of points by their squared distances: (h_i / med h)^2, at most 1."""
    held = leverages(products_of(squared), c, ridge)
    middle = np.median(held)
    return np.square(np.minimum(held / middle, 1)) if middle > 0 else np.ones(len(held))


def beside_the_nearest(squared: np.ndarray, near: int) -> np.ndarray:
    """Squared distances (m, m) of what points differ by from the mean of their `near` nearest."""
    m = len(squared)
    others = nearest(squared, near + 1)[:, 1:]
    differing = np.eye(m)
    np.put_along_axis(differing, others, -1 / max(others.shape[1], 1), axis=1)
    found = differing @ products_of(squared) @ differing.T
    own = np.diag(found)
    return np.maximum(own[:, None] + own - 2 * found, 0)


@rule("leverage", Limit("m - 2c", lambda m, c, beta: m - 2 * c))
def leverage(
    updates: np.ndarray,
    c: int,
    memory: dict[str, Any],
    workers: np.ndarray,
    notes: Counter[str],
    *,
    decay: float = 0.985,
    near: int = 4,
) -> np.ndarray:
    """Leverage: a mean of what workers keep saying, in which what many say counts once.

    (1) Updates are shortened to their median length. (2) e_i is the running mean of worker i's, of
    weight `decay` an iteration, shortened likewise. (3) With G the inner products of e_i - mean and
    h_i the diagonal of G (G + rho I)^-1, where rho is 100 times G's (c + 1)th smallest eigenvalue,
    a worker's voice is (h_i / med h)^2, at most 1. (4) It is multiplied by the weights of CAF's
    filter, of which at most 2c and less than half are lost, on e_i less the mean of its `near`
    nearest: on the way those of the least leading eigenvalue, divided by the share of weight that
    is left. (5) It is multiplied by a weight for its answer (`answering`), the covariance of (1)
    with the sum of the rule's results so far, over the span of e_i. The result is the mean of (1)
    under these weights.

    Where some of the workers send, or a defense leaves some, all n that ever did are compared, in
    (1) by what they sent last, and with c n / m for c: half of those selected may be compromised in
    one iteration of many. If nobody who is heard sends, the model stays where it is.

    This program's own, for updates of workers who are known by identity. A row that is not finite,
    or whose sum might not be, is left out, and not remembered. Remembers d numbers for each worker
    up to the largest number, and allocates as many twice.
    Notes: "workers kept", by their weights, summed over iterations. Needs m - 2c >= 1.

    >>> from fltrust_repro.leverage import leverage
    >>> leverage([[1, 2], [2, 1], [1, 1], [2, 2], [0, 0.1]], c=1).round(1)
    array([1.5, 1.5], dtype=float32)
    """
    check_default("rule 'leverage'", "near", near, int)
    if not 0 <= decay < 1:
        raise BadInput(f"rule 'leverage': decay is {decay}; give a number from 0 to below 1.")
    now = said(updates, workers, memory, decay)
    if not len(now.rows):
        return weighted_mean(updates, np.zeros(len(updates)))
    n, c = among_all(len(updates), c, now)
    enough = max(n - 2 * c, n - n // 2)  # more than c copies, which alone have no variance
    filter_weights = filtered(beside_the_nearest(now.squared, near), enough, PRICE)
    return follow(now, voices(now.squared, c) * filter_weights * now.answered, memory, notes)
