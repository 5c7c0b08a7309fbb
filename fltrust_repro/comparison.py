"""Which cells of two sets of trials differ, by how much, and what chance alone would give.

Trials with the same seed have the same data, batches and compromised workers. Where most seeds are
shared, the differences of such pairs are judged (Student's t), else the two means (Welch's t). Of
many cells some would differ by chance: verdicts are corrected for their number (Holm, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean

import numpy as np

from fltrust_repro.report import LEAST_TRIALS, LEVEL, TOO_FEW, welch

Errors = Mapping[int, float]  # error rates by seed

_ROUNDING = 1e-12  # of differences of error rates
_MOST_EXAMPLES = 100_000  # in a test set

EQUAL = "equal"
LOWER, HIGHER = "B lower", "B higher"
PERHAPS = {LOWER: "perhaps lower", HIGHER: "perhaps higher"}  # if no other cell were looked at
WITHIN = "within"  # and of what: no difference is seen, and it is no larger
VERDICTS = (LOWER, HIGHER, *PERHAPS.values(), WITHIN, EQUAL, TOO_FEW)


@dataclass(frozen=True)
class Difference:
    """B - A in a cell: the means compared, their difference and its 95% interval.

    `half` and `p`, the two-sided probability of such a difference by chance, are NaN for too few
    trials. Where all differ by the same amount, their spread is taken for that of rounding to whole
    test examples. `counts` are the trials compared on either side, of pairs the same number.
    """

    paired: bool
    counts: tuple[int, int]
    means: tuple[float, float]
    value: float
    half: float
    p: float
    equal: bool  # error rate by error rate, in pairs

    @property
    def within(self) -> float:
        """The largest difference either way that the interval allows, in thousandths upwards."""
        return math.ceil(1000 * (abs(self.value) + self.half) - 1e-9) / 1000


def difference(a: Errors, b: Errors) -> Difference:
    """Return B - A of a cell with trials on both sides.

    In pairs, if half of the seeds of the side with fewer are shared and that gives as many pairs as
    a verdict needs, or if either side has too few trials; pairs leave out the other seeds.

    >>> from fltrust_repro.comparison import difference
    >>> found = difference({1: 0.5, 2: 0.7, 3: 0.6}, {1: 0.4, 2: 0.6, 3: 0.5, 9: 0.9})
    >>> found.paired, found.counts, round(found.value, 3)
    (True, (3, 3), -0.1)
    """
    shared = sorted(a.keys() & b.keys())
    fewer = min(len(a), len(b))
    paired = bool(shared) and (
        fewer < LEAST_TRIALS or len(shared) >= max(LEAST_TRIALS, math.ceil(fewer / 2))
    )
    ours, theirs = ([of[seed] for seed in (shared if paired else sorted(of))] for of in (a, b))
    means = fmean(ours), fmean(theirs)
    if paired:
        gaps = [y - x for x, y in zip(ours, theirs)]
        value, n = fmean(gaps), len(gaps)
        error, freedom = _spread(gaps) / math.sqrt(n), n - 1.0
    else:
        value = means[1] - means[0]
        varies = _spread(ours) > 0 or _spread(theirs) > 0
        error, freedom = welch(ours, theirs) if fewer >= LEAST_TRIALS and varies else (0.0, 1.0)
    enough = min(len(ours), len(theirs)) >= LEAST_TRIALS
    if enough and error < _ROUNDING < abs(value):
        # All differ by the same: what spread there is hides in whole test examples.
        n, m = len(ours), len(theirs)
        error = _example([*ours, *theirs]) * math.sqrt((1 / n + 1 / m) / 12)
        freedom = n - 1.0 if paired else n + m - 2.0
    half, p = _student(value, error, freedom) if enough else (math.nan, math.nan)
    equal = paired and ours == theirs
    return Difference(paired, (len(ours), len(theirs)), means, value, half, p, equal)


def _example(rates: Iterable[float]) -> float:
    """The largest share of which all error rates are multiples: one test example, or several."""
    parts = (Fraction(rate).limit_denominator(_MOST_EXAMPLES).denominator for rate in rates)
    return 1 / math.lcm(*parts)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation; of equal values it is nothing, and of one we know none."""
    return float(np.std(values, ddof=1)) if len(set(values)) > 1 else 0.0


def _student(value: float, error: float, freedom: float) -> tuple[float, float]:
    """Half the 95% interval of an estimate, and how probable one as far from 0 is by chance."""
    if error == 0:
        return 0.0, float(value == 0)
    from scipy.special import stdtr, stdtrit  # which take a while to load

    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return half, 2 * float(stdtr(freedom, -abs(value) / error))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm, 1979); NaN stays, and counts for none.

    >>> from fltrust_repro.comparison import holm
    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    order = sorted((p, k) for k, p in enumerate(probabilities) if not math.isnan(p))
    corrected, least = [math.nan] * len(probabilities), 0.0
    for before, (p, k) in enumerate(order):
        corrected[k] = least = max(least, min(1.0, p * (len(order) - before)))
    return corrected


def verdict(found: Difference, corrected: float) -> str:
    """Say in words of `VERDICTS` whether a cell differs, by its p value corrected for all cells."""
    if found.equal:
        return EQUAL
    if math.isnan(found.p):
        return TOO_FEW
    way = LOWER if found.value < 0 else HIGHER
    if corrected < 1 - LEVEL:
        return way
    return PERHAPS[way] if found.p < 1 - LEVEL else f"{WITHIN} ±{found.within:.3f}"


def chances(differences: Sequence[Difference]) -> list[float]:
    """Return each cell's p value; NaN where chance has no part in it, or nothing can be said."""
    # Trials that are equal one by one come from the same computation.
    return [math.nan if one.equal else one.p for one in differences]


def verdicts(differences: Sequence[Difference]) -> list[str]:
    """Return the verdict on each cell among these."""
    return [*map(verdict, differences, holm(chances(differences)))]


def by_chance(differences: Sequence[Difference]) -> float:
    """Return how many of the cells' intervals would leave out 0 on average if nothing differed."""
    return (1 - LEVEL) * sum(not math.isnan(p) for p in chances(differences))
