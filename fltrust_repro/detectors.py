"""A rule that predicts what each worker will send, and detects who is not consistent with himself.

It asks for `workers`, whose update is whose, where some are selected, and remembers each one's.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from fltrust_repro.aggregation import rule, rules
from fltrust_repro.compiled import Array, compiled
from fltrust_repro.registry import check_default
from fltrust_repro.server import ServerState, check_base
from fltrust_repro.weighing import finite_rows

_REFERENCES = 10  # sets of random scores that the gap statistic compares with, as in their code


@rule("fldetector")
def fldetector(
    updates: np.ndarray,
    c: int,
    rng: np.random.Generator,
    memory: dict[str, Any],
    notes: Counter[str],
    w_re: np.ndarray,
    workers: np.ndarray,
    *,
    base: str = "median",
    window: int = 10,
    start: int = 50,
) -> np.ndarray:
    """FLDetector: the rule `base` on the updates of those whose updates can be predicted.

    With w the model that all received, a worker's update is predicted from its last one, which it
    sent from w', by what the model's way there does to all updates (4.1):

        x_i' + H (w - w'),

    H the L-BFGS estimate of `hessian_products` from the last `window` differences of global models
    and of the aggregates. In each iteration after the first `start` + 1, the distances between sent
    and predicted updates are divided by their mean (there by their sum, which orders scores alike);
    a worker's score is the mean of its last `window`. If by the gap statistic there is more than
    one group of scores, k-means makes two, and that of the higher scores is detected (4.2).

    Zhang, Cao, Jia and Gong, "FLDetector: defending federated learning against model poisoning
    attacks via detecting malicious clients", KDD 2022; window, start and base as in their code,
    where no attack begins before iteration 50 either. In the paper training begins anew without
    those detected. Here it goes on, the model as it is: they are left out from then on, `base` is
    told of as many fewer compromised, and the others' scores are taken anew, so that the next
    detection is `window` iterations away. A detection that would make half of all known workers
    left out is passed over, since the threat model says that most are honest. A worker that sends
    what is not finite is left out at once. Where workers are selected, one that did not send in the
    last `window` iterations is not scored in this one, and none is detected before most have a
    score. Where nobody is left, or too few are for `base`, the model stays.

    `base` is a rule that looks at the updates alone, since it keeps nothing; a trimmed mean cuts c
    values at each end. Notes: "workers kept", "workers detected", summed over iterations. Remembers
    (m, d) numbers and 2 `window` d; costs one pass over the updates and (window d) times window
    beside `base`, of which it allocates the updates kept.

    >>> from fltrust_repro.detectors import fldetector
    >>> fldetector([[1, 2], [2, 1], [1, 1], [9, 9]], c=1, base="mean")
    array([3.25, 3.25], dtype=float32)
    """
    check_default("rule 'fldetector'", "window", window, int)
    check_default("rule 'fldetector'", "start", start, int)
    check_base("rule 'fldetector'", base, rules[base].parameters)
    _remember(memory, int(workers.max()) + 1, updates.shape[1], window)
    iteration, out = memory["iteration"], memory["left out"]
    finite, already = finite_rows(updates), np.count_nonzero(out)
    out[workers[~finite]] = True
    step = _difference(w_re, memory.get("model", w_re))
    if iteration > start:
        _score(updates, workers, memory, step)
        detected = _detected(memory, rng)
        out[detected] = True
        if detected.size:
            memory["distances"][:] = np.nan
    kept = ~out[workers]
    notes["workers kept"] += np.count_nonzero(kept)
    notes["workers detected"] += np.count_nonzero(out) - already
    result = np.zeros(updates.shape[1], dtype=np.float32)
    left = updates if kept.all() else updates[kept]
    fewer, limit = max(c - np.count_nonzero(out[workers]), 0), rules[base].limit
    if len(left) and (limit is None or limit.allows(len(left), fewer, fewer)):
        result = np.asarray(rules[base](left, c=fewer, state=ServerState(rng)))
    change = _difference(result, memory.get("aggregate", result))
    for name, row in (("steps", step), ("changes", change)) if iteration > 0 else ():
        memory[name] = np.concatenate([memory[name], row[None]])[-window:]
    memory["updates"][workers[finite]] = updates if finite.all() else updates[finite]
    memory["sent in"][workers[finite]] = iteration
    memory.update(iteration=iteration + 1, model=w_re.copy(), aggregate=result.copy())
    return result


def _difference(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # not finite where nothing will come of it
        return now - before


def _remember(memory: dict[str, Any], known: int, d: int, window: int) -> None:
    # Makes room for workers not known so far; those of a trial are numbered from 0.
    if not memory:
        memory.update(iteration=0, steps=np.empty((0, d), np.float32))
        memory["changes"] = memory["steps"].copy()
    begin: dict[str, tuple[tuple[int, ...], Any, type]] = {
        "updates": ((d,), 0, np.float32),
        "distances": ((window,), np.nan, np.float64),
        "sent in": ((), -1, np.int64),
        "left out": ((), False, np.bool_),
    }
    for name, (shape, value, kind) in begin.items():
        old = memory.get(name, np.empty((0, *shape), kind))
        if (new := known - len(old)) > 0:
            memory[name] = np.concatenate([old, np.full((new, *shape), value, kind)])


def _score(
    updates: np.ndarray, workers: np.ndarray, memory: dict[str, Any], step: np.ndarray
) -> None:
    # Of all who are not left out and sent something in the last iterations, the relative distance.
    steps, sent = memory["steps"], memory["sent in"][workers]
    age = memory["iteration"] - sent
    scored = (sent >= 0) & (age <= len(steps) + 1) & ~memory["left out"][workers]
    ages, which = np.unique(age[scored], return_inverse=True)
    if not ages.size:
        return
    ways = np.stack([step + steps[len(steps) + 1 - a :].sum(axis=0) for a in ages])
    turns = hessian_products(steps, memory["changes"], ways)
    rows, distances = np.flatnonzero(scored), memory["distances"]
    away = _distances(updates, memory["updates"], rows, workers[rows], turns, which)
    distances[workers[rows], :-1] = distances[workers[rows], 1:]
    distances[workers[rows], -1] = away / (away.mean() or 1)


def hessian_products(steps: np.ndarray, changes: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Products H v of the L-BFGS estimate H with ways v (k, d): float64 (k, d).

    From differences of positions S, rows of `steps` (n, d), the latest last, and those of gradients
    Y there, `changes`: Byrd, Nocedal and Schnabel (1994), Equation 3.13,

        H v = sigma v - [sigma S' Y'] M^-1 [sigma S v; Y v],   M = [sigma S S', L; L', -D],

    sigma = s'y / s's of the latest, L_ij = s_i'y_j below the diagonal, D on it. H is linear in Y:
    of updates instead of gradients it gives differences of updates. 0 where nothing moved last, or
    a difference is not finite.
    """
    s, y, v = (array.astype(np.float64) for array in (steps, changes, ways))
    known = len(s) and np.isfinite(s).all() and np.isfinite(y).all()
    if not known or not (length := s[-1] @ s[-1]):
        return np.zeros_like(v)
    sigma, products = y[-1] @ s[-1] / length, s @ y.T
    lower = np.tril(products, -1)
    middle = np.block([[sigma * (s @ s.T), lower], [lower.T, -np.diag(np.diag(products))]])
    both = np.vstack([sigma * s, y])
    return sigma * v - np.linalg.lstsq(middle, both @ v.T, rcond=None)[0].T @ both


@compiled(fastmath={"reassoc", "nsz", "contract"})
def _squared_distances(
    updates: Array, before: Array, rows: Array, of: Array, turns: Array, which: Array, out: Array
) -> None:
    for i in range(len(rows)):
        row, last, turn, total = updates[rows[i]], before[of[i]], turns[which[i]], np.float64(0)
        for j in range(row.size):
            away = np.float64(row[j]) - last[j] - turn[j]
            total += away * away
        out[i] = total


def _distances(
    updates: np.ndarray, before: np.ndarray, rows: np.ndarray, of: np.ndarray, turns: np.ndarray,
    which: np.ndarray,
) -> np.ndarray:  # fmt: skip
    # |updates[rows[i]] - before[of[i]] - turns[which[i]]|, float64 (n,).
    out = np.empty(len(rows))
    _squared_distances(updates, before, rows, of, turns, which, out)
    return np.sqrt(out)


def upper_group(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which scores (n,) are in the upper of two groups, none where there is one: bool (n,).

    The gap statistic (Tibshirani, Walther, Hastie, 2001) compares the sums W_k of squares within k
    groups by k-means with those of scores drawn evenly between the least and the largest, as their
    code does: gap_k = log(mean W_k*) - log W_k. There is more than one group where
    gap_1 < gap_2 - std(log W_2*) sqrt(1 + 1/10). On a line the best two groups are what lies below
    and above one of n - 1 cuts: k-means is solved exactly, without a random start. Fewer than three
    scores are one group, and so are equal ones.
    """
    if len(scores) < 3 or not np.ptp(scores) > 0:
        return np.zeros(len(scores), dtype=bool)
    low, wide = scores.min(), np.ptp(scores)
    drawn = rng.random((_REFERENCES, len(scores)))
    one, two, below = _squares_within(np.sort((scores - low) / wide))
    one_drawn, two_drawn, _ = _squares_within(np.sort(drawn, axis=1))
    with np.errstate(divide="ignore"):
        gaps = [np.log(np.mean(a)) - np.log(b) for a, b in ((one_drawn, one), (two_drawn, two))]
        error = np.std(np.log(two_drawn)) * np.sqrt(1 + 1 / _REFERENCES)
    if gaps[0] >= gaps[1] - error:
        return np.zeros(len(scores), dtype=bool)
    return scores >= np.sort(scores)[below]


def _squares_within(ordered: np.ndarray) -> tuple[Any, Any, Any]:
    # Sums of squares (...,) within one group and the best two of sorted values (..., n), n >= 2,
    # and how many are in the lower one.
    n = ordered.shape[-1]
    counts = np.arange(1, n + 1)
    sums, squares = ordered.cumsum(axis=-1), np.square(ordered).cumsum(axis=-1)
    lower = squares - sums**2 / counts
    above = sums[..., -1:] - sums[..., :-1]
    upper = squares[..., -1:] - squares[..., :-1] - above**2 / (n - counts[:-1])
    cuts = np.maximum(lower[..., :-1] + upper, 0)
    return lower[..., -1], cuts.min(axis=-1), cuts.argmin(axis=-1) + 1


def _detected(memory: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    # Workers of the higher scores, int (k,), of all whose window of distances is full.
    distances, out = memory["distances"], memory["left out"]
    scored = np.flatnonzero(~np.isnan(distances).any(axis=1) & ~out)
    if 2 * len(scored) <= np.count_nonzero(~out):
        return scored[:0]
    found = scored[upper_group(distances[scored].mean(axis=1), rng)]
    return found if 2 * (len(found) + np.count_nonzero(out)) < len(out) else found[:0]
