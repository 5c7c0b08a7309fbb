"""Why a rule fell under an attack, in words: a trial is replayed, and the rule asked what it does.

A rule has fallen from the first evaluated iteration on from which the error stays at twice that of
the same seed's trial without attack. Of the iterations since the evaluation before, that is looked
at in which the error rises most, and of a rule nothing is known but its answers, so that it may be
any. How far its result follows a worker is told by a small step of that worker's update: the share
of the step that the result makes too. A mean follows each worker by 1/m, Krum one by 1; a trimmed
value is not followed. Leaving workers out tells less: of c copies none is missed, another m is
another rule, and where values are cut on both sides those that are cut decide what is. That is told
by what the rule makes of the same updates before the attack.

>>> from fltrust_repro.fall import fell_at
>>> clean = [(10, 0.40, 0.0), (20, 0.20, 0.0), (30, 0.10, 0.0)]
>>> fell_at([(10, 0.90, 0.0), (20, 0.30, 0.0), (30, 0.25, 0.0)], clean)
30
"""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fltrust_repro import backend
from fltrust_repro.attacks import undone
from fltrust_repro.captions import of_master
from fltrust_repro.distances import squared_distances
from fltrust_repro.errors import BadInput
from fltrust_repro.plugins import plugins_for
from fltrust_repro.replay import Moment, replayed
from fltrust_repro.spectral import spread
from fltrust_repro.trial_process import afresh
from fltrust_repro.trials import Trial
from fltrust_repro.weighing import lengths, shortening

TIMES = 2  # the clean error: the rule has fallen
WIDTH = 80
_STEP = 1e-3  # of a parameter's mean size in benign updates
_FOLLOWED = 0.1  # of a worker's fair share of the influence
_LEAST = 0.05  # of a step that all make together, below which a result does not follow anybody
_ADDS = 0.3  # how far the sum of what it follows may be from what it follows of all together
# From where on a fact is worth a sentence; the last two of a fair share of the influence.
_LONG, _ALIKE, _APART, _CUT, _CROWD = 1.5, 0.05, 3.0, 0.1, 2.0
_FEW = 0.1  # of the benign workers
_SAME = 1e-3  # of a result's length: what differs by less is the same
_TINY = 1e-30  # no quotient has it for a denominator, but for 0/0

Curve = Sequence[tuple[int, float, float]]
Answer = Callable[[np.ndarray], np.ndarray]


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
    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints
        with afresh(attacked.seed, plugins_for(())):
            seen = replayed(attacked.setting, attacked.seed, iterations, data_dir)
        facts = None
        if seen is not None:
            facts = measured(seen.updates, seen.c, seen.before, seen.master.answer)
    sentences = [_course(attacked, clean, begun)]
    if seen is None or facts is None:
        sentences.append(f"From iteration {iterations[0]} on no worker attacked.")
    else:
        sentences += [_influence(seen, facts), _crafted(facts), _advice(seen, facts, begun)]
        iteration, error = seen.end
        there = {i: error for i, error, _ in curve}.get(iteration, error)
        if error != there:
            sentences.append(
                f"Replayed here, its error at iteration {iteration} is {error:.4f}, not "
                f"{there:.4f}: machines round differently."
            )
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


@dataclass(frozen=True)
class Facts:
    """What the crafted updates of one iteration are beside the benign ones; medians over workers.

    None where it cannot be told.
    """

    finite: bool  # all of them; where one is not, only what the rule did is told
    share: float | None  # of the influence on the result, from 0 to 1
    followed: tuple[int | None, int] | None  # how many of the c, and of the others
    undone: float | None  # of the change without the attack
    way: float | None  # from that change to the mean of what they sent
    shortened: bool = False  # by the rule: as long as benign ones, they would have done the same
    length: float = np.nan  # over the benign ones'
    cosine: tuple[float, float] = (np.nan, np.nan)  # to the benign mean, theirs and a benign one's
    nearest: float = np.nan  # distance to the nearest benign one, over a benign one's
    among: float = np.nan  # distance to each other, over the benign ones'
    apart: float = np.nan  # along the direction of the largest spread, in benign deviations


def measured(updates: np.ndarray, c: int, before: np.ndarray | None, answer: Answer) -> Facts:
    """Return the facts of updates (m, d) of which the first c are crafted.

    `answer`, which is asked m + 4 times, makes of updates what the master device would; `before` is
    what it would have made without the attack. Where a rule shortens what they sent, its influence
    and the way are those of what it shortens it to.
    """
    benign, result = updates[c:], answer(updates)
    finite = bool(np.isfinite(updates[:c]).all())
    short = _of_median_length(updates, c) if finite else updates
    gap = np.linalg.norm(answer(short).astype(np.float64) - result)
    shortened = (
        finite
        and c < len(benign)
        and bool(gap <= _SAME * np.linalg.norm(result.astype(np.float64)))
    )
    taken = short if shortened else updates
    share, followed = _followed(taken, c, result, answer)
    gone = way = None
    if before is not None and finite and np.isfinite([before, result]).all():
        gone = undone(before, result)
        path = taken[:c].mean(axis=0, dtype=np.float64) - before
        way = float((result - before) @ path / max(path @ path, _TINY))
    if not finite:
        return Facts(finite, share, followed, gone, way)
    long, mean = lengths(updates), benign.mean(axis=0, dtype=np.float64)
    cosines = updates @ mean / np.maximum(long * np.linalg.norm(mean), _TINY)
    squared = squared_distances(updates)
    apart, usual = _apart(squared), _apart(squared_distances(benign))  # from far away these cancel
    typical = _median(usual[np.isfinite(usual)])
    nearest = _median(usual.min(axis=1)) if len(benign) > 1 else np.nan
    return Facts(
        finite, share, followed, gone, way, shortened,
        length=_median(long[:c]) / max(_median(long[c:]), _TINY),
        cosine=(_median(cosines[:c]), _median(cosines[c:])),
        nearest=_median(apart[:c, c:].min(axis=1)) / max(nearest, _TINY),
        among=_median(apart[:c, :c][~np.eye(c, dtype=bool)]) / max(typical, _TINY),
        apart=_along_the_spread(squared, c),
    )  # fmt: skip


def _apart(squared: np.ndarray) -> np.ndarray:
    """Distances (m, m) of their squares; nobody is near itself."""
    return np.sqrt(squared) + np.diag(np.full(len(squared), np.inf))


def _of_median_length(updates: np.ndarray, c: int) -> np.ndarray:
    """The updates, of which the first c are shortened to the median length of all."""
    long = lengths(updates)
    factors = np.where(np.arange(len(long)) < c, shortening(long, _median(long)), 1)
    return updates * factors.astype(np.float32)[:, None]


def _followed(
    updates: np.ndarray, c: int, result: np.ndarray, answer: Answer
) -> tuple[float | None, tuple[int | None, int] | None]:
    """Share of the compromised workers' influence, and how many of each kind have any.

    Of those the number is None where they have it as a group only, as copies of one update do.
    """
    m, d = updates.shape
    sizes = np.abs(updates[c:]).mean(axis=0, dtype=np.float64)
    step = (_STEP * sizes * np.random.default_rng(0).choice([-1, 1], d)).astype(np.float32)
    squared = float(step.astype(np.float64) @ step)

    def follows(rows: slice) -> float:
        moved = updates.copy()
        moved[rows] += np.where(moved[rows] != 0, step, 0)  # zeros stay, by which some rules judge
        return float((answer(moved).astype(np.float64) - result) @ step / squared)

    rounding = np.finfo(np.float32).eps * float(np.linalg.norm(result.astype(np.float64) * step))
    if not squared > 0 or not rounding / squared < _FOLLOWED / m:
        return None, None
    group = follows(slice(0, c))
    each = np.array([follows(slice(i, i + 1)) for i in range(m)])
    total, together = group + each[c:].sum(), follows(slice(0, m))
    # It stands still; or it votes, where a step flips a vote or does nothing, and steps do not add.
    if not total > _LEAST or not abs(together - total) < _ADDS * total:
        return None, None
    kept = each > _FOLLOWED * total / m
    alone = abs(each[:c].sum() - group) < _ADDS * max(group, total / m)
    counts = int(kept[:c].sum()) if alone else None, int(kept[c:].sum())
    return float(np.clip(group / total, 0, 1)), counts


def _along_the_spread(squared: np.ndarray, c: int) -> float:
    """How far the first c are from the others along the direction in which all spread most.

    From squared distances (m, m), in standard deviations of the others.
    """
    if not np.isfinite(squared).all() or len(squared) - c < 2:
        return np.nan
    _, places = spread(squared)
    gap = abs(places[:c].mean() - places[c:].mean())
    return float(gap / max(places[c:].std(), _TINY))


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else np.nan


# ---- sentences


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
    who = f"the {c} compromised workers"
    if c > seen.master.c:
        told += f"{c} of {m} who send are compromised, where c is taken to be {seen.master.c}; "
        who = "they"
    if facts.share is None:
        told += "the result follows no small step of a worker, so that influence cannot be told"
    else:
        told += f"{who} have {facts.share:.0%} of the influence (fair: "
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
    told = [
        (facts.length, f"{_few(facts.length)} times its length{by_rule}"),
        (facts.nearest, distance),
        (0, f"cosine to the benign mean {facts.cosine[0]:.2f} ({facts.cosine[1]:.2f})"),
        (facts.apart, f"{_few(facts.apart)} deviations away where updates spread most"),
    ]
    words = "; ".join(text for known, text in told if not np.isnan(known))
    return f"They sent, beside a benign update: {words}."


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
