"""Measured tables next to the paper's: cell by cell the value, the difference and a verdict."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from fltrust_repro.attacks import attacks
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import MEASURES, Cell, Experiment
from fltrust_repro.trials import Trial

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.03
SHARE_OF_INCREASE = 0.2
NOTABLE_INCREASE = 0.05
LEVEL = 0.95
LEAST_TRIALS = 3  # of a cell, for an interval and for every verdict
CRITERION = (
    f"within {TOLERANCE} of the paper, under a crafted attack within {TOLERANCE} + "
    f"{SHARE_OF_INCREASE:.0%} of the increase that the paper prints over no attack; where that "
    f"increase is {NOTABLE_INCREASE} or more, ours must be significant too (one-sided Welch test, "
    f"{LEVEL:.0%}), so that an attack that does nothing does not pass"
)
TOO_FEW = "too few trials"
# An underscore inside a word is one; anywhere else it would begin or end an emphasis.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class Measured:
    """A cell with what its trials gave."""

    cell: Cell
    errors: tuple[float, ...]
    diverged: int
    seeds: tuple[int, ...] = ()  # of the errors, in their order

    @property
    def mean(self) -> float:
        """Mean error rate; NaN without trials."""
        return fmean(self.errors) if self.errors else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over trials; NaN for fewer than two."""
        return float(np.std(self.errors, ddof=1)) if len(self.errors) > 1 else math.nan

    @property
    def half_width(self) -> float:
        """Half the width of the mean's 95% confidence interval; NaN for too few trials."""
        return half_width(self.errors)

    @property
    def difference(self) -> float:
        """Measured minus the paper's value."""
        return math.nan if self.cell.paper is None else self.mean - self.cell.paper


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the mean's 95% confidence interval (Student's t), NaN for few."""
    return float(half_widths(np.array(values, dtype=float)))


def half_widths(values: np.ndarray) -> np.ndarray:
    """Return `half_width` of each column of values, float64 (n, ...)."""
    # Two values give an interval wider than all error rates.
    if (n := len(values)) < LEAST_TRIALS:
        return np.full(values.shape[1:], math.nan)
    from scipy.special import stdtrit  # which takes a while to load

    student = stdtrit(n - 1, (1 + LEVEL) / 2)
    return student * np.std(values, axis=0, ddof=1) / math.sqrt(n)


def measure(cell: Cell, trials: Sequence[Trial], what: str = "error_rate") -> Measured:
    """Collect a cell's finished trials; `what` is one of `MEASURES`."""
    errors = tuple(trial.error(what) for trial in trials)
    diverged = sum(trial.result.diverged for trial in trials)
    return Measured(cell, errors, diverged, tuple(trial.seed for trial in trials))


def verdict(measured: Measured, baseline: Measured | None) -> str:
    """Say whether a cell agrees with the paper: "inside", "outside" or why it cannot be said.

    Inside: within `tolerance` of the paper; and where the paper prints a notable increase by a
    crafted attack over its own no-attack cell `baseline`, above our no-attack cell by a one-sided
    Welch test at 95%. Cells with fewer than `LEAST_TRIALS` trials are not judged.
    """
    if not measured.errors:
        return "missing"
    if measured.cell.paper is None:
        return "not in the paper"
    if len(measured.errors) < LEAST_TRIALS:
        return TOO_FEW
    if must_rise(measured, baseline) and baseline is not None:
        if len(baseline.errors) < LEAST_TRIALS:
            return TOO_FEW
        if not significantly_above(measured.errors, baseline.errors):
            return "outside"
    # The paper prints two digits; a difference that rounds to the tolerance is not beyond it.
    allowed = tolerance(measured, baseline) + 1e-9
    return "inside" if abs(measured.difference) <= allowed else "outside"


def tolerance(measured: Measured, baseline: Measured | None) -> float:
    """Return how far a cell may be from the paper's value.

    That is `TOLERANCE`, and under a crafted attack besides a share of the increase that the paper
    prints over its own no-attack cell `baseline`.
    """
    return TOLERANCE + SHARE_OF_INCREASE * max(_printed_increase(measured, baseline), 0.0)


def must_rise(measured: Measured, baseline: Measured | None) -> bool:
    """Whether the paper prints so large an increase by a crafted attack that ours must be one."""
    return _printed_increase(measured, baseline) >= NOTABLE_INCREASE


def _printed_increase(measured: Measured, baseline: Measured | None) -> float:
    """How far a crafted attack is above no attack in the paper; 0 where that is not printed."""
    printed, plain = measured.cell.paper, None if baseline is None else baseline.cell.paper
    crafted = attacks[measured.cell.setting.attack].has_knowledge
    return printed - plain if crafted and printed is not None and plain is not None else 0.0


def significantly_above(errors: Sequence[float], others: Sequence[float]) -> bool:
    """Say whether the mean of `errors` is above that of `others`: one-sided Welch test, 95%."""
    from scipy.special import stdtr

    if len(set(errors)) == 1 and len(set(others)) == 1:
        return errors[0] > others[0]
    error, freedom = welch(errors, others)
    return bool(stdtr(freedom, (np.mean(errors) - np.mean(others)) / error) > LEVEL)


def welch(errors: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the standard error of the difference of two means, and its degrees of freedom.

    By Welch, of samples of two values or more, one of which varies.
    """
    # By hand, since importing scipy.stats takes longer than all else that a report does.
    squares = [float(np.var(some, ddof=1)) / len(some) for some in (errors, others)]
    parts = (square**2 / (len(some) - 1) for square, some in zip(squares, (errors, others)))
    return math.sqrt(sum(squares)), sum(squares) ** 2 / sum(parts)


def baselines(measured: Sequence[Measured]) -> list[Measured | None]:
    """Return for each cell that of the table that differs by no attack alone, if there is one."""
    plain = {m.cell.setting: m for m in measured if m.cell.setting.attack == "none"}
    return [plain.get(m.cell.setting.without_attack()) for m in measured]


def verdicts(measured: Sequence[Measured]) -> list[str]:
    """Return the verdict on each cell."""
    return list(map(verdict, measured, baselines(measured)))


COLUMNS = (
    "experiment", "row", "column", "paper", "mean", "std", "ci95", "trials", "diverged",
    "difference", "verdict",
)  # fmt: skip


def as_frame(experiment: Experiment, measured: Sequence[Measured]) -> pd.DataFrame:
    """One line per cell, with `COLUMNS`."""
    import pandas as pd  # which takes a while to load

    lines = [
        (experiment.name, m.cell.row, m.cell.column, m.cell.paper, round(m.mean, 4),
         round(m.std, 4), round(m.half_width, 4), len(m.errors), m.diverged,
         round(m.difference, 4), judged)
        for m, judged in zip(measured, verdicts(measured))
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=COLUMNS)


# ---- tables and pages ---------------------------------------------------------------------------


def markdown(text: str) -> str:
    r"""Return Markdown that reads as this text, in a table too.

    >>> from fltrust_repro.report import markdown
    >>> print(markdown("a|b *c* my_rule"))
    a\|b \*c\* my_rule
    """
    return _MARKDOWN.sub(lambda found: "\\" + found[0], one_line(text))


def markdown_code(text: str) -> str:
    """Return Markdown that shows this text as code, fenced by more backticks than it has."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * (len(fence) > 1)
    return f"{fence}{space}{one_line(text)}{space}{fence}"


def rendered(lines: Sequence[Mapping[str, Any]], style: str, numbers: str = "g") -> str:
    """Arrange lines of the same columns as a table; text is shown as it is.

    `style` is tabulate's: "simple" for a terminal, "github" for Markdown, "latex_booktabs"; columns
    of numbers, of the format `numbers`, are aligned to the right.
    """
    from tabulate import tabulate  # here, for help needs none

    # LaTeX's special characters are escaped by tabulate.
    escape = markdown if style == "github" else one_line
    texts = [[escape(v) if isinstance(v, str) else v for v in line.values()] for line in lines]
    told = [k for k, column in enumerate(zip(*texts)) if any(isinstance(v, str) for v in column)]
    names = [escape(name) for name in lines[0]]
    return tabulate(texts, names, style, floatfmt=numbers, disable_numparse=told)


def plus_minus(half: float, digits: int = 3) -> str:
    """Return half the width of an interval as it stands behind its middle; nothing for NaN."""
    return "" if math.isnan(half) else f" ±{half:.{digits}f}"


def _cell_text(m: Measured, judged: str) -> str:
    if not m.errors:
        return "missing"
    spread = plus_minus(m.half_width, 2)
    if m.cell.paper is None:
        return f"{m.mean:.2f}{spread}"
    mark = {"inside": "", TOO_FEW: " ?"}.get(judged, " *")
    return f"{m.mean:.2f}{spread} ({m.cell.paper:.2f}, {m.difference:+.2f}){mark}"


def arranged(
    experiment: Experiment, measured: Sequence[Measured], texts: Iterable[str], style: str
) -> str:
    """Arrange a text per cell as the paper's table, in a style of `rendered`; "-" for no cell."""
    there = {m.cell.column for m in measured}
    whole = {column: "-" for column in experiment.columns if column in there}
    lines = {m.cell.row: {"": m.cell.row, **whole} for m in measured}
    for m, text in zip(measured, texts):
        lines[m.cell.row][m.cell.column] = text
    return rendered([*lines.values()], style)


def table(experiment: Experiment, measured: Sequence[Measured], style: str) -> str:
    """Arrange as the paper's table; each cell "ours ±ci95 (paper, difference)" and its mark."""
    return arranged(experiment, measured, map(_cell_text, measured, verdicts(measured)), style)


def summary_line(measured: Sequence[Measured]) -> str:
    """Count the cells that agree with the paper, of those that it prints."""
    return tally(v for v, m in zip(verdicts(measured), measured) if m.cell.paper is not None)


def tally(words: Iterable[str]) -> str:
    """Count equal words, in the order in which they first come: "14 inside, 1 outside"."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items())


def heading(experiment: Experiment, measured: Sequence[Measured]) -> str:
    """Say what the cells of a table show."""
    printed = any(m.cell.paper is not None for m in measured)
    return (
        f"{MEASURES[experiment.measure]} ± 95% confidence interval"
        + " (the paper's value, difference)" * printed
    )


def picture_link(experiment: Experiment, one: str | None = None) -> str:
    """Return the Markdown of an experiment's picture, which lies beside the page, or of a map's."""
    title, name = experiment.title, experiment.name
    if one is not None:
        title, name = f"{one}; {title}", experiment.maps[one]
    return f"![{markdown(title)}]({quote(name)}.png)"


_LEGEND = (
    f"Inside: {CRITERION}. A star marks what is outside, a question mark too few trials to say, "
    f"fewer than {LEAST_TRIALS}.\n"
)


def page(experiment: Experiment, measured: Sequence[Measured], trials: Sequence[Trial]) -> str:
    """Return a page of Markdown: the table, what it was measured with, and how to read it."""
    judged = summary_line(measured)
    parts = [
        f"# {markdown(experiment.title)}\n",
        f"{heading(experiment, measured)}.\n",
        f"{table(experiment, measured, 'github')}\n",
        *([f"{picture_link(experiment)}\n"] if experiment.has_picture else []),
        *(f"{picture_link(experiment, one)}\n" for one in experiment.maps),
        *(f"{markdown(note)}\n" for note in experiment.notes),
        *([f"{judged}. {_LEGEND}"] if judged else []),
        *(f"- Command: {markdown_code(c)}" for c in commands(experiment, trials)),
        *(f"- {name}: {markdown(text)}" for name, text in origin(trials)),
    ]
    return "\n".join([*parts, ""])


def commands(experiment: Experiment, trials: Iterable[Trial]) -> list[str]:
    """Return what to type for the seeds of these trials, a command per run of seeds."""
    return [
        f"python -m fltrust_repro {experiment.command} --trials {last - first + 1} --seed {first}"
        for first, last in _runs(trial.seed for trial in trials)
    ]


def origin(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """Return what trials were made with, as pairs of a name and a text."""
    hours = sum(trial.result.seconds for trial in trials) / 3600
    protocols = ", ".join(sorted({trial.protocol for trial in trials}))
    versions = sorted({f"{trial.versions}, {trial.device}" for trial in trials})
    return [
        ("Trials", f"{len(trials)} in all, seeds {seeds_told(t.seed for t in trials)}"),
        ("Training time", f"{hours:.2f} hours, one process each; protocol version {protocols}"),
        *(("Versions", line) for line in versions),
    ]


def seeds_named(seeds: Iterable[int]) -> str:
    """Say which seeds these are, behind the noun: "seeds 10 to 19, 24"."""
    known = set(seeds)
    return f"seed{'s' * (len(known) > 1)} {seeds_told(known)}"


def seeds_told(seeds: Iterable[int]) -> str:
    """Say which seeds these are.

    >>> from fltrust_repro.report import seeds_told
    >>> seeds_told([24, 10, 11, 12])
    '10 to 12, 24'
    """
    runs = _runs(seeds)
    return ", ".join(f"{first} to {last}" if first < last else f"{first}" for first, last in runs)


def _runs(seeds: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run of seeds without a gap."""
    known = set(seeds)
    firsts = sorted(seed for seed in known if seed - 1 not in known)
    return list(zip(firsts, sorted(seed for seed in known if seed + 1 not in known)))
