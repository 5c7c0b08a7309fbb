"""Why a rule fell under an attack, in words: a trial is replayed, and the rule asked what it does.

A rule has fallen from the first evaluated iteration on from which the error stays at twice that of
the same seed's trial without attack. Of the iterations since the evaluation before, that is looked
at in which the error rises most: `facts` has what is asked there.

>>> from fltrust_repro.fall import fell_at
>>> clean = [(10, 0.40, 0.0), (20, 0.20, 0.0), (30, 0.10, 0.0)]
>>> fell_at([(10, 0.90, 0.0), (20, 0.30, 0.0), (30, 0.25, 0.0)], clean)
30
"""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fltrust_repro import backend
from fltrust_repro.captions import of_master
from fltrust_repro.errors import BadInput
from fltrust_repro.facts import Facts, measured
from fltrust_repro.replay import Moment, replayed
from fltrust_repro.trials import Trial

TIMES = 2  # the clean error: the rule has fallen
WIDTH = 80
# From where on a fact is worth a sentence; the last two of a fair share of the influence.
_LONG, _ALIKE, _APART, _CUT, _CROWD = 1.5, 0.05, 3.0, 0.1, 2.0
_FEW = 0.1  # of the benign workers

Curve = Sequence[tuple[int, float, float]]


@backend.one_thread()
@np.errstate(over="ignore", invalid="ignore")
@backend.memory_told()
def explain(attacked: Trial, clean: Trial, data_dir: str | Path | None = None) -> str:
    """Return in at most 12 lines when and how the rule fell in a trial, and what to look at.

    `clean` is the trial of the same setting and seed without attack. The attacked one is replayed,
    on the CPU, as far as where it fell, and m + 5 results are asked for in the iteration looked at.
    Raises `BadInput` where the two trials are not such a pair, and what `run_trial` raises.
    """
    if attacked.seed != clean.seed or attacked.setting.without_attack() != clean.setting:
        raise BadInput(
            "the two trials are no pair; give an attacked one and that of the same setting and "
            "seed without attack."
        )
    curve = attacked.result.curve
    begun = fell_at(curve, clean.result.curve)
    iterations = span(curve, begun)
    sentences = [_course(attacked, clean, begun)]
    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints
        seen = replayed(attacked.setting, attacked.seed, iterations, data_dir)
        if seen is None:
            sentences.append(f"From iteration {iterations[0]} on no worker attacked.")
        else:
            facts = measured(seen.updates, seen.c, seen.before, seen.master.answer)
            sentences += [_influence(seen, facts), _crafted(facts), _advice(seen, facts, begun)]
            sentences.append(_rounded(seen, curve))
    return "\n".join(textwrap.fill(one, WIDTH) for one in filter(None, sentences))


def fell_at(attacked: Curve, clean: Curve) -> int | None:
    """Return the first evaluated iteration from which the error stays at `TIMES` the clean one.

    None where the last one is below that. Where a trial diverged between two evaluations, the clean
    trial's latest before counts, or its first.
    """
    begun = None
    for iteration, error, _ in reversed(attacked):
        same = [e for i, e, _ in clean if i <= iteration] or [clean[0][1]]
        if error <= 0 or error < TIMES * same[-1]:
            break
        begun = iteration
    return begun


def span(curve: Curve, begun: int | None) -> range:
    """Return the iterations to look at: those since the evaluation before it fell, or the last."""
    if begun is None:
        return range(curve[-1][0], curve[-1][0] + 1)
    held = max((i for i, _, _ in curve if i < begun), default=0)
    return range(held + 1, begun + 1)


def _course(attacked: Trial, clean: Trial, begun: int | None) -> str:
    """When it fell, and what the attack undid over the trial."""
    setting, result = attacked.setting, attacked.result
    ends = f"{result.error_rate:.2f} (clean {clean.result.error_rate:.2f})"
    told = f"did not fall under {setting.attack}, seed {attacked.seed}: its error ends at {ends}"
    if begun is not None:
        told = (
            f"fell under {setting.attack}, seed {attacked.seed}, at iteration {begun}: from there "
            f"on its error is at least twice the clean one, at the end {ends}"
        )
    if result.diverged:
        told += ", as the model diverged"
    notes = result.notes
    if count := notes.get("compared with no attack"):
        told += f". The attack undid {notes['undone']:.2f} of a step on average"
        told += f", nothing in {notes.get('no effect', 0):.0f} of {count:.0f}"
    return f"{of_master(setting)} {told}."


def _influence(seen: Moment, facts: Facts) -> str:
    """What the rule did in the iteration."""
    m, c = len(seen.updates), seen.c
    told = f"Iteration {seen.iteration}: "
    if seen.errors[1] > 0 and seen.errors[1] >= TIMES * seen.errors[0]:
        told += f"in it the error goes from {seen.errors[0]:.2f} to {seen.errors[1]:.2f}; "
    who, have = f"the {c} compromised workers", "have"
    if c == 1:
        who, have = "the compromised worker", "has"
    if c > seen.master.c:
        told += f"{c} of {m} who send are compromised, where c is taken to be {seen.master.c}; "
        who, have = "they", "have"
    if facts.share is None:
        told += "the result follows no small step of a worker, so that influence cannot be told"
    else:
        told += f"{who} {have} {facts.share:.0%} of the influence (fair: "
        told += f"{c / m:.0%})"
    if facts.followed is not None:
        own, others = facts.followed
        told += "; the result follows " + ("" if own is None else f"{own} of them and ")
        told += f"{others} of the {m - c} benign ones"
    if facts.undone is not None:
        told += (
            f". The attack undid {facts.undone:.2f} of that step: the result went {facts.way:.2f} "
            "of the way to the mean of what they sent"
        )
    return f"{told}."


def _crafted(facts: Facts) -> str:
    """What the crafted updates look like."""
    if not facts.finite:
        return "What they sent is not finite."
    by_rule = ", which the rule shortens" * (facts.shortened and facts.length > _LONG)
    distance = f"{_few(facts.nearest)} times its distance to the nearest benign one"
    if not np.isnan(facts.among):
        distance += f", {_few(facts.among)} times to each other"
    to_mean, usual = facts.cosine
    told = [
        (facts.length, f"{_few(facts.length)} times its length{by_rule}"),
        (facts.nearest, distance),
        (to_mean, f"cosine to the benign mean {to_mean:.2f} ({usual:.2f})"),
        (facts.apart, f"{_few(facts.apart)} deviations away where updates spread most"),
    ]
    words = "; ".join(text for known, text in told if not np.isnan(known))
    return f"They sent, beside a benign update: {words}." if words else ""


def _few(number: float) -> str:
    """Two digits are enough of it, but no power of ten."""
    if number > 1e6:
        return "over a million"
    return f"{number:.2g}" if 0.01 < abs(number) < 99 else f"{number:,.0f}"


def _advice(seen: Moment, facts: Facts, begun: int | None) -> str:
    """One thing to look at, the first that the facts suggest; nothing where nothing happened."""
    moved = facts.undone is not None and facts.undone > 0.1
    if begun is None and facts.finite and not moved:
        return ""
    benign = len(seen.updates) - seen.c
    fair = seen.c / len(seen.updates)
    share = fair if facts.share is None else facts.share
    alone = facts.followed is not None and facts.followed[1] < _FEW * benign
    if not facts.finite:
        told = "values that are not finite: leave such updates out before anything is computed"
    elif seen.c >= benign:
        told = "what was sent before: half of those selected are compromised, or more"
    elif share < _CUT * fair and moved and facts.way is not None and facts.way < fair:
        told = (
            "what is cut: hardly anything they sent is in the result; they moved it by which of "
            "the others' values are left, as where as many are cut on each side"
        )
    elif facts.length > _LONG and not facts.shortened:
        told = "lengths: clip updates to their median length"
    elif facts.among < _ALIKE and alone and share > _CROWD * fair:
        told = (
            "copies: they are each other's nearest, a crowd where neighbours are counted; do not "
            "follow one update alone"
        )
    elif facts.length < 1 / _LONG and share > _CROWD * fair:
        told = "lengths: short updates move the result more than long ones; do not lengthen them"
    elif facts.apart > _APART:
        told = "the direction in which updates spread most, as CAF and DnC do: they stand out there"
    else:
        told = (
            "what they have in common: one by one like benign updates, they push the same way, "
            "all of them and in one iteration after another"
        )
    return f"Look at {told}."


def _rounded(seen: Moment, curve: Curve) -> str:
    """That the replayed trial parts from the one that was stored; nothing where it does not."""
    iteration, error = seen.end
    there = {i: error for i, error, _ in curve}.get(iteration, error)
    if error == there:
        return ""
    return (
        f"Replayed here, its error at iteration {iteration} is {error:.4f}, not {there:.4f}: "
        "machines round differently."
    )
