"""Plug-in: who decides which update FoundationFL copies.

`foundation` copies the update of the largest min(|x - g_max|, |x - g_min|), where g_max and g_min
hold each parameter's largest and smallest value among all updates, the attackers' among them.

Form "three". One attacker sends K in every parameter and one -K, with K at least as large as all
benign values; then g_max and g_min are these two, and for an update x of values within [-K, K]

    min(|x - g_max|^2, |x - g_min|^2) = K^2 d + |x|^2 - 2 K |sum x|,

which is 0 for the two themselves. So a third one's v is copied if, for every benign x,

    |v|^2 - 2 K |sum v| > |x|^2 - 2 K |sum x|:

if its values add up to 0 it need only be longer than they are. Here v = -K s in the parameters of
the rarer sign of s, and in the n others so much of it that the sum is 0.

Form "one". The two are not needed. A single v that is beyond all benign values, at -K s, is itself
half of the extremes. With P and N the parameters that it lowers and those that it raises, v is
copied if, for every benign x,

    sum over P of (g_max - x)(2 K + g_max + x) > sum over N of (x - g_min)^2   and
    sum over N of (x - g_min)(2 K - g_min - x) > sum over P of (g_max - x)^2,

g_max and g_min being those of the benign updates there. The left sides grow with K and the right
ones do not, so that some K is enough, unless a benign update is itself the extreme in all of P, or
in all of N.
"""

from __future__ import annotations

import numpy as np

import fltrust_repro as fl
from fltrust_repro.attacks import Round, changing_direction
from fltrust_repro.errors import BadInput
from fltrust_repro.oblivious_attacks import benign_rows, by_all, one_of
from fltrust_repro.preaggregations import foundation


@fl.attack("foundation-selection")
def foundation_selection(step: Round, *, form: str = "three", times: float = 10.0) -> np.ndarray:
    """Have FoundationFL copy a vector against the changing direction s.

    K is `times` the largest benign value that is known, by size. Those of the c workers that send
    neither K nor -K send the vector; where they are fewer than three, all. With full knowledge the
    trial notes in how many iterations it was "copied".
    """
    one_of("foundation-selection", "form", form, ("three", "one"))
    if not times >= 1:
        raise BadInput(f"attack 'foundation-selection': times is {times}; give at least 1.")
    benign = benign_rows(step)
    k, s = np.float32(times) * np.abs(benign).max(), changing_direction(step)
    sent = by_all(-k * (s if form == "one" else balanced(s)), step.c)
    if form == "three" and step.c >= 3:
        sent[0], sent[1] = k, -k
    if not step.partial:
        copied = foundation(np.concatenate([sent, benign]))[-1]
        step.notes["copied"] += int(np.array_equal(copied, sent[-1]))
    return sent


def balanced(s: np.ndarray) -> np.ndarray:
    """Signs (d,) shortened on the side that has more of them, so that they add up to 0."""
    up, down = np.count_nonzero(s > 0), np.count_nonzero(s < 0)
    rarer = min(up, down)
    sizes = np.where(s > 0, rarer / max(up, 1), rarer / max(down, 1))
    return (s * sizes).astype(np.float32)
