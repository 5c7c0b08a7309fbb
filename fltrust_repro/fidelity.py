"""The fidelity report: every value that the paper prints beside ours, and its claims in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from fltrust_repro import claims, report
from fltrust_repro.claims import CLAIMS
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import Experiment, readable
from fltrust_repro.settings import Setting
from fltrust_repro.trials import FIRST_SEED, Trial

PAPER_TRIALS = 50
READING_SEEDS = range(FIRST_SEED)  # what chose the readings is none of the results
Trials = Mapping[Setting, Sequence[Trial]]


def all_experiments() -> list[Experiment]:
    """Return the experiments of the paper, by name; not those that chose the readings."""
    return [experiment for experiment in readable() if experiment.published_by]


def seeds_told() -> str:
    """Say which trials reports leave out."""
    first, last = READING_SEEDS[0], READING_SEEDS[-1]
    return f"Seeds {first} to {last} chose the readings; trials with them are left out."


def measured(experiment: Experiment, trials: Trials) -> list[report.Measured]:
    """Return an experiment's cells with all their trials."""
    return [
        report.measure(cell, trials.get(cell.setting, ()), experiment.measure)
        for cell in experiment.cells
    ]


def as_frame(experiments: Sequence[Experiment], trials: Trials) -> pd.DataFrame:
    """One line per value that the paper prints: `report.as_frame` of all tables, plus hours.

    `hours` is what the trials short of 50 need on one CPU core.
    """
    lines: list[dict[str, Any]] = []
    for experiment in experiments:
        cells = measured(experiment, trials)
        frame = report.as_frame(experiment, cells)
        frame["hours"] = hours(experiment, cells, trials)
        lines += frame[[cell.paper is not None for cell in experiment.cells]].to_dict("records")
    return pd.DataFrame(lines, columns=[*report.COLUMNS, "hours"])


def hours(experiment: Experiment, cells: Sequence[report.Measured], trials: Trials) -> list[float]:
    """Return what each cell's trials short of 50 need, in hours on one CPU core."""
    seconds = seconds_of(experiment, trials)
    return [max(PAPER_TRIALS - len(m.errors), 0) * seconds[m.cell.setting] / 3600 for m in cells]


def seconds_of(experiment: Experiment, trials: Trials) -> dict[Setting, float]:
    """What a trial of each of the experiment's settings takes.

    The median of the finished ones of as much work, of this experiment where it has any, else of
    others; where nobody has run such a trial, what the experiment's file says.
    """
    otherwise = math.nan if experiment.seconds is None else experiment.seconds
    own = {setting: trials.get(setting, ()) for setting in experiment.settings}
    medians = _median_seconds(trials) | _median_seconds(own)
    return {setting: medians.get(_work(setting), otherwise) for setting in own}


def _median_seconds(trials: Trials) -> dict[tuple, float]:
    alike: dict[tuple, list[float]] = {}
    for setting, some in trials.items():
        alike.setdefault(_work(setting), []).extend(trial.result.seconds for trial in some)
    return {work: median(seconds) for work, seconds in alike.items() if seconds}


def _work(setting: Setting) -> tuple:
    return setting.dataset, setting.model, setting.selected, setting.rounds, setting.iterations


def drawable(experiment: Experiment, trials: Trials) -> bool:
    """Whether the experiment is a figure and each of its points has a trial."""
    return experiment.figure is not None and all(s in trials for s in experiment.settings)


def numbers(experiments: Sequence[Experiment], trials: Trials) -> claims.Numbers:
    """Return the trials by experiment, row and column, as the claims look them up."""
    return claims.Numbers(
        {
            (experiment.name, cell.row, cell.column): trials.get(cell.setting, ())
            for experiment in experiments
            for cell in experiment.cells
        }
    )


def summary(frame: pd.DataFrame) -> str:
    """Count the measured cells, those with trials enough for a verdict, and those inside."""
    done = frame[frame["trials"] > 0]
    judged = done[done["verdict"] != report.TOO_FEW]
    inside = int((judged["verdict"] == "inside").sum())
    share = f" ({inside / len(judged):.0%})" if len(judged) else ""
    return (
        f"{len(done)} of the {len(frame)} values that the paper prints are measured, {len(judged)} "
        f"of them in enough trials for a verdict; {inside} of these{share} are inside the "
        "tolerance."
    )


def outside(frame: pd.DataFrame) -> list[str]:
    """Return a line for each measured cell that is outside the tolerance."""
    lines = frame[frame["verdict"] == "outside"]
    return [
        f"outside: {one_line(f'{line.experiment}, {line.row}, {line.column}')}: "
        f"{line.mean:.3f}, the paper has "
        f"{line.paper:.2f} ({line.trials} trial{'s' * (line.trials > 1)})"
        for line in lines.itertuples()
    ]


def markdown(experiments: Sequence[Experiment], trials: Trials, frame: pd.DataFrame) -> str:
    """Return the whole report as a page; `frame` is `as_frame` of the same."""
    parts = [
        "# Fidelity report\n",
        f"{summary(frame)} {seeds_told()} Written by `python -m fltrust_repro report`.",
        "",
        "Inside: within 0.03 of the paper, under a crafted attack within 0.03 + 20% of the",
        "increase that the paper prints over no attack; where that increase is 0.05 or more, ours",
        "must be significant too (one-sided Welch test, 95%), so that an attack that does nothing",
        "does not pass. A cell or claim with fewer than "
        f"{report.LEAST_TRIALS} trials is not judged.",
        "± is the 95% confidence interval over trials (Student's t).",
        "",
        "## What the paper says in words\n",
        f"{_claims_table(experiments, trials)}\n",
    ]
    for experiment in experiments:
        heading = f"## {report.markdown(experiment.title)}\n"
        lines = frame[frame["experiment"] == experiment.name]
        if len(lines):
            parts += [heading, f"{_values_table(lines)}\n"]
            absent = lines["hours"][lines["trials"] == 0]
            if len(absent):
                needed = f"{PAPER_TRIALS} trials of each take {cost(absent)} hours on one CPU core"
                parts.append(f"Missing: {len(absent)} cells; {needed}.\n")
        elif drawable(experiment, trials):
            parts += [heading, f"{report.picture_link(experiment)}\n"]
    return "\n".join(parts)


def _claims_table(experiments: Sequence[Experiment], trials: Trials) -> str:
    judged = claims.judge(CLAIMS, numbers(experiments, trials))
    lines = [
        {"section": one.section, "claim": one.text, "verdict": word, "ours": evidence}
        for one, word, evidence in judged
    ]
    return f"{claims.counted(judged)}.\n\n{report.rendered(lines, 'github')}"


def _values_table(lines: pd.DataFrame) -> str:
    shown = [
        {
            "row": line.row,
            "column": line.column,
            "paper": f"{line.paper:.2f}",
            "ours": _number("{:.3f}", line.mean) + _number(" ±{:.3f}", line.ci95),
            "trials": line.trials,
            "difference": _number("{:+.3f}", line.difference),
            "verdict": line.verdict,
        }
        for line in lines.itertuples()
    ]
    return report.rendered(shown, "github")


def _number(form: str, number: float) -> str:
    return "" if math.isnan(number) else form.format(number)


def cost(hours: Sequence[float]) -> str:
    """Return the sum of hours in words."""
    total = sum(hours)
    return "unknown" if math.isnan(total) else f"about {total:,.1f}"


def latex(experiment: Experiment, trials: Trials) -> str:
    """Return a table as LaTeX (booktabs), each cell "ours ± interval (paper, difference)"."""
    return report.table(measured(experiment, trials), "latex_booktabs") + "\n"
