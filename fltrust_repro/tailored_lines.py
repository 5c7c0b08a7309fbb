"""What the attack on any rule tries: directions in the space of updates, in forms, at any scale.

A candidate is `line` by `scale`: a direction p in the space of updates, and a form in which the c
workers send it. With mu and sigma the mean and the standard deviation of each parameter over the
benign updates x_i, s the changing direction (Section 3.1), or what an attack has in its place, and
r the root mean square of sigma, the directions are

    std     -s sigma               as in ALIE and Min-Max
    sign    -s r                   as in the Krum attack (3.2)
    rule    -s r, with s from what the rule itself would output
    mean    -mu                    as in IPM
    beyond  the farthest benign value against s, from mu: as in the trimmed mean attack (3.3)

of which all but mean leave a parameter as it is in which no benign update differs, and the forms

    copies     mu + g p
    own        x_i + g p, x_i being the worker's own update: neither alike nor apart from others
    noisy      mu + g p and what the own update differs by from the mean of the four nearest benign
               ones: a crowd whose members differ as those of a group of benign workers do
    groups     mu + g p in every other parameter by half of the workers, in the rest by the others
    origin     g p: the received model is where it starts (3.2)
    disguised  g times the values of the benign update of median length, the largest where p is
               largest: no length, count of signs or magnitude tells it from that update

Against rules that act on each parameter alone, and whose result never falls where a value grows
(trimmed mean and median, not Meamed and Phocas), no update does more in one iteration than one
beyond all benign ones; the others are for all other rules, where what does most depends on the
scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fltrust_repro.distances import squared_distances
from fltrust_repro.kernels import extremes
from fltrust_repro.oblivious_attacks import benign_rows, by_all, exact_moments
from fltrust_repro.threat import Round
from fltrust_repro.weighing import lengths

_NEAR = 4  # benign updates, whose mean stands for a worker's group


class Line(NamedTuple):
    """What the c workers send at a scale, float32 (c, d), and the scale tried first."""

    name: str
    at: Callable[[np.float32], np.ndarray]
    first: float


def lines(step: Round, s: np.ndarray, s_rule: np.ndarray) -> list[Line]:
    """Return all lines; with full knowledge, as `world` gives it."""
    own, others, c = step.known[: step.c], step.known[step.c :], step.c
    benign = benign_rows(step)
    mu, sigma = (a.astype(np.float32) for a in exact_moments(benign))
    live = sigma > 0
    r = np.sqrt(np.square(sigma[live]).mean()) if live.any() else np.float32(0)
    std, sign, rule = -s * sigma, -s * r * live, -s_rule * r * live
    beyond = extremes(benign, -s) - mu
    near = np.argsort(squared_distances(step.known)[:c, c:], axis=1)[:, :_NEAR]
    noise = own - others[near].mean(axis=1)
    long = lengths(benign)
    values = np.sort(benign[np.argsort(long)[len(long) // 2]])

    def copies(p: np.ndarray) -> Callable[[np.float32], np.ndarray]:
        return lambda g: by_all(mu + g * p, c)

    def shifted(p: np.ndarray) -> Callable[[np.float32], np.ndarray]:
        return lambda g: own + g * p

    def noisy(p: np.ndarray) -> Callable[[np.float32], np.ndarray]:
        return lambda g: mu + g * p + noise

    def groups(p: np.ndarray) -> Callable[[np.float32], np.ndarray]:
        halves = np.tile(p, (c, 1))
        halves[: c // 2, ::2] = halves[c // 2 :, 1::2] = 0
        return lambda g: mu + g * halves

    def disguised(p: np.ndarray) -> Callable[[np.float32], np.ndarray]:
        row = np.empty_like(values)
        row[np.argsort(p)] = values
        return lambda g: by_all(g * row, c)

    return [
        Line("copies of std", copies(std), 1.0),
        Line("own with std", shifted(std), 1.0),
        Line("noisy std", noisy(std), 1.0),
        Line("groups of std", groups(std), 1.0),
        Line("disguised std", disguised(std), 1.0),
        Line("copies of sign", copies(sign), 1.0),
        Line("own with sign", shifted(sign), 1.0),
        Line("noisy sign", noisy(sign), 1.0),
        Line("origin with sign", lambda g: by_all(g * sign, c), 1.0),
        Line("copies of rule", copies(rule), 1.0),
        Line("copies of mean", copies(-mu), 2.0),
        Line("own with mean", shifted(-mu), 2.0),
        Line("noisy mean", noisy(-mu), 2.0),
        Line("disguised mean", disguised(-mu), 1.0),
        Line("copies of beyond", copies(beyond), 1.0),
    ]
