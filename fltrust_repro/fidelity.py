"""The fidelity report: every value that the paper prints beside ours, and its claims in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from fltrust_repro import claims, literal, report
from fltrust_repro.archive import Archive
from fltrust_repro.claims import CLAIMS
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import Experiment, readable
from fltrust_repro.records import LeftOut
from fltrust_repro.settings import Setting
from fltrust_repro.trials import Trial, TrialName, protocol_of, read_csv

PAPER_TRIALS = 50
# What chose the readings is none of the results: trials with these seeds, and experiments of ours.
READING_SEEDS = range(10)
NOT_OF_THE_PAPER = ("readings", "readings2b", "readings2e", "readings6")


def all_experiments() -> list[Experiment]:
    """Return the experiments of the paper, by name."""
    return [experiment for experiment in readable() if experiment.published_by]


def trial_files(folder: Path) -> list[Path]:
    """Return the files of a results folder whose trials count for the paper's experiments."""
    ours = {folder / f"{name}.trials.csv" for name in NOT_OF_THE_PAPER}
    return sorted(filter(Path.is_file, set(folder.glob("*.trials.csv")) - ours))


def trials_in(
    file: Path, left_out: LeftOut, wanted: Callable[[TrialName], bool] = lambda name: True
) -> list[Trial]:
    """Return a file's trials whose names are wanted; a file that is none is left out whole."""
    try:
        return read_csv(file, left_out, wanted)
    except BadInput as error:
        left_out.add(file, "the whole file", error)
        return []


def finished(folder: Path, store: Archive) -> dict[Setting, list[Trial]]:
    """Return the finished trials in a results folder and a store by setting, each seed once.

    Says on stderr what is left out as not understood.
    """
    found = {trial.name: trial for trial in store.everything()}
    for file in trial_files(folder):
        new = trials_in(file, store.left_out, lambda name: name not in found)
        found.update({trial.name: trial for trial in new})
    store.left_out.tell()
    known: dict[Setting, list[Trial]] = {}
    protocols: dict[Setting, str] = {}
    for trial in sorted(found.values(), key=lambda trial: trial.seed):
        if trial.setting not in protocols:
            protocols[trial.setting] = protocol_of(trial.setting)
        if trial.protocol == protocols[trial.setting]:
            known.setdefault(trial.setting, []).append(trial)
    return known


def reported(trials: Mapping[Setting, Sequence[Trial]]) -> dict[Setting, list[Trial]]:
    """Return the trials that reports are made of, without those of `READING_SEEDS`."""
    kept = {
        setting: [trial for trial in some if trial.seed not in READING_SEEDS]
        for setting, some in trials.items()
    }
    return {setting: some for setting, some in kept.items() if some}


def seeds_told() -> str:
    """Say which trials reports leave out."""
    first, last = READING_SEEDS[0], READING_SEEDS[-1]
    return f"Seeds {first} to {last} chose the readings; trials with them are left out."


def measured(
    experiment: Experiment, trials: Mapping[Setting, Sequence[Trial]]
) -> list[report.Measured]:
    """Return an experiment's cells with all their trials."""
    return [
        report.measure(cell, trials.get(cell.setting, ()), experiment.measure)
        for cell in experiment.cells
    ]


def as_frame(
    experiments: Sequence[Experiment], trials: Mapping[Setting, Sequence[Trial]]
) -> pd.DataFrame:
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


def hours(
    experiment: Experiment,
    cells: Sequence[report.Measured],
    trials: Mapping[Setting, Sequence[Trial]],
) -> list[float]:
    """Return what each cell's trials short of 50 need, in hours on one CPU core."""
    seconds = seconds_of(experiment, trials)
    return [max(PAPER_TRIALS - len(m.errors), 0) * seconds[m.cell.setting] / 3600 for m in cells]


def seconds_of(
    experiment: Experiment, trials: Mapping[Setting, Sequence[Trial]]
) -> dict[Setting, float]:
    """What a trial of each of the experiment's settings takes.

    The median of the finished ones of as much work, of this experiment where it has any, else of
    others; where nobody has run such a trial, what the experiment's file says.
    """
    otherwise = math.nan if experiment.seconds is None else experiment.seconds
    own = {setting: trials.get(setting, ()) for setting in experiment.settings}
    medians = _median_seconds(trials) | _median_seconds(own)
    return {setting: medians.get(_work(setting), otherwise) for setting in own}


def _median_seconds(trials: Mapping[Setting, Sequence[Trial]]) -> dict[tuple, float]:
    alike: dict[tuple, list[float]] = {}
    for setting, some in trials.items():
        alike.setdefault(_work(setting), []).extend(trial.result.seconds for trial in some)
    return {work: median(seconds) for work, seconds in alike.items() if seconds}


def _work(setting: Setting) -> tuple:
    return setting.dataset, setting.model, setting.selected, setting.rounds, setting.iterations


def drawable(experiment: Experiment, trials: Mapping[Setting, Sequence[Trial]]) -> bool:
    """Whether the experiment is a figure and each of its points has a trial."""
    return experiment.figure is not None and all(s in trials for s in experiment.settings)


def numbers(
    experiments: Sequence[Experiment], trials: Mapping[Setting, Sequence[Trial]]
) -> claims.Numbers:
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
        f"outside: {literal.one_line(f'{line.experiment}, {line.row}, {line.column}')}: "
        f"{line.mean:.3f}, the paper has "
        f"{line.paper:.2f} ({line.trials} trial{'s' * (line.trials > 1)})"
        for line in lines.itertuples()
    ]


def markdown(
    experiments: Sequence[Experiment],
    trials: Mapping[Setting, Sequence[Trial]],
    frame: pd.DataFrame,
) -> str:
    """Return the whole report as a page; `frame` is `as_frame` of the same."""
    least = f"A cell or claim with fewer than {report.LEAST_TRIALS} trials is not judged."
    parts = [
        "# Fidelity report",
        "",
        f"{summary(frame)} {seeds_told()} Written by `python -m fltrust_repro report`.",
        "",
        "Inside: within 0.03 of the paper, under a crafted attack within 0.03 + 20% of the",
        "increase that the paper prints over no attack; where that increase is 0.05 or more, ours",
        "must be significant too (one-sided Welch test, 95%), so that an attack that does nothing",
        f"does not pass. {least}",
        "± is the 95% confidence interval over trials (Student's t).",
        "",
        "## What the paper says in words",
        "",
        _claims_table(experiments, trials),
        "",
    ]
    for experiment in experiments:
        lines = frame[frame["experiment"] == experiment.name]
        if len(lines):
            parts += [_heading(experiment), "", _values_table(lines), ""]
            absent = lines[lines["trials"] == 0]
            parts += [_missing(absent["hours"]), ""] * bool(len(absent))
        elif drawable(experiment, trials):
            parts += [_heading(experiment), "", report.picture_link(experiment), ""]
    return "\n".join(parts)


def _heading(experiment: Experiment) -> str:
    return f"## {literal.markdown(experiment.title)}"


def _claims_table(
    experiments: Sequence[Experiment], trials: Mapping[Setting, Sequence[Trial]]
) -> str:
    judged = claims.judge(CLAIMS, numbers(experiments, trials))
    rows = [(one.section, one.text, word, evidence) for one, word, evidence in judged]
    table = pd.DataFrame(rows, columns=["section", "claim", "verdict", "ours"])
    return f"{claims.counted(judged)}.\n\n{table.to_markdown(index=False, disable_numparse=True)}"


def _values_table(lines: pd.DataFrame) -> str:
    table = pd.DataFrame(
        {
            "row": lines["row"].map(literal.markdown),
            "column": lines["column"].map(literal.markdown),
            "paper": lines["paper"].map("{:.2f}".format),
            "ours": [
                _with_interval(mean, half) for mean, half in zip(lines["mean"], lines["ci95"])
            ],
            "trials": lines["trials"],
            "difference": ["" if math.isnan(d) else f"{d:+.3f}" for d in lines["difference"]],
            "verdict": lines["verdict"],
        }
    )
    return table.to_markdown(index=False, disable_numparse=True)


def _with_interval(mean: float, half: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.3f}" + ("" if math.isnan(half) else f" ±{half:.3f}")


def _missing(hours: Sequence[float]) -> str:
    return (
        f"Missing: {len(hours)} cells; {PAPER_TRIALS} trials of each take {cost(hours)} hours on "
        "one CPU core."
    )


def cost(hours: Sequence[float]) -> str:
    """Return the sum of hours in words."""
    total = sum(hours)
    return "unknown" if math.isnan(total) else f"about {total:,.1f}"


def latex(experiment: Experiment, trials: Mapping[Setting, Sequence[Trial]]) -> str:
    """Return a table as LaTeX (booktabs), each cell "ours ± interval (paper, difference)"."""
    return report.table(experiment, measured(experiment, trials), "latex_booktabs") + "\n"
