"""What crafted updates are beside the benign ones of an iteration, and what a rule made of them.

Nothing is known of the rule but its answers, so that it may be any. How far its result follows a
worker is told by a small step of that worker's update: the share of the step that the result makes
too. A mean follows each worker by 1/m, Krum one by 1; a trimmed value is not followed. Leaving
workers out tells less: of c copies none is missed, another m is another rule, and where values are
cut on both sides those that are cut decide what is. That is told by what the rule makes of the same
updates before the attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fltrust_repro.attacks import undone
from fltrust_repro.distances import squared_distances
from fltrust_repro.spectral import spread
from fltrust_repro.weighing import finite_rows, lengths, shortening

_STEP = 1e-3  # of a parameter's mean size in benign updates
_FOLLOWED = 0.1  # of a worker's fair share of the influence
_LEAST = 0.05  # of a step that all make together, below which a result does not follow anybody
_ADDS = 0.3  # how far the sum of what it follows may be from what it follows of all together
_SAME = 1e-3  # of a result's length: what differs by less is the same
_TINY = 1e-30  # no quotient has it for a denominator, but for 0/0

Answer = Callable[[np.ndarray], np.ndarray]


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
    updates = updates[finite_rows(updates)]  # of a benign one's values nothing can be told
    benign = updates[c:]
    if not len(benign):
        return Facts(finite, share, followed, gone, way, shortened)
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
    benign = updates[c:][finite_rows(updates[c:])]
    sizes = np.abs(benign).mean(axis=0, dtype=np.float64) if len(benign) else np.zeros(d)
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
