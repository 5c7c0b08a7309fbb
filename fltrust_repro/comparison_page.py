"""A comparison of two sets of trials: its table, its summary in sentences, as CSV and as pages."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fltrust_repro import comparison, pages, report
from fltrust_repro.comparison import Difference
from fltrust_repro.errors import one_line
from fltrust_repro.labels import Label, labels
from fltrust_repro.settings import Setting
from fltrust_repro.trials import Trial, Trials
from fltrust_repro.words import counted

if TYPE_CHECKING:
    import pandas as pd

_IN_SUM = {comparison.WITHIN: "no difference seen"}
LEGEND = f"""B - A is the difference of mean testing error rates with its 95% interval: of pairs of
trials with the same seed, which share data, batches and compromised workers (Student's t), where
at least {report.LEAST_TRIALS} and half of the seeds are shared, else of the two means (Welch's t).
"B lower" and "B higher" hold at 95% for all settings together (Holm's correction); "perhaps lower"
and "perhaps higher" would hold for that setting alone, but among so many may be chance. "Within":
no difference is seen, and it is no larger than this with 95% confidence. "Equal": the same error
rates, seed by seed. With fewer than {report.LEAST_TRIALS} trials nothing is said."""


@dataclass(frozen=True)
class Cell:
    """A setting, or one and its counterpart: its trials on both sides and how they differ."""

    label: Label
    settings: tuple[Setting, Setting]
    trials: tuple[Sequence[Trial], Sequence[Trial]]
    difference: Difference
    verdict: str

    @property
    def name(self) -> str:
        """The label in one text."""
        return ", ".join(filter(None, self.label.values()))

    @cached_property
    def pairs(self) -> list[tuple[Trial, Trial]]:
        """The trials of the same seed."""
        ours, theirs = ({trial.seed: trial for trial in some} for some in self.trials)
        return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


@dataclass(frozen=True)
class Comparison:
    """What two sides have in common, cell by cell in a fixed order."""

    names: tuple[str, str]  # of A and of B
    shared: str  # what all settings have
    cells: tuple[Cell, ...]
    alone: tuple[int, int]  # settings that only one side has


def compare(
    names: tuple[str, str], sides: tuple[Trials, Trials], pairs: Mapping[Setting, Setting],
    without: Sequence[str] = (),
) -> Comparison:  # fmt: skip
    """Compare two sides in pairs of settings, each of A's with one of B's.

    `without` are the fields in which they differ, which no label tells.
    """
    a, b = sides
    shared, named = labels(pairs, without)
    both = {one: pairs[one] for one in named}  # in the order of labels
    found = [comparison.difference(_rates(a[one]), _rates(b[both[one]])) for one in both]
    cells = tuple(
        Cell(named[one], (one, other), (a[one], b[other]), difference, verdict)
        for (one, other), difference, verdict in zip(
            both.items(), found, comparison.verdicts(found)
        )
    )
    alone = len(a.keys() - both.keys()), len(b.keys() - {*both.values()})
    return Comparison(names, shared, cells, alone)


def _rates(trials: Sequence[Trial]) -> dict[int, float]:
    return {trial.seed: trial.result.error_rate for trial in trials}


def is_equal(pair: tuple[Trial, Trial]) -> bool:
    """Whether two trials have the same error rates and losses throughout, in all digits kept."""
    one, other = (trial.result for trial in pair)
    names = ("error_rate", "lowest_error_rate", "iterations", "diverged")
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    return same and repr(one.curve) == repr(other.curve)  # where NaN equals NaN


# ---- in sentences -------------------------------------------------------------------------------


def summary(found: Comparison) -> list[str]:
    """Say in a few sentences what the comparison shows."""
    cells, pairs = found.cells, [pair for cell in found.cells for pair in cell.pairs]
    several = len(cells) > 1
    settings = f"{counted(len(cells), 'setting')} on both sides"
    told = [f"{settings}{_alike(cells)}; {_of_pairs(pairs)}"]
    verdicts = Counter(cell.verdict.split(" ±")[0] for cell in cells)
    if set(verdicts) != {comparison.EQUAL}:
        words = ((_IN_SUM.get(word, word), verdicts[word]) for word in comparison.VERDICTS)
        judged = ", ".join(f"{word} in {count:,}" for word, count in words if count)
        told.append(f"{judged[0].upper()}{judged[1:]}.")
        known = [cell for cell in cells if not math.isnan(cell.difference.half)] or cells
        largest = max(known, key=lambda cell: (abs(cell.difference.value), cell.name))
        where = f" ({largest.name})" * bool(largest.name)
        told.append(f"Largest difference: B - A = {_difference(largest.difference)}{where}.")
    told += _of_chance(cells) if several else []
    if changed := sum(_other_code(cell) for cell in cells):
        settings = counted(changed, "setting")
        told.append(f"Of {settings} A and B were made by different versions of the code.")
    if any(found.alone):
        alone = (f"{n:,} of {side}" for n, side in zip(found.alone, "AB") if n)
        told.append(f"Not compared, since the other side has no such setting: {', '.join(alone)}.")
    return told


def _alike(cells: Sequence[Cell]) -> str:
    """How each cell is compared, where all are compared alike and no table tells it."""
    counts = {_counts(cell.difference) for cell in cells}
    return f", {'each ' * (len(cells) > 1)}in {counts.pop()}" if len(counts) == 1 else ""


def _counts(one: Difference) -> str:
    a, b = one.counts
    return counted(a, "pair") if one.paired else f"{a} and {b} trials"


def _of_pairs(pairs: Sequence[tuple[Trial, Trial]]) -> str:
    same, count = sum(map(is_equal, pairs)), len(pairs)
    if not count:
        return "no seed is shared."
    told = f"{counted(count, 'pair')} of trials with the same seed"
    if same == count:
        every = "all equal" if count > 1 else "equal"
        return f"{told}, {every} in every digit that is kept."
    return told + f", {same:,} of them equal in every digit that is kept" * (same > 0) + "."


def _other_code(cell: Cell) -> bool:
    """Whether the two sides of the same setting were run by other code, or another plug-in."""
    one, other = ({trial.protocol for trial in trials} for trials in cell.trials)
    return cell.settings[0] == cell.settings[1] and one != other


def _of_chance(cells: Sequence[Cell]) -> list[str]:
    """How many intervals leave out 0, and how many would do so by chance, if any can."""
    differences = [cell.difference for cell in cells]
    beyond = sum(p < 1 - report.LEVEL for p in comparison.chances(differences))
    leave = f"{beyond} of the 95% intervals leave" + "s" * (beyond == 1)
    if not beyond:
        leave = "None of the 95% intervals leaves"
    chance = f"where chance alone would give about {comparison.by_chance(differences):.1f}"
    told = f"{leave} out 0, {chance}; verdicts are corrected for that (Holm)."
    return [told] * (comparison.by_chance(differences) > 0)


def _difference(one: Difference) -> str:
    return f"{one.value:+.3f}{report.plus_minus(one.half)}"


# ---- tables and pages ---------------------------------------------------------------------------


def table(cells: Sequence[Cell], style: str) -> str:
    """Arrange cells, a line each, in a style of `report.rendered`."""
    return report.rendered(_lines(cells), style, ".3f")


def _lines(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    alike = _alike(cells)
    return [
        {
            **cell.label,
            "verdict": cell.verdict,
            "B - A": _difference(cell.difference),
            "A": cell.difference.means[0],
            "B": cell.difference.means[1],
            **({} if alike else {"trials": _counts(cell.difference)}),
        }
        for cell in cells
    ]


def as_frame(found: Comparison) -> pd.DataFrame:
    """One line per cell, its numbers in full."""
    import pandas as pd  # which takes a while to load

    cells = [cell.difference for cell in found.cells]
    corrected = comparison.holm(comparison.chances(cells))
    return pd.DataFrame(
        {
            **cell.label,
            "mean_a": one.means[0],
            "mean_b": one.means[1],
            "difference": one.value,
            "low": one.value - one.half,
            "high": one.value + one.half,
            "test": "paired" if one.paired else "Welch",
            "trials_a": one.counts[0],
            "trials_b": one.counts[1],
            "p": one.p,
            "p_holm": p,
            "pairs": len(cell.pairs),
            "equal_pairs": sum(map(is_equal, cell.pairs)),
            "verdict": cell.verdict,
            "key_a": cell.settings[0].key(),
            "key_b": cell.settings[1].key(),
        }
        for cell, one, p in zip(found.cells, cells, corrected)
    )


def _origins(found: Comparison) -> list[tuple[str, str]]:
    """What each side's trials were made with."""
    told = []
    for k, side in enumerate("AB"):
        trials = [trial for cell in found.cells for trial in cell.trials[k]]
        told += [(f"{side}, {name.lower()}", text) for name, text in report.origin(trials)]
    return told


def markdown(found: Comparison, command: str, picture: str) -> str:
    """Return a page of Markdown; `picture` is the name of the file beside it."""
    a, b = map(report.markdown, found.names)
    return "\n".join(
        [
            "# B compared with A\n",
            f"- A: {a}\n- B: {b}\n- All: {report.markdown(found.shared)}\n",
            f"{report.markdown(' '.join(summary(found)))}\n",
            f"{table(found.cells, 'github')}\n",
            f"![Differences with their 95% intervals]({quote(picture)})\n",
            f"{report.markdown(' '.join(LEGEND.split()))}\n",
            f"- Command: {report.markdown_code(command)}",
            *(f"- {name}: {report.markdown(text)}" for name, text in _origins(found)),
            "",
        ]
    )


def html(found: Comparison, command: str, picture: bytes) -> str:
    """Return a page of HTML that needs no other file; `picture` is an SVG."""
    lines = _lines(found.cells)
    return pages.render(
        "comparison.html",
        names=found.names,
        shared=found.shared,
        summary=summary(found),
        columns=list(lines[0]),
        labels=len(found.cells[0].label),
        lines=lines,
        picture=base64.b64encode(picture).decode(),
        alternative=one_line(f"Difference of {len(lines)} settings, with 95% intervals"),
        legend=" ".join(LEGEND.split()),
        command=command,
        origins=_origins(found),
    )
