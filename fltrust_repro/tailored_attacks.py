"""Attacks since 2017 that are made for one rule, and know all that it looks at."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from fltrust_repro.attacks import attack, trimmed_mean_attack
from fltrust_repro.distances import lengths_and_slopes
from fltrust_repro.oblivious_attacks import by_all, one_of
from fltrust_repro.server_rules import fltrust, trust_scores
from fltrust_repro.threat import Round
from fltrust_repro.weighing import lengths

_PASSES, _STEPS = 10, 10  # V over the workers, Q in turn for each
_VARIANCE, _GAMMA, _ETA = 0.5, 0.005, 0.01  # of u, how far along u, and the step's size
_TINY = 1e-30  # no quotient has it for a denominator, but for 0/0
_ANGLES = np.linspace(0, np.pi / 2, 10_001)[:-1]


class TrustProblem(NamedTuple):
    """What FLTrust makes of some updates, seen by who moves it against s, per unit of |x_0|.

    Where rows of trust scores TS_i have `total` = sum TS_i and `along` = sum TS_i (x_i . s)/|x_i|,
    its result lies along/total along s. A unit vector e counts by two numbers alone, its cosine
    e . x_0/|x_0|, which is its trust score from 0 on, and its slope e . s.
    """

    axes: np.ndarray  # float64 (2, d): x_0/|x_0| and s
    along: float
    total: float

    def with_copies(self, copies: int, cosines: Any, slopes: Any) -> Any:
        """How far the result lies along s if so many send one vector too; 0 without any trust."""
        trust = copies * np.maximum(cosines, 0)
        return (self.along + trust * slopes) / np.maximum(self.total + trust, _TINY)

    def beside(self, cosines: np.ndarray, slopes: np.ndarray) -> TrustProblem:
        """The same with vectors of these cosines and slopes among the rows."""
        trust = np.maximum(cosines, 0)
        along, total = self.along + float(trust @ slopes), self.total + float(trust.sum())
        return self._replace(along=along, total=total)


def trust_problem(step: Round, root: np.ndarray) -> TrustProblem:
    """What FLTrust makes of the benign updates; s from its result without an attack."""
    own = float(lengths(root[None])[0])
    s = np.sign(fltrust(step.known, root=root, notes=Counter())).astype(np.float64)
    benign = step.known[step.c :]
    long = lengths(benign)
    trust = trust_scores(benign, long, root, own)
    kept = trust > 0
    _, slopes = lengths_and_slopes(benign, s)
    along = float((trust[kept] * slopes[kept] / long[kept]).sum())
    return TrustProblem(np.stack([root / own, s]), along, float(trust.sum()))


@attack("fltrust-adaptive", has_knowledge=False, against=("fltrust",), asks=("root",))
def fltrust_adaptive(step: Round, *, search: str = "random") -> np.ndarray:
    """Move FLTrust's result most against where it goes (Cao et al., NDSS 2021, Section V).

    With x_0 the server's own update and s the signs of FLTrust's result g without an attack, 0
    where it is 0, unit vectors e_1..e_c are sought for which `h = s . (g - g')/|x_0|` is largest,
    g' being the result with |x_0| e_j in place of the c own updates: that is what they send.

    "random" is the paper's search: from the trimmed mean attack's updates at length 1, V = 10
    passes over the workers, of Q = 10 steps each,

        u ~ N(0, sigma^2 I),   e <- e + eta (h(e + gamma u) - h(e))/gamma u,   to length 1,

    where sigma^2 = 0.5, gamma = 0.005 and eta = 0.01; h counts in |x_0| here, so that a step does
    not shrink as updates do. It finds nothing where the start's cosines to x_0 are below 0: nobody
    trusts it, and h is the same all around.

    "exact" is the maximum itself: e counts by e . x_0 and e . s alone, so that the best lie in the
    plane of x_0 and s, and one vector is the best for all c (Dinkelbach); its angle is the best of
    10,000. Against FLTrust it is the one to take: LR on MNIST, 100 examples of the server's, `run
    --seed 10`, has an error rate of 0.113 without attack, 0.115 under "random" and 0.391 under
    "exact", which takes 1 ms of an iteration where "random" takes 500.

    >>> import fltrust_repro as fl
    >>> updates = [[9, 9], [3, 4], [4, 3]]
    >>> fl.attacks["fltrust-adaptive:search=exact"](updates, c=1, root=[1, 0]).round(2)
    array([[ 0.61, -0.79]], dtype=float32)
    """
    one_of("fltrust-adaptive", "search", search, ("random", "exact"))
    root = np.zeros_like(step.known[0]) if step.root is None else step.root
    own = float(lengths(root[None])[0])
    if not 0 < own < np.inf:  # nobody is trusted
        return step.known[: step.c]
    problem = trust_problem(step, root)
    if search == "exact":
        return by_all(own * best_for_all(problem, step.c), step.c)
    return np.float32(own) * searched(problem, _units(trimmed_mean_attack(step)), step.rng)


def best_for_all(problem: TrustProblem, c: int) -> np.ndarray:
    """The unit vector that moves FLTrust most when all c send it: float64 (d,)."""
    toward, s = problem.axes
    away = (s @ toward) * toward - s
    reach = float(np.linalg.norm(away))
    cosines, sines = np.cos(_ANGLES), np.sin(_ANGLES)
    slopes = cosines * (s @ toward) - sines * reach
    best = problem.with_copies(c, cosines, slopes).argmin()
    return cosines[best] * toward + sines[best] * away / max(reach, _TINY)


def searched(problem: TrustProblem, vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The paper's search from unit vectors, float32 (c, d), which it changes."""
    axes, spread = problem.axes.astype(np.float32), np.float32(_VARIANCE**0.5)
    cosines, slopes = (vectors @ axes.T).astype(np.float64).T
    for _ in range(_PASSES):
        for j, e in enumerate(vectors):
            others = problem.beside(np.delete(cosines, j), np.delete(slopes, j))
            at = (axes @ e).astype(np.float64)
            us = spread * rng.standard_normal((_STEPS, e.size), dtype=np.float32)
            for u, move in zip(us, us @ axes.T):
                gain = others.with_copies(1, *at) - others.with_copies(1, *(at + _GAMMA * move))
                if gain != 0:
                    size = _ETA * gain / _GAMMA
                    e += np.float32(size) * u
                    long = np.sqrt(e @ e)
                    e /= long
                    at = (at + size * move) / long
            cosines[j], slopes[j] = at
    return vectors


def _units(rows: np.ndarray) -> np.ndarray:
    """Rows at length 1; what is not finite, or only zeros, becomes zeros."""
    long = lengths(rows)
    usable = (long > 0) & (long < np.inf)
    factors = np.divide(1.0, long, out=np.zeros_like(long), where=usable)
    return (np.where(usable[:, None], rows, 0) * factors[:, None]).astype(np.float32)
