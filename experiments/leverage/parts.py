"""Plug-in: the rule `leverage` without some of its parts, and an attack that holds one line.

`leverage-parts` is the rule itself unless told otherwise; README.md says what each part is for.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

import fltrust_repro as fl
from fltrust_repro.attacks import Round, changing_direction
from fltrust_repro.errors import BadInput, choose
from fltrust_repro.leverage import (
    PRICE,
    RIDGE,
    Said,
    among_all,
    beside_the_nearest,
    follow,
    said,
    voices,
)
from fltrust_repro.spectral import filtered
from fltrust_repro.tailored import lines
from fltrust_repro.weighing import lengths, shortening, weighted_mean

_NOISE = ("least", "median")
_WHO = ("all", "selected")
_FILTERS = {"both": (True, True), "all": (True, False), "beside": (False, True), "none": ()}


@fl.rule("leverage-parts")
def leverage_parts(
    updates: np.ndarray,
    c: int,
    memory: dict[str, Any],
    workers: np.ndarray,
    notes: Counter[str],
    *,
    ridge: float = RIDGE,
    noise: str = "least",
    filters: str = "beside",
    price: float = PRICE,
    decay: float = 0.985,
    near: int = 4,
    answers: int = 1,
    compared: str = "all",
) -> np.ndarray:
    """Leverage with another `ridge`, other `filters`, and another `price`, of CAF's filter 0.

    `decay=0` has no memory, `ridge=0` weighs nobody by leverage; `noise=median` measures the ridge
    by the median eigenvalue; `filters=all` is the filter on what workers keep saying instead of
    that `beside` the nearest; `answers=0` does not ask how workers answer to where the model went;
    `compared=selected` compares those who send, and not all who ever did.
    """
    told = {"noise": (noise, _NOISE), "filters": (filters, _FILTERS), "compared": (compared, _WHO)}
    for name, (value, allowed) in told.items():
        if value not in allowed:
            wrong = f"rule 'leverage-parts': {name} is {value!r}"
            raise BadInput(f"{wrong}; {choose(value, allowed)}")
    now = said(updates, workers, memory, decay)
    if not len(now.rows):
        return weighted_mean(updates, np.zeros(len(updates)))
    if compared == "selected":
        now = of_those_selected(now)
    n, c = among_all(len(updates), c, now)
    known = len(now.squared)
    place = c if noise == "least" else known // 2
    weights = voices(now.squared, place, ridge) if ridge else np.ones(known)
    seen = (now.squared, beside_the_nearest(now.squared, near))
    for squared, wanted in zip(seen, _FILTERS[filters]):
        if wanted:
            weights *= filtered(squared, n - 2 * c, price)
    if answers:
        weights *= now.answered
    return follow(now, weights, memory, notes)


def of_those_selected(now: Said) -> Said:
    """What is known of who sends now, shortened to the median length of these."""
    long, at = lengths(now.rows), now.places
    return Said(
        now.rows,
        shortening(long, np.median(long)),
        np.arange(len(at)),
        now.squared[np.ix_(at, at)],
        now.answered[at],
    )


@fl.attack("line")
def line(
    now: Round, *, name: str = "noisy-std", scale: float = 0.5, lasting: int = 0, begin: int = 1
) -> np.ndarray:
    """Send one line of `tailored` at one scale, and before iteration `begin` the own updates.

    With `lasting` 1 it goes against the changing direction of its first iteration.
    """
    now.memory["iteration"] = now.memory.get("iteration", 0) + 1
    s = changing_direction(now)
    known = {one.name.replace(" ", "-"): one for one in lines(now, s, s)}
    if name not in known:
        raise BadInput(f"attack 'line': there is no line {name!r}; {choose(name, known)}")
    if now.memory["iteration"] < begin:
        return now.known[: now.c]
    if lasting:
        s = now.memory.setdefault("s", s)
        known = {one.name.replace(" ", "-"): one for one in lines(now, s, s)}
    return known[name].at(np.float32(scale))


@fl.attack("turned")
def turned(now: Round, *, decay: float = 0.985) -> np.ndarray:
    """Send the own updates less twice their running mean, of weight `decay` an iteration.

    What such a worker keeps saying is the reverse of its own; what it says beside that is not.
    """
    own = now.known[: now.c]
    usual, age = now.memory.get("usual", np.zeros_like(own)), decay * now.memory.get("age", 0.0) + 1
    usual = usual + (own - usual) / np.float32(age)
    now.memory.update(usual=usual, age=age)
    return own - 2 * usual
