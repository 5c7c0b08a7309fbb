"""How a claim about numbers is checked; `paper_claims.py` has those of the paper.

A check looks numbers up in `Numbers` and returns whether the claim holds, with the numbers that
say so; where one of them has not been measured, or in too few trials, the claim is neither true nor
false.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fltrust_repro.report import LEAST_TRIALS, TOO_FEW, half_width, significantly_above, tally
from fltrust_repro.trials import Trial

Judged = tuple[bool, str]
Cell = tuple[str, str, str]  # experiment, row, column
Points = Sequence[Sequence[float]]  # error rates of each point of a line
AROUND = 0.25
VERDICTS = ("holds", "fails", TOO_FEW, "not measured")


class NotMeasured(Exception):
    """A number that a claim needs has no trial."""


class TooFewTrials(Exception):
    """A number that a claim needs is one of fewer than `LEAST_TRIALS` trials."""


class Numbers:
    """Finished trials by (experiment, row, column), and what they hold."""

    def __init__(self, trials: Mapping[tuple[str, str, str], Sequence[Trial]]) -> None:
        self._trials = trials

    def trials(self, experiment: str, row: str, column: str) -> Sequence[Trial]:
        """Return the trials of a cell; `NotMeasured` for none, `TooFewTrials` for a few."""
        found = self._trials.get((experiment, row, column), ())
        if not found:
            raise NotMeasured(f"{experiment}, {row}, {column}")
        if len(found) < LEAST_TRIALS:
            raise TooFewTrials(f"{experiment}, {row}, {column} has {len(found)}")
        return found

    def errors(
        self, experiment: str, row: str, column: str, what: str = "error_rate"
    ) -> list[float]:
        """Error rates of a cell's trials, or their lowest ones."""
        return [getattr(trial.result, what) for trial in self.trials(experiment, row, column)]

    def mean(self, experiment: str, row: str, column: str, what: str = "error_rate") -> float:
        """Mean error rate of a cell."""
        return fmean(self.errors(experiment, row, column, what))

    def line(self, experiment: str, row: str) -> dict[str, list[float]]:
        """Error rates of each of a row's cells, by column, from its first to its last."""
        columns = [key[2] for key in self._trials if key[:2] == (experiment, row)]
        if not columns:
            raise NotMeasured(f"{experiment}, {row}")
        return {column: self.errors(experiment, row, column) for column in columns}

    def above(self, cell: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
        """Whether one cell's mean is above another's, significantly (one-sided, 95%)."""
        return significantly_above(self.errors(*cell), self.errors(*other))


def never_falls(points: Points) -> bool:
    """Whether a line through the points' 95% confidence intervals exists that falls nowhere."""
    spans = [(fmean(values), half_width(values)) for values in points]
    return all(
        before - below <= after + above
        for (before, below), (after, above) in itertools.combinations(spans, 2)
    )


def rises(points: Points) -> bool:
    """Whether a line falls nowhere, and its last point is significantly above its first."""
    return never_falls(points) and significantly_above(points[-1], points[0])


def around(measured: float, printed: float) -> bool:
    """Whether a number is around a printed one: within a quarter of it, on either side."""
    return abs(measured - printed) <= AROUND * printed


def listed(values: Mapping[str, Sequence[float]]) -> str:
    """Return evidence: numbers by name."""
    return "; ".join(
        f"{name} {' '.join(f'{v:.2f}' for v in some)}" for name, some in values.items()
    )


def cells(experiment: str, row: str, columns: Sequence[str]) -> list[Cell]:
    """Return some of a row's cells."""
    return [(experiment, row, column) for column in columns]


def lines(numbers: Numbers, figure: str, rows: Sequence[str]) -> dict[str, Points]:
    """Return some of a figure's lines by row."""
    return {row: list(numbers.line(figure, row).values()) for row in rows}


def means(rows: Mapping[str, Points]) -> str:
    """Return evidence: the means of each line's points."""
    return listed({row: [fmean(point) for point in line] for row, line in rows.items()})


def higher(numbers: Numbers, told: str, pairs: Mapping[str, Sequence[Sequence[Cell]]]) -> Judged:
    """Check that of each pair all of the second cells are higher than all of the first."""
    holds = all(
        numbers.above(high, low)
        for pair in pairs.values()
        for low, high in itertools.product(*pair)
    )
    seen = {name: [numbers.mean(*cell) for cell in (*a, *b)] for name, (a, b) in pairs.items()}
    return holds, f"{told}: {listed(seen)}"


def changed(
    numbers: Numbers, pairs: Mapping[str, Sequence[Cell]], least: float, most: float
) -> Judged:
    """Check that from the first cell of each pair to the second no error rate changes by more."""
    change = {name: [numbers.mean(*b) - numbers.mean(*a)] for name, (a, b) in pairs.items()}
    holds = all(least <= value <= most for [value] in change.values())
    return holds, f"increase: {listed(change)}"


def raised_by(
    numbers: Numbers, pair: Sequence[Cell], printed: float, what: str = "error_rate"
) -> Judged:
    """Check that from the first cell to the second the error rate rises by around that share."""
    plain, attacked = (numbers.mean(*cell, what) for cell in pair)
    increase = attacked / plain - 1 if plain else math.inf
    return around(increase, printed), f"{plain:.3f} to {attacked:.3f}, {increase:+.0%}"


def together(parts: Mapping[str, Judged]) -> Judged:
    """Join checks that all have to hold, by name."""
    evidence = "; ".join(f"{name} {text}" for name, (_, text) in parts.items())
    return all(holds for holds, _ in parts.values()), evidence


def monotone(rows: Mapping[str, Points], rising: bool = True) -> Judged:
    """Check that each line rises, or that each falls."""
    return all(rises(line if rising else line[::-1]) for line in rows.values()), means(rows)


def at_most(rows: Mapping[str, Points], increase: float) -> bool:
    """Whether no point of a line is above its first by more than that."""
    return all(max(map(fmean, line)) - fmean(line[0]) <= increase for line in rows.values())


def if_attacks_work(numbers: Numbers, pairs: Sequence[Sequence[Cell]], judged: Judged) -> Judged:
    """Return what a check found, if each pair's second cell, attacked, is above its first."""
    idle = [attacked for plain, attacked in pairs if not numbers.above(attacked, plain)]
    if not idle:
        return judged
    where = "; ".join(f"{row} {column}" for _, row, column in idle)
    return False, f"{judged[1]}; says nothing, since the attack raises no error rate in {where}"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it is, and how it is checked."""

    section: str
    text: str
    check: Callable[[Numbers], Judged]


def judge(claims: Sequence[Claim], numbers: Numbers) -> list[tuple[Claim, str, str]]:
    """Return each claim with its verdict and the evidence.

    The verdict is one of `VERDICTS`.
    """
    judged = []
    for one in claims:
        try:
            holds, evidence = one.check(numbers)
        except NotMeasured as missing:
            judged.append((one, "not measured", f"missing: {missing}"))
        except TooFewTrials as few:
            judged.append((one, TOO_FEW, f"{few} of at least {LEAST_TRIALS} trials"))
        else:
            judged.append((one, "holds" if holds else "fails", evidence))
    return judged


def counted(judged: Sequence[tuple[Claim, str, str]]) -> str:
    """Count the verdicts of `judge`: "31 holds, 3 fails, 2 not measured"."""
    return tally(sorted((word for _, word, _ in judged), key=VERDICTS.index))
