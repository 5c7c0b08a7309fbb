"""The arena: the trials that a ranking needs, and the ranking that trials give.

Every rule meets every attack with the same few seeds; then the three columns that are worst for it,
and no attack, with more. Which these are, and so which trials count, follows from the few alone:
whatever else is at hand, the same protocol gives the same ranking.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import NamedTuple

from fltrust_repro import standings
from fltrust_repro.arena_protocols import Table
from fltrust_repro.attacks import MOST_UNDONE
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import Cell, Experiment
from fltrust_repro.server import of_root_data
from fltrust_repro.settings import Setting
from fltrust_repro.standings import NO_ATTACK, Standings
from fltrust_repro.tailored import ASKED, QUERIES
from fltrust_repro.trials import FIRST_SEED, Trial, Trials, core_seconds

SEEDS = range(FIRST_SEED, FIRST_SEED + 20)  # of no attack and the columns that decide
FEW = 3  # of these, everywhere
RANDOM, INCOMPLETE, LIMIT = "random", "incomplete", "its limit is its breakdown"


def rows_of(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return cells by their rows."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.row, []).append(cell)
    return found


# ---- which trials -------------------------------------------------------------------------------


def wanted(cells: Iterable[Cell], known: Trials, seeds: range = SEEDS) -> dict[Cell, range]:
    """Return each cell's seeds: the few, or all for a row's worst columns and no attack.

    Which columns these are is known when the few of all its columns are there.
    """
    found = {}
    for own in rows_of(cells).values():
        met = _met(own, known, seeds)
        refined = {NO_ATTACK, *standings.candidates(met)} if met else set()
        found.update({cell: seeds if cell.column in refined else seeds[:FEW] for cell in own})
    return found


def _met(own: Sequence[Cell], known: Trials, seeds: range) -> dict[str, standings.Cell]:
    """A row's cells with the few seeds, by column; none unless each has them all."""
    few = seeds[:FEW]
    found = {cell.column: measured(cell, known, few) for cell in own}
    whole = {column: one for column, one in found.items() if one and len(one.errors) == len(few)}
    return whole if len(whole) == len(own) and NO_ATTACK in whole else {}


def missing(cells: Iterable[Cell], known: Trials, seeds: range = SEEDS) -> dict[Cell, int]:
    """Return how many trials of each cell are still to be run.

    Of a row whose worst columns are not known yet, the first stand for these.
    """
    cells, found = list(cells), {}
    plan = wanted(cells, known, seeds)
    for own in rows_of(cells).values():
        open_ = all(len(plan[cell]) == len(seeds[:FEW]) for cell in own)
        for number, cell in enumerate(own):
            its = seeds if open_ and number <= standings.CANDIDATES else plan[cell]
            there = {trial.seed for trial in known.get(cell.setting, ())}
            found[cell] = sum(seed not in there for seed in its)
    return found


def seconds_of(experiment: Experiment, known: Trials) -> dict[str, float]:
    """Return what a trial of each column takes on a CPU core: the median of those at hand there.

    Of a column that has none it is the median of all.
    """
    taken: dict[str, list[float]] = {column: [] for column in experiment.columns}
    for cell in experiment.cells:
        taken[cell.column] += core_seconds(known.get(cell.setting, ()))
    every = [second for some in taken.values() for second in some]
    otherwise = median(every) if every else experiment.seconds or math.nan
    return {column: median(some) if some else otherwise for column, some in taken.items()}


# ---- what they say ------------------------------------------------------------------------------


def measured(cell: Cell, known: Trials, seeds: Iterable[int]) -> standings.Cell | None:
    """Return what a cell's trials of some seeds say; None where there are none."""
    trials = {t.seed: t for t in known.get(cell.setting, ()) if t.seed in seeds}
    if not trials:
        return None
    some = list(trials.values())
    undone = [  # within limits that trials of earlier versions know nothing of
        max(-MOST_UNDONE, min(t.result.notes["undone"], MOST_UNDONE))
        for t in some
        if "undone" in t.result.notes
    ]
    differs = _share(some, "differs from the mean", "compared with the mean")
    return standings.Cell(
        cell.column,
        {seed: trial.result.error_rate for seed, trial in sorted(trials.items())},
        fmean(undone) if undone else None,
        _share(some, "no effect", "compared with no attack"),
        None if differs is None else 1 - differs,
        any(trial.result.diverged for trial in some),
        cell.paper,
    )


def _share(trials: Sequence[Trial], counted: str, of: str) -> float | None:
    notes = [trial.result.notes for trial in trials if of in trial.result.notes]
    total = sum(note[of] for note in notes)
    return sum(note.get(counted, 0) for note in notes) / total if total else None


def league(setting: Setting) -> str:
    """Return which rules a rule is compared with, by what it and what comes before it ask for."""
    asked = setting.at_master.rule.parameters
    if of_root_data(asked) or setting.defense != "none":  # which has examples to validate on
        return standings.SERVER_DATA
    return standings.KNOWS_C if {"c", "beta"} & {*asked} else standings.NO_C


def draws(own: Sequence[Cell], known: Trials) -> bool:
    """Whether a row's master device draws at random, as attackers who ask it found out.

    Where none has asked, whether its rule asks for a generator or its defense has ties to break.
    """
    notes = [
        trial.result.notes
        for cell in own
        if ":" not in cell.setting.attack  # which may have other queries
        for trial in known.get(cell.setting, ())
    ]
    asked = [note for note in notes if ASKED in note]
    if asked:
        return any(note[ASKED] > QUERIES * note["attacked iterations"] for note in asked)
    setting = own[0].setting
    return "rng" in setting.at_master.rule.parameters or setting.defense != "none"


def ranking(table: Table, known: Trials, seeds: range = SEEDS) -> Standings:
    """Return the ranking of the rows that have met every attack with the few seeds."""
    entries = []
    plan = wanted(table.experiment.cells, known, seeds)
    for row, own in rows_of(table.experiment.cells).items():
        if len(own) < 2 or not _met(own, known, seeds):
            continue
        found = {cell.column: measured(cell, known, plan[cell]) for cell in own}
        cells = {column: one for column, one in found.items() if one is not None}
        whole = all(len(cells[cell.column].errors) == len(plan[cell]) for cell in own)
        broken = breakdown(own, known, seeds)
        flags = {
            RANDOM: draws(own, known),
            INCOMPLETE: not whole,
            LIMIT: broken.by_limit,
        }
        told = [flag for flag, holds in flags.items() if holds]
        entries.append(standings.entry(row, league(own[0].setting), cells, told, broken.c))
    left = sum(missing(table.experiment.cells, known, seeds).values())
    of, columns = table.protocol, table.experiment.columns
    return Standings(table.name, of.version, of.title, columns, standings.ranked(entries), left)


def pair(own: Sequence[Cell], known: Trials, column: str) -> tuple[Trial, Trial] | None:
    """Return a row's first trial under a column, and that of its seed without attack."""
    by_seed = [
        {trial.seed: trial for cell in own if cell.column == name for trial in known[cell.setting]}
        for name in (column, NO_ATTACK)
    ]
    shared = sorted(set.intersection(*map(set, by_seed)))
    return (by_seed[0][shared[0]], by_seed[1][shared[0]]) if shared else None


# ---- breakdown ----------------------------------------------------------------------------------


class Breakdown(NamedTuple):
    """The smallest c that doubles a row's clean error, or the cells to learn it from."""

    c: int | None
    by_limit: bool  # the rule's own limit allows no such c
    asked: tuple[Cell, ...] = ()


def breakdown(own: Sequence[Cell], known: Trials, seeds: range = SEEDS) -> Breakdown:
    """Search a row's breakdown by bisection over c, from the protocol's c on.

    Broken is a row where the mean error under one of its three worst columns, of the few seeds, is
    more than twice that without attack at the protocol's c; and where its own limit allows no such
    c. One that holds as long as c is less than half has the half as its breakdown, and one that
    none of the three can be made for with some c has none. That a row which is broken stays so with
    more compromised workers is assumed.
    """
    few, met = seeds[:FEW], _met(own, known, seeds)
    if not met:
        return Breakdown(None, False)
    worst, clean = standings.candidates(met), met[NO_ATTACK].mean
    at = own[0].setting.compromised
    low, high, by_limit = 0, (own[0].setting.workers + 1) // 2, False
    while high - low > 1:
        cells = at_c([cell for cell in own if cell.column in worst], at)
        if not cells and at_c([cell for cell in own if cell.column == NO_ATTACK], at):
            return Breakdown(None, False)  # it is the attacks that have a limit
        found = [measured(cell, known, few) for cell in cells]
        if any(one is None or len(one.errors) < len(few) for one in found):
            return Breakdown(None, False, tuple(cells))
        errors = [one.mean for one in found if one is not None]
        if not errors or max(errors) > 2 * clean:
            high, by_limit = at, not errors
        else:
            low = at
        at = (low + high) // 2
    return Breakdown(high, by_limit)


def most_trials(workers: int) -> int:
    """Return how many trials a row's breakdown may take."""
    return (workers // 2).bit_length() * standings.CANDIDATES * FEW


def at_c(cells: Iterable[Cell], c: int) -> list[Cell]:
    """Return a row's cells with c compromised workers, without those that a limit forbids."""
    found = []
    for cell in cells:
        fields = cell.setting.as_dict()
        beta = None if fields["beta"] == fields["compromised"] else fields["beta"]
        try:
            setting = Setting.from_dict({**fields, "compromised": c, "beta": beta})
        except BadInput:
            continue
        found.append(Cell(cell.row, f"{cell.column}, c = {c}", setting, None))
    return found
