"""The attack on Krum as an optimisation problem (paper, 3.2): the largest lambda that works.

Distances lie where the updates lie. On a GPU all halvings of lambda are tried at once, so that
nobody waits for the answer to one before the next is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fltrust_repro.aggregation import krum_choice, krum_scores
from fltrust_repro.backend import module_of

LAMBDA_THRESHOLD = 1e-5  # Section 3.2: below it, the search for lambda has failed
_LARGEST = float(np.finfo(np.float32).max)  # lambda, as an update that can be sent
_HALVINGS = 145  # from the largest lambda to the threshold


@dataclass(frozen=True)
class KrumProblem:
    """Equations 2 and 4: the largest lambda for which Krum picks `w'_1 = base - lambda s`.

    Squared distances are all that Krum looks at, and that between `w'_1` and a benign model is
    a quadratic in lambda; so the n benign models' distances are computed once, and trying a
    lambda costs O(n^2). All arrays are on the host, or all on one GPU.

    Attributes
    ----------
    squared : float64 (n, n), between the benign models
    offsets : float64 (n,), D^2 of each benign model to the base
    slopes : float64 (n,), s . (delta_i - base)
    d : int, number of parameters
    """

    squared: Any
    offsets: Any
    slopes: Any
    d: int

    def upper_bound(self, copies: int, assumed: int) -> Any:
        """Theorem 1 (Equation 3), for any number of copies of w'_1 and assumed compromised.

        With c copies and c assumed, w'_1 needs m - c - 2 neighbours, of which m - 2c - 1 benign.
        Shape (1,). Finite: a model at infinite distance is none that Krum could pick.
        """
        xp, n = module_of(self.offsets), len(self.offsets)
        neighbours = max(n + copies - assumed - 2, 1)
        benign = max(neighbours - (copies - 1), 1)
        scores = krum_scores(self.squared, min(neighbours, n - 1))
        nearest = scores.min(axis=0, keepdims=True)
        reached = xp.where(xp.isfinite(self.offsets), self.offsets, 0.0)
        farthest = xp.sqrt(reached.max(axis=0, keepdims=True))
        bound = xp.sqrt(nearest / (benign * self.d)) + farthest / np.sqrt(self.d)
        return xp.minimum(bound, _LARGEST)

    def picks_crafted(self, scales: Any, copies: int, assumed: int) -> Any:
        """Whether Krum picks w'_1 among `copies` of it and the benign models.

        For each of several lambdas, shape (k,), or for one number.
        """
        xp, n = module_of(self.offsets), len(self.offsets)
        scale = xp.reshape(scales, (-1, 1))
        crafted = xp.maximum(self.offsets + 2.0 * scale * self.slopes + scale**2 * self.d, 0.0)
        k = len(crafted)
        across = xp.broadcast_to(crafted[:, None, :], (k, copies, n))
        among_copies = xp.broadcast_to(xp.zeros_like(across[:, :, :1]), (k, copies, copies))
        benign = xp.broadcast_to(self.squared[None], (k, n, n))
        rows = [
            xp.concatenate([among_copies, across], axis=2),
            xp.concatenate([xp.swapaxes(across, 1, 2), benign], axis=2),
        ]
        chosen = krum_choice(xp.concatenate(rows, axis=1), max(n + copies - assumed - 2, 1))
        return chosen < copies

    def search(self, start: Any, copies: int, assumed: int) -> tuple[Any, Any]:
        """Halve lambda from `start` until Krum picks w'_1 or lambda < 1e-5; say which.

        Shape (1,) each.
        """
        if module_of(start) is not np:
            return self._search_at_once(start, copies, assumed)
        scale = start
        for _ in range(_HALVINGS):
            if scale[0] < LAMBDA_THRESHOLD:
                break
            found = self.picks_crafted(scale, copies, assumed)
            if found[0]:
                return scale, found
            scale = scale / 2
        return scale, np.zeros(1, dtype=bool)

    def _search_at_once(self, start: Any, copies: int, assumed: int) -> tuple[Any, Any]:
        xp = module_of(start)
        scales = start * 0.5 ** xp.arange(_HALVINGS, dtype="float64", ctx=start.ctx)
        large = scales >= LAMBDA_THRESHOLD
        works = self.picks_crafted(scales, copies, assumed) * large
        best = xp.where(works, scales, 0.0).max(axis=0, keepdims=True)
        last = xp.where(large, 0.0, scales).max(axis=0, keepdims=True)
        return xp.where(best > 0, best, last), best > 0


def solve_full(problem: KrumProblem, copies: int, assumed: int) -> tuple[Any, Any]:
    """Equation 2: copies of w'_1 among the benign models, Krum assuming so many compromised."""
    return problem.search(problem.upper_bound(copies, assumed), copies, assumed)


def solve_partial(problem: KrumProblem, c: int, assumes: str) -> tuple[Any, Any]:
    """Equation 4: add crafted models, one at a time, until Krum picks w'_1.

    `assumes` is what the attacker's own Krum takes for the number of compromised models:
    "zero", "added" (as many as were added) or "c". At most c models are added.
    """
    assumed = {"zero": lambda q: 0, "added": lambda q: q, "c": lambda q: c}[assumes]
    start = problem.upper_bound(1, assumed(1))
    xp = module_of(start)
    scale, found = problem.search(start, 1, assumed(1))
    for copies in range(2, c + 1):
        if xp is np and found[0]:  # on a GPU the host goes on without waiting for the answer
            break
        another, works = problem.search(start, copies, assumed(copies))
        scale, found = xp.where(found, scale, another), xp.where(found, found, works)
    return scale, found
