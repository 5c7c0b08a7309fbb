"""The arena's statistics: which rule has the lowest error under the attack that is worst for it.

A rule's score is the largest over the columns of its mean error over seeds: never that of a seed,
which would reward noise. All seeds are paired: a seed means the same data, batches and compromised
workers for every rule and attack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from fltrust_repro.report import half_width

NO_ATTACK = "no-attack"  # the column
KNOWS_C, NO_C, SERVER_DATA = LEAGUES = ("knows c", "does not know c", "server data")
CANDIDATES = 3  # columns of a row that more seeds decide among
ROUNDING = 1e-12  # of a mean error rate
NO_EFFECT, SAME_AS_MEAN = 0.5, 0.95  # shares of the compared iterations, from which a flag is set


@dataclass(frozen=True)
class Cell:
    """A row under a column."""

    column: str
    errors: Mapping[int, float]  # by seed; at least one
    undone: float | None = None  # mean share of the step that the attack undid; None: not known
    no_effect: float | None = None  # share of the compared iterations in which it undid nothing
    same_as_mean: float | None = None  # share of those in which the rule gave the mean
    diverged: bool = False
    reported: float | None = None  # what a paper prints of the same setting

    @property
    def mean(self) -> float:
        """Mean error rate over seeds."""
        return fmean(self.errors.values())

    @property
    def half(self) -> float:
        """Half the width of the mean's 95% interval (Student's t); NaN for fewer than 3 seeds."""
        return half_width(list(self.errors.values()))


@dataclass(frozen=True)
class Entry:
    """A row of the ranking.

    `place` and `rank` are among all rows without server data, or all with; `league_place` and
    `league_rank` in its own league alone.
    """

    row: str
    league: str  # one of `LEAGUES`
    cells: Mapping[str, Cell]  # by column, in their order; `NO_ATTACK` among them
    worst: str  # the column that decides, as `worst_column` chooses it
    gap: float  # mean of the worst minus no attack, over the seeds that both have
    gap_half: float  # half of its 95% interval, paired by seed; NaN for fewer than 3 seeds
    rank: tuple[int, int] = (1, 1)  # `rank_intervals`
    place: int = 1  # ties share one
    league_rank: tuple[int, int] = (1, 1)
    league_place: int = 1
    flags: tuple[str, ...] = ()
    breakdown: int | None = None  # smallest c that doubles the clean error; None: not measured

    @property
    def clean(self) -> Cell:
        """The cell without attack."""
        return self.cells[NO_ATTACK]

    @property
    def score(self) -> Cell:
        """The cell that decides."""
        return self.cells[self.worst]


@dataclass(frozen=True)
class Standings:
    """A protocol's ranking, best first."""

    protocol: str  # "P1", with partial knowledge "P1 partial"
    version: int
    title: str
    columns: tuple[str, ...]
    entries: tuple[Entry, ...]
    missing: int = 0  # trials of the protocol that are not there yet

    def errors(self) -> dict[tuple[str, str], Mapping[int, float]]:
        """Return the errors by seed that the ranking counts, by row and column."""
        return {(e.row, column): c.errors for e in self.entries for column, c in e.cells.items()}

    def leagues(self) -> tuple[list[Entry], list[Entry]]:
        """Return the rules without examples of the server's own, and those with them."""
        alone = [entry for entry in self.entries if entry.league != SERVER_DATA]
        return alone, [entry for entry in self.entries if entry.league == SERVER_DATA]


def candidates(cells: Mapping[str, Cell]) -> list[str]:
    """Return the attacked columns of largest mean, the largest first, over seeds that all have."""
    attacked = {name: cell for name, cell in cells.items() if name != NO_ATTACK}
    means = _shared_means(attacked)
    return sorted(means, key=means.__getitem__, reverse=True)[:CANDIDATES]


def worst_column(cells: Mapping[str, Cell]) -> str:
    """Return the column that decides a row.

    The worst of 25 columns on 3 seeds is biased upward: of many noisy means the largest is mostly
    one that noise has lifted. So the few seeds that all columns have only say which three columns
    are `candidates`; among these and no attack the largest mean decides, over the seeds that these
    have in common. What stays: a column that the few seeds show too low is no candidate; where
    another's few are above the column that decides, the row has the flag "unsettled".
    """
    means = _shared_means({name: cells[name] for name in [*candidates(cells), NO_ATTACK]})
    return max(means, key=means.__getitem__)


def _shared_means(cells: Mapping[str, Cell]) -> dict[str, float]:
    """Each cell's mean over the seeds that all have; over its own where there is no such seed."""
    shared = set.intersection(*(set(cell.errors) for cell in cells.values())) if cells else set()
    return {
        name: fmean(cell.errors[seed] for seed in shared) if shared else cell.mean
        for name, cell in cells.items()
    }


def entry(
    row: str,
    league: str,
    cells: Mapping[str, Cell],
    flags: Sequence[str] = (),
    breakdown: int | None = None,
) -> Entry:
    """Return a row that is not ranked yet; `flags` are behind those that its cells set."""
    worst = worst_column(cells)
    decides, clean = cells[worst].errors, cells[NO_ATTACK].errors
    gaps = [decides[seed] - clean[seed] for seed in sorted(decides.keys() & clean.keys())]
    gap = fmean(gaps) if gaps else math.nan
    every = (*_flags(cells, worst), *flags)
    return Entry(row, league, cells, worst, gap, half_width(gaps), flags=every, breakdown=breakdown)


def _flags(cells: Mapping[str, Cell], worst: str) -> list[str]:
    cell = cells[worst]
    found = {
        "attack without effect": cell.no_effect is not None and cell.no_effect > NO_EFFECT,
        "equals the mean": cell.same_as_mean is not None and cell.same_as_mean >= SAME_AS_MEAN,
        "unsettled": any(one.mean > cell.mean for one in cells.values()),
        "diverged": any(one.diverged for one in cells.values()),
    }
    return [flag for flag, holds in found.items() if holds]


def ranked(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return the entries, the lowest mean first, with their places and ranks."""
    entries = sorted(entries, key=lambda one: (one.score.mean, one.row))
    # Seeds that a row alone has may put it elsewhere than those that two rows share.
    below = np.triu(told_apart([one.score.errors for one in entries]))
    overall = _places(below, [one.league == SERVER_DATA for one in entries])
    in_league = _places(below, [one.league for one in entries])
    return tuple(
        replace(one, rank=rank, place=place, league_rank=league_rank, league_place=league_place)
        for one, (rank, place), (league_rank, league_place) in zip(entries, overall, in_league)
    )


def _places(below: np.ndarray, groups: Sequence[object]) -> list[tuple[tuple[int, int], int]]:
    """Rank interval and place of each row among those of its group."""
    found: dict[int, tuple[tuple[int, int], int]] = {}
    for group in dict.fromkeys(groups):
        members = [number for number, its in enumerate(groups) if its == group]
        own = below[np.ix_(members, members)]
        found.update(zip(members, zip(rank_intervals(own), places(own))))
    return [found[number] for number in range(len(groups))]


def places(below: np.ndarray) -> list[int]:
    """Return the places of rows that are in order: ties share one.

    Going down, a row shares the place of those before it unless one of that place is surely below
    it; then it begins a place of its own. `below`, bool (n, n), is as `told_apart` returns it.

    >>> from fltrust_repro.standings import places, told_apart
    >>> low, high = {10: 0.1, 11: 0.2, 12: 0.1}, {10: 0.3, 11: 0.4, 12: 0.4}
    >>> places(told_apart([low, low, high, high]))
    [1, 1, 3, 3]
    """
    found: list[int] = []
    for number in range(len(below)):
        begins = not found or below[found[-1] - 1 : number, number].any()
        found.append(number + 1 if begins else found[-1])
    return found


def rank_intervals(below: np.ndarray) -> list[tuple[int, int]]:
    """Return within which ranks each row is among all, 1 the lowest mean.

    From one more than the rows that are surely below it, to as many as are not surely above it.
    A row of fewer than three seeds may have any rank. `below` is as `told_apart` returns it.

    >>> from fltrust_repro.standings import rank_intervals, told_apart
    >>> low, high = {10: 0.1, 11: 0.2, 12: 0.1}, {10: 0.3, 11: 0.4, 12: 0.4}
    >>> rank_intervals(told_apart([high, low, low]))
    [(3, 3), (1, 2), (1, 2)]
    """
    best, last = 1 + below.sum(axis=0), len(below) - below.sum(axis=1)
    return [(int(low), int(high)) for low, high in zip(best, last)]


def told_apart(scores: Sequence[Mapping[int, float]]) -> np.ndarray:
    """Return which row is surely below which other, bool (n, n), by their errors by seed."""
    below = [[surely_below(one, other) for other in scores] for one in scores]
    return np.array(below, dtype=bool).reshape(len(scores), len(scores))


def surely_below(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether the 95% interval of a difference, paired by the seeds that both have, is below 0.

    Student's t, which is as wide as it has to be where seeds are few. A bootstrap over three seeds
    tells equal rows apart where the three differences have one sign: once in four times.
    """
    above = [other[seed] - error for seed, error in one.items() if seed in other]
    # Sums in another order must not part equal rows.
    return bool(above) and fmean(above) - half_width(above) > ROUNDING
