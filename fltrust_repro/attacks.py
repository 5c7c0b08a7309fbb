"""Attacks of compromised workers (paper, Sections 3 and 4.1), in the space of updates.

With `delta_i = w_i - w_re` the received global model is the origin: the crafted local model
`w'_1 = w_re - lambda s` (3.2) is the update `-lambda s`. An attack gets the before-attack updates
that the attacker knows, all m with full knowledge and the c own ones with partial knowledge, the
compromised workers' always first, and returns the c updates they send instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fltrust_repro.aggregation import Crowd, trimmed_mean
from fltrust_repro.distances import lengths_and_slopes, squared_distances
from fltrust_repro.doors import Limit
from fltrust_repro.kernels import column_mean, extremes, moments
from fltrust_repro.poisoning import flip_labels, poisoned_set
from fltrust_repro.threat import Attack, Round, attack, attacks

attacks.add("none", Attack("none"))
attacks.add("label-flip", Attack("label-flip", poison=flip_labels))
attacks.add("back-gradient", Attack("back-gradient", inject=poisoned_set))


@attack("gaussian", has_knowledge=False)
def gaussian(step: Round) -> np.ndarray:
    """Samples of the Gaussian that fits each parameter of all before-attack models (4.1).

    >>> import fltrust_repro as fl
    >>> fl.gaussian_attack([[1, 2], [1, 2], [1, 2]], c=1)
    array([[1., 2.]], dtype=float32)
    """
    noise = step.rng.standard_normal((step.c, step.known.shape[1]), dtype=np.float32)
    mu, sigma = moments(step.known)
    noise *= sigma
    noise += mu
    return noise


def changing_direction(step: Round) -> np.ndarray:
    """Signs s of how the global model would change (3.1): +1 where it grows, else -1.

    Of the mean of the known updates; with `direction="rule"`, where these are everyone's, of what
    the aggregation rule itself would output.
    """
    if step.parameters.direction == "rule" and not step.partial:
        change = step.master.rule(step.known, c=step.master.c, beta=step.master.beta)
    else:
        change = column_mean(step.known)
    return np.where(change > 0, np.float32(1), np.float32(-1))


def direction_agreement(step: Round, updates: np.ndarray) -> float:
    """Share of the parameters whose direction the known updates tell as all m do (4.2)."""
    everyone = dataclasses.replace(step, known=updates, knowledge="full")
    return float((changing_direction(step) == changing_direction(everyone)).mean())


MOST_UNDONE = 10.0  # times a step: a mean over iterations is that of many, and not of one


def undone(before: np.ndarray, after: np.ndarray) -> float:
    """Share of the global model's change (d,) before an attack that one after it lacks.

    0 where the attack has no effect along it, 1 where nothing is left, more where the model goes
    back, from -10 to 10: of a model that stands still anything is a large share. NaN where either
    is not finite.
    """
    way = before.astype(np.float64)
    squared = float(way @ way)
    share = (way - after) @ way / squared if squared > 0 else 0.0
    return float(np.clip(share, -MOST_UNDONE, MOST_UNDONE)) if np.isfinite(share) else math.nan


# --- Krum (3.2): the largest lambda for which it picks w'_1, at most that of Equation 3

LAMBDA_THRESHOLD = 1e-5  # Section 3.2: below it, the search for lambda has failed
LAMBDA_PRECISION = 1e-6  # relative, of the exact search
_LARGEST = float(np.finfo(np.float32).max)  # lambda, as an update that can be sent


@dataclass(frozen=True)
class KrumProblem:
    """Equations 2 and 4: the largest lambda for which Krum picks `w'_1 = base - lambda s`.

    The squared distance between `w'_1` and a benign model is a quadratic in lambda; so those of the
    n benign models are computed once, and trying a lambda costs O(n^2).
    """

    squared: np.ndarray  # float64 (n, n), between the benign models
    offsets: np.ndarray  # float64 (n,), D^2 of each benign model to the base
    slopes: np.ndarray  # float64 (n,), s . (delta_i - base)
    d: int  # number of parameters

    @cached_property
    def benign(self) -> Crowd:
        """The benign models as Krum sees them."""
        return Crowd(self.squared)

    def upper_bound(self, copies: int, assumed: int) -> float:
        """Theorem 1 (Equation 3), for any number of copies of w'_1 and assumed compromised.

        With c copies and c assumed, w'_1 needs m - c - 2 neighbours, of which m - 2c - 1 benign.
        Where so many more copies than assumed are sent that a benign model has too few benign
        neighbours, as when workers are selected, Krum may pick w'_1 at a larger lambda, too: the
        search still begins here. Finite: Krum picks no model at infinite distance.
        """
        n = len(self.offsets)
        neighbours = max(n + copies - assumed - 2, 1)
        benign = max(neighbours - (copies - 1), 1)
        _, nearest = self.benign.select(min(neighbours, n - 1))
        farthest = np.where(np.isfinite(self.offsets), self.offsets, 0.0).max()
        bound = np.sqrt(nearest / (benign * self.d)) + np.sqrt(farthest) / np.sqrt(self.d)
        return min(float(bound), _LARGEST)

    def picks_crafted(self, scale: float, copies: int, assumed: int) -> bool:
        """Whether Krum picks w'_1 among `copies` of it and the benign models."""
        squared = self.offsets + 2.0 * scale * self.slopes + scale * scale * self.d
        squared = np.where(np.isnan(squared), np.inf, np.maximum(squared, 0.0))
        neighbours = max(len(squared) + copies - assumed - 2, 1)
        return self.benign.select(neighbours, None, squared, copies)[0] < 0

    def largest_lambda(
        self, tries: Sequence[int], assumed: Callable[[int], int], exact: bool = False
    ) -> tuple[float, bool]:
        """Return the largest lambda found, and whether Krum picks w'_1 with it.

        From Equation 3's on it is halved, for each number of copies tried, until Krum picks w'_1 or
        lambda < 1e-5; of so many copies, Krum assumes `assumed(copies)` compromised models. What
        halving stops at can be half of the largest one: `exact` goes on by bisection from there.
        """
        start = self.upper_bound(tries[0], assumed(tries[0]))
        for copies in tries:
            scale = start
            while scale >= LAMBDA_THRESHOLD:
                if self.picks_crafted(scale, copies, assumed(copies)):
                    beyond = min(2 * scale, start) if exact else scale
                    return self._bisected(scale, beyond, copies, assumed(copies)), True
                scale /= 2
        return scale, False

    def _bisected(self, picked: float, beyond: float, copies: int, assumed: int) -> float:
        """From a lambda with which Krum picks w'_1 towards one with which it does not."""
        while beyond - picked > LAMBDA_PRECISION * picked:
            middle = (picked + beyond) / 2
            if self.picks_crafted(middle, copies, assumed):
                picked = middle
            else:
                beyond = middle
        return picked


def krum_problem(step: Round, direction: np.ndarray) -> tuple[KrumProblem, np.ndarray]:
    """What Krum will see of the models that the attacker knows to be benign (3.2), and w'_1's base.

    Partial knowledge: the c own before-attack ones; full: those of the m - c others.
    """
    distances = squared_distances(step.known)
    benign = slice(0 if step.partial else step.c, None)
    base, gaps = np.zeros_like(direction), step.known[benign]
    if step.parameters.base == "before-attack":
        assumed = 0 if step.partial else step.master.c
        chosen, _ = Crowd(distances).select(max(len(step.known) - assumed - 2, 1))
        base = step.known[chosen]
        gaps = gaps - base
    offsets, slopes = lengths_and_slopes(gaps, direction)
    return KrumProblem(distances[benign, benign], offsets, slopes, d=direction.size), base


def largest_lambda(problem: KrumProblem, step: Round) -> tuple[float, bool]:
    """Return the attacker's lambda, by Equation 2 or 4, and whether it was found.

    Full knowledge: c copies, Krum assuming what the master device does. Partial: crafted models are
    added one at a time, at most c, and `attacker_assumes` says what the attacker's own Krum takes.
    """
    exact = step.parameters.search == "exact"
    if not step.partial:
        return problem.largest_lambda([step.c], lambda copies: step.master.c, exact)
    assumes = {"zero": lambda copies: 0, "added": lambda copies: copies, "c": lambda copies: step.c}
    assumed = assumes[step.parameters.attacker_assumes]
    return problem.largest_lambda(range(1, step.c + 1), assumed, exact)


def _supporters(crafted: np.ndarray, step: Round) -> np.ndarray:
    """w'_1 and c - 1 models around it: distance epsilon * U(0, 1), uniform direction (3.2)."""
    out = step.rng.standard_normal((step.c, crafted.size), dtype=np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", out, out))  # without a second matrix for the squares
    radii = (step.parameters.epsilon * step.rng.random(step.c)).astype(np.float32)
    radii[0] = 0.0
    out *= (radii / lengths)[:, None]
    out += crafted
    return out


@attack(
    "krum",
    limit=Limit("m - 2c - 1", lambda m, c, beta: m - 2 * c - 1),
    against=("krum", "bulyan"),
)
def krum_attack(step: Round) -> np.ndarray:
    """Make Krum pick w'_1 = w_re - lambda s for the largest lambda found (3.2).

    With the deviation goal (Appendix B), w'_1 = w_re - lambda.

    >>> import fltrust_repro as fl
    >>> sent = fl.krum_attack([[4], [1], [2], [3], [5], [6], [-2]], c=2, epsilon=0).round(2)
    >>> sent.ravel(), fl.krum([*sent, [2], [3], [5], [6], [-2]], c=2)
    (array([-1.08, -1.08], dtype=float32), array([-1.08], dtype=float32))
    """
    deviates = step.parameters.goal == "deviation"
    direction = np.ones_like(step.known[0]) if deviates else changing_direction(step)
    problem, base = krum_problem(step, direction)
    scale, found = largest_lambda(problem, step)
    step.notes["lambda not found"] += not found
    return _supporters(base - np.float32(scale) * direction, step)


# --- trimmed mean (3.3), also used against median (3.4) and mean


def benign_interval(step: Round, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Full knowledge: from the extreme of the benign models to b times as far (3.3).

    Returns the near and the far end for each parameter, as updates. With
    `interval_space="model"` the interval is taken on local models, not on updates.
    """
    near, b = extremes(step.known[step.c :], -direction), step.parameters.b
    shift = step.w_re if step.parameters.interval_space == "model" else np.zeros_like(near)
    near = near + shift
    outward = (direction < 0) == (near > 0)
    far = np.where(outward, near * b, near / b)
    return near - shift, far - shift


def estimated_interval(step: Round, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Partial knowledge: mu + 3 sigma to mu + 4 sigma against the direction (3.3)."""
    mu, sigma = moments(step.known)
    return mu - 3 * direction * sigma, mu - 4 * direction * sigma


@attack("trimmed-mean", against=("trimmed-mean", "median"))
def trimmed_mean_attack(step: Round) -> np.ndarray:
    """Put all compromised values beyond the benign ones, against the changing direction (3.3).

    With the deviation goal (Appendix B), on the side where that moves trimmed mean further.

    >>> import fltrust_repro as fl
    >>> fl.trimmed_mean_attack([[1, 2], [3, 4], [5, 6], [7, 8]], c=1, b=1.0001).round(2)
    array([[3., 4.]], dtype=float32)
    """
    deviates = step.parameters.goal == "deviation"
    direction = -farther_side(step) if deviates else changing_direction(step)
    near, far = (estimated_interval if step.partial else benign_interval)(step, direction)
    out = step.rng.random((step.c, near.size), dtype=np.float32)
    out *= far - near
    out += near
    return out


def farther_side(step: Round) -> np.ndarray:
    """+1 where values above all benign ones move trimmed mean further from where it is, else -1."""
    # Of few workers selected another rule may take a beta that trimmed mean could not.
    beta = min(step.master.beta, (len(step.known) - 1) // 2)
    before = trimmed_mean(step.known, beta)
    one = np.ones_like(before)

    def moved(side: np.ndarray) -> np.ndarray:
        near, _ = benign_interval(step, -side)
        crafted = np.concatenate([np.tile(near, (step.c, 1)), step.known[step.c :]])
        return np.abs(trimmed_mean(crafted, beta) - before)

    return np.where(moved(one) > moved(-one), one, -one)
