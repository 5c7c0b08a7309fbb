"""How a claim about numbers is checked; `paper_claims.py` has those of the paper.

A check looks numbers up in `Numbers` and returns whether the claim holds, with the numbers that
say so; where one of them has not been measured, the claim is neither true nor false.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fltrust_repro.report import significantly_above
from fltrust_repro.trials import Trial

Judged = tuple[bool, str]


class NotMeasured(Exception):
    """A number that a claim needs has no trial."""


class Numbers:
    """Finished trials by (experiment, row, column), and means of what they hold."""

    def __init__(self, trials: Mapping[tuple[str, str, str], Sequence[Trial]]) -> None:
        self._trials = trials

    def trials(self, experiment: str, row: str, column: str) -> Sequence[Trial]:
        """Return the trials of a cell; `NotMeasured` where there is none."""
        found = self._trials.get((experiment, row, column), ())
        if not found:
            raise NotMeasured(f"{experiment}, {row}, {column}")
        return found

    def errors(self, experiment: str, row: str, column: str) -> list[float]:
        """Error rates of a cell's trials."""
        return [trial.result.error_rate for trial in self.trials(experiment, row, column)]

    def mean(self, experiment: str, row: str, column: str) -> float:
        """Mean error rate of a cell."""
        return fmean(self.errors(experiment, row, column))

    def line(self, experiment: str, row: str) -> list[float]:
        """Mean error rates of a row from its first column to its last."""
        columns = [key[2] for key in self._trials if key[:2] == (experiment, row)]
        if not columns:
            raise NotMeasured(f"{experiment}, {row}")
        return [self.mean(experiment, row, column) for column in columns]

    def above(self, cell: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
        """Whether one cell's mean is above another's, significantly (one-sided, 95%)."""
        first, second = self.errors(*cell), self.errors(*other)
        if min(len(first), len(second)) < 2:
            raise NotMeasured(f"a second trial of {', '.join(cell)}")
        return significantly_above(first, second)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it is, and how it is checked."""

    section: str
    text: str
    check: Callable[[Numbers], Judged]


def judge(claims: Sequence[Claim], numbers: Numbers) -> list[tuple[Claim, str, str]]:
    """Return each claim with "holds", "fails" or "not measured", and the evidence."""
    lines = []
    for one in claims:
        try:
            holds, evidence = one.check(numbers)
        except NotMeasured as missing:
            lines.append((one, "not measured", f"missing: {missing}"))
        else:
            lines.append((one, "holds" if holds else "fails", evidence))
    return lines
