"""Attacks since 2017 that do not ask what the aggregation rule is, in the space of updates.

Their authors write of gradients, which the master device subtracts; an update is -alpha times one,
what it adds. So `mu - z sigma` of gradients is `mu + z sigma` of updates, and which side of the
mean is meant depends on who reads. An attack that is made of sigma therefore takes a side: "below"
the mean in each parameter (the default: the sign in the authors' codes of ALIE, Min-Max and
ByzMean, for what these workers send), "above", which these codes are for gradients, or "against"
the direction in which the mean changes it, which is the strongest by far. Error rates of LR on
MNIST, 20 of 100 workers compromised, full knowledge (`run --seed 10`; "NNM" before the trimmed
mean):

                         mean  trimmed  median   Krum  Multi-Krum    NNM
    none                0.100    0.119   0.133  0.149       0.103  0.103
    alie, z = 0.29      0.102    0.118   0.118  0.113       0.105  0.105
      above             0.101    0.110   0.126  0.099       0.102  0.102
      against           0.107    0.137   0.146  0.429       0.112  0.112
    alie, z = 1.5       0.113    0.129   0.137  0.139       0.131  0.108
      above             0.100    0.106   0.128  0.133       0.101  0.100
      against           0.465    0.450   0.302  0.158       0.217  0.151
    min-max, std        0.117    0.129   0.137  0.136       0.107  0.102
      std-above         0.103    0.106   0.128  0.135       0.101  0.102
      std-against       0.534    0.455   0.302  0.142       0.204  0.151
      unit              0.710    0.422   0.270  0.153       0.209  0.186
      sign              0.530    0.607   0.304  0.137       0.232  0.105
    min-sum, std        0.116    0.129   0.137  0.134       0.107  0.103
      std-above         0.101    0.106   0.128  0.134       0.100  0.101
      std-against       0.494    0.456   0.302  0.138       0.160  0.116
      unit              0.597    0.430   0.283  0.140       0.157  0.120
      sign              0.450    0.591   0.305  0.135       0.207  0.113

Updates of logistic regression are skewed: "above" makes it learn faster there, "below" does little.

What an attack knows of the benign updates is those of the m - c others with full knowledge, and the
c own before-attack ones with partial knowledge. Of these a row that is not finite is not looked at;
where none is finite, it is as if there were one of zeros. Unless said, all c send the same update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from statistics import NormalDist

import numpy as np

from fltrust_repro.attacks import attack, attacks  # the paper's are registered first
from fltrust_repro.distances import lengths_and_slopes, squared_distances
from fltrust_repro.errors import BadInput, choose, shown
from fltrust_repro.threat import Attack, Round
from fltrust_repro.weighing import finite_rows

_COLUMNS = 2048  # a block of 100 rows in float64 then takes 1.6 MB


# --- what the attacker sees


def benign_rows(step: Round) -> np.ndarray:
    """Return the finite ones of the updates that the attacker takes for benign: float32 (n, d)."""
    rows = step.known if step.partial else step.known[step.c :]
    finite = finite_rows(rows)
    if finite.all():
        return rows
    return rows[finite] if finite.any() else np.zeros_like(rows[:1])


def exact_moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of (n, d), over n as in numpy: float64 (d,)."""
    mu, sigma = np.empty(rows.shape[1]), np.empty(rows.shape[1])
    for start in range(0, rows.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        block = rows[:, columns].astype(np.float64)
        mu[columns] = block.mean(axis=0)
        block -= mu[columns]
        sigma[columns] = np.sqrt(np.einsum("ij,ij->j", block, block) / len(block))
    return mu, sigma


Vector = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of mu and sigma

SIDES: dict[str, Vector] = {
    "below": lambda mu, sigma: -sigma,
    "above": lambda mu, sigma: sigma,
    "against": lambda mu, sigma: np.where(mu > 0, -sigma, sigma),  # no change counts as -1 (3.2)
}


def by_all(update: np.ndarray, c: int) -> np.ndarray:
    """Return what c workers send who all send this update: float32 (c, d)."""
    return np.tile(update.astype(np.float32), (c, 1))


def number(attack: str, name: str, value: object) -> float:
    """Return the value of an attack's own parameter; `BadInput` unless it is a finite number."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return value
    raise BadInput(f"attack {attack!r}: {name} is {shown(value)}; give a finite number.")


def one_of(attack: str, name: str, value: str, known: Collection[str]) -> None:
    """Raise `BadInput` where the value of an attack's own parameter is none of these."""
    if value not in known:
        raise BadInput(f"attack {attack!r}: {name} is {shown(value)}; {choose(value, known)}")


# --- the benign mean, turned round


def _mean_by_all(step: Round, factor: float) -> np.ndarray:
    return by_all(factor * exact_moments(benign_rows(step))[0], step.c)


@attack("sign-flip")
def sign_flip(step: Round, *, of: str = "own", scale: float = 1.0) -> np.ndarray:
    """Send -scale times the own update, or with `of=mean` the benign mean (Li et al., AAAI 2019).

    Non-finite own updates are sent as they are.

    >>> import fltrust_repro as fl
    >>> fl.attacks["sign-flip"]([[1, -2], [2, 4], [4, 0]], c=1)
    array([[-1.,  2.]], dtype=float32)
    """
    one_of("sign-flip", "of", of, ("own", "mean"))
    if of == "own":
        return np.float32(-scale) * step.known[: step.c]
    return _mean_by_all(step, -scale)


@attack("ipm")
def ipm(step: Round, *, epsilon: float = 0.1) -> np.ndarray:
    """Inner product manipulation: -epsilon mu ("Fall of Empires", Xie et al., UAI 2019).

    The inner product of what is sent and the benign mean is negative. Mean's own with it turns
    negative where epsilon > (m - c) / c; below it only shrinks, and the rows stay short. epsilon =
    0.1 is what Karimireddy et al. (ICLR 2022) take; 100 turns mean round.

    >>> import fltrust_repro as fl
    >>> fl.attacks["ipm:epsilon=0.5"]([[9, 9], [2, 4], [4, 0]], c=1)
    array([[-1.5, -1. ]], dtype=float32)
    """
    return _mean_by_all(step, -epsilon)


# --- a little is enough


def z_max(m: int, c: int) -> float:
    """How many standard deviations leave the supporters needed for a majority farther out (ALIE).

    With s = floor(m/2 + 1) - c supporters, Phi(z) = (m - c - s) / (m - c): Phi^-1 is meant, where
    a widely copied code takes Phi, and gets z = 0.73 for 0.25 of m = 50, c = 10. Not below 0, where
    the formula ends for c = 1 of an even m; s is at least 1.

    >>> from fltrust_repro.oblivious_attacks import z_max
    >>> round(z_max(100, 20), 3), round(z_max(50, 24), 2)
    (0.286, 1.43)
    """
    supporters = max(m // 2 + 1 - c, 1)
    share = (m - c - supporters) / (m - c)
    return NormalDist().inv_cdf(share) if share > 0.5 else 0.0


@attack("alie")
def alie(step: Round, *, z: float | None = None, side: str = "below") -> np.ndarray:
    """A little is enough: z standard deviations from the mean (Baruch et al., NeurIPS 2019).

    mu - z sigma in each parameter, or mu + z sigma as `side` says, where z is `z_max(m, c)` unless
    given; the paper's experiment on MNIST takes 1.5. `side=against` is the strongest (see above).
    Its authors know the c own updates only: partial knowledge. sigma is over n, as in their code.

    >>> import fltrust_repro as fl
    >>> fl.attacks["alie:z=1"]([[0, 0], [1, 4], [3, 4]], c=1)
    array([[1., 4.]], dtype=float32)
    """
    chosen = z_max(step.master.m, step.c) if z is None else number("alie", "z", z)
    mu, sigma = exact_moments(benign_rows(step))
    return by_all(mu + chosen * _towards("alie", side, mu, sigma), step.c)


def _towards(attack: str, side: str, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    one_of(attack, "side", side, SIDES)
    return SIDES[side](mu, sigma)


@attack("byzmean")
def byzmean(step: Round, *, z: float = 0.5, side: str = "below") -> np.ndarray:
    """Two groups, by which the mean of all is that of ALIE's (SignGuard; Xu et al., ICDCS 2022).

    The first m1 = floor(c/2) send x = mu -+ z sigma, as ALIE does, the other m2 = c - m1 send
    `((m - m1) x - sum of the m - c benign) / m2`, that is mu -+ (m - m1)/m2 z sigma: then the mean
    of all m is x. z = 0.5 as in the authors' code; that has m - c for the first m and adds up all m
    updates, by which the mean is missed.

    >>> import fltrust_repro as fl
    >>> fl.attacks["byzmean"]([[9], [9], [0], [0], [4], [4]], c=2)
    array([[ 1.],
           [-3.]], dtype=float32)
    """
    first, m = step.c // 2, step.master.m
    mu, sigma = exact_moments(benign_rows(step))
    away = z * _towards("byzmean", side, mu, sigma)
    near, far = mu + away, mu + (m - first) / (step.c - first) * away
    return np.concatenate([by_all(near, first), by_all(far, step.c - first)])


# --- within the distances of the benign updates: Min-Max and Min-Sum

VECTORS: dict[str, Vector] = {
    "unit": lambda mu, sigma: -mu,
    "sign": lambda mu, sigma: -np.sign(mu),
    "std": SIDES["below"],
    "std-above": SIDES["above"],
    "std-against": SIDES["against"],
}


def perturbation(name: str, vector: str, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return p, of length 1, or 0 where the vector is: float64 (d,)."""
    one_of(name, "vector", vector, VECTORS)
    p = VECTORS[vector](mu, sigma)
    largest = np.abs(p).max()
    p = p / largest if largest > 0 else p  # no square is lost, however small the updates
    return p / max(float(np.sqrt(p @ p)), 1.0)


def largest_within(squared: np.ndarray, slopes: np.ndarray, limit: float) -> float:
    """Largest gamma with |r + gamma p|^2 <= limit for every r, where |p| = 1: 0 where none is.

    From |r|^2 (`squared`) and p . r (`slopes`), both (n,): each inequality is a quadratic in
    gamma, which holds from a negative root to a positive one; the least positive one counts.
    """
    room = np.maximum(limit - squared, 0.0)
    return max(float((np.sqrt(slopes * slopes + room) - slopes).min()), 0.0)


@attack("min-max")
def min_max(step: Round, *, vector: str = "std") -> np.ndarray:
    """As far from the benign updates as two of these are (Shejwalkar and Houmansadr, NDSS 2021).

    All send mu + gamma p, with the largest gamma for which
    `max_i |mu + gamma p - x_i| <= max_ij |x_i - x_j|`, where p is -mu ("unit"), -sign(mu) ("sign")
    or the standard deviation, "std" below the mean, "std-above" or "std-against"; the authors take
    the best of three, and their code "unit" unless told otherwise. They search gamma, from a start
    and to a step in units of their gradients. It needs no search: with r_i = mu - x_i, |p| = 1 and
    D the largest distance, `gamma^2 + 2 gamma p.r_i + |r_i|^2 <= D^2` holds for each i from
    gamma = 0 (|r_i| is at most the mean distance of x_i to all) to the positive root

        gamma_i = sqrt((p.r_i)^2 + D^2 - |r_i|^2) - p.r_i,    and gamma = min_i gamma_i.

    >>> import fltrust_repro as fl
    >>> fl.attacks["min-max"]([[9], [1], [3], [5]], c=1)
    array([[1.]], dtype=float32)
    """
    benign = benign_rows(step)
    mu, sigma = exact_moments(benign)
    p = perturbation("min-max", vector, mu, sigma)
    squared, slopes = lengths_and_slopes(mu.astype(np.float32) - benign, p)
    distances = squared_distances(benign)
    apart = np.subtract(*benign[list(np.divmod(distances.argmax(), len(benign)))], dtype=np.float64)
    return by_all(mu + largest_within(squared, slopes, apart @ apart) * p, step.c)


@attack("min-sum")
def min_sum(step: Round, *, vector: str = "std", bound: str = "max") -> np.ndarray:
    """As far from all benign updates together as one is (Shejwalkar and Houmansadr, NDSS 2021).

    All send mu + gamma p, with the largest gamma for which
    `sum_i |mu + gamma p - x_i|^2 <= max_i sum_j |x_i - x_j|^2`, p as in Min-Max; `bound=min` takes
    the least sum, as the authors' code does. The benign updates' deviations from their mean add up
    to 0, so that for every x, sum_j |x - x_j|^2 = n |x - mu|^2 + sum_j |mu - x_j|^2: both sides
    have the second term, and what is left is, with |p| = 1,

        gamma = max_i |x_i - mu|,

    as far from the mean as the farthest benign update (the nearest with `bound=min`).

    >>> import fltrust_repro as fl
    >>> fl.attacks["min-sum:vector=sign"]([[9], [1], [2], [6]], c=1)
    array([[0.]], dtype=float32)
    """
    one_of("min-sum", "bound", bound, ("max", "min"))
    benign = benign_rows(step)
    mu, sigma = exact_moments(benign)
    p = perturbation("min-sum", vector, mu, sigma)
    squared, _ = lengths_and_slopes(mu.astype(np.float32) - benign, p)
    gamma = math.sqrt(squared.max() if bound == "max" else squared.min())
    return by_all(mu + gamma * p, step.c)


# --- on data: the labels of the compromised workers' examples


def random_labels(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Draw each label anew, uniformly among all classes, whenever an example is trained on."""
    return rng.integers(classes, size=labels.shape)


def least_likely_labels(
    labels: np.ndarray, classes: int, scores: Callable[[], np.ndarray]
) -> np.ndarray:
    """Flip each label to the class least likely to the received model (Shejwalkar et al., 2022).

    The authors ("Back to the drawing board", IEEE S&P) train a model of their own for that, on the
    compromised workers' examples; the received one is trained on all workers', and where the attack
    has turned it round, the least likely class can be the true one.
    """
    return scores().argmin(axis=-1)


attacks.add("random-labels", Attack("random-labels", poison=random_labels))
attacks.add("dynamic-label-flip", Attack("dynamic-label-flip", poison=least_likely_labels))
