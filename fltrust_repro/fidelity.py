"""The fidelity report: every value that a paper prints beside ours, and its claims in words.

A page for each paper whose tables are experiments, as Markdown and as LaTeX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fltrust_repro import claims, figures, report
from fltrust_repro.claims import CLAIMS
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import Experiment, readable
from fltrust_repro.settings import Setting
from fltrust_repro.trials import FIRST_SEED, Trial, Trials, core_seconds
from fltrust_repro.words import counted

if TYPE_CHECKING:
    import pandas as pd

PAPER = "Fang et al., USENIX Security 2020"  # the one whose claims are judged, too
PAPER_TRIALS = 50
SEEDS_TOLD = f"Seeds 0 to {FIRST_SEED - 1} chose the readings; trials with them are left out."


def all_experiments() -> list[Experiment]:
    """Return the experiments of all papers, by name; not those that chose the readings."""
    return [experiment for experiment in readable() if experiment.published_by]


def by_paper(experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """Return published experiments by who published them, the paper first."""
    papers: dict[str, list[Experiment]] = {PAPER: []}
    for experiment in experiments:
        papers.setdefault(experiment.published_by or PAPER, []).append(experiment)
    return {paper: some for paper, some in papers.items() if some}


def page_name(paper: str) -> str:
    """Name the files of a paper's page, without their endings.

    >>> from fltrust_repro.fidelity import page_name
    >>> page_name("Karimireddy et al., ICLR 2022")
    'fidelity-karimireddy-et-al-iclr-2022'
    """
    words = re.findall(r"\w+", paper.lower())
    return "fidelity" if paper == PAPER else f"fidelity-{'-'.join(words)}"


def judged(
    experiments: Sequence[Experiment], trials: Trials
) -> tuple[str, list[tuple[claims.Claim, str, str]]]:
    """Return whose page the experiments make, and that paper's claims with their verdicts."""
    paper = next(iter(by_paper(experiments)), PAPER)
    known = CLAIMS if paper == PAPER else []
    return paper, claims.judge(known, numbers(experiments, trials))


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
    import pandas as pd  # which takes a while to load

    lines: list[dict[str, Any]] = []
    for experiment in experiments:
        cells = measured(experiment, trials)
        frame = report.as_frame(experiment, cells).assign(hours=hours(experiment, cells, trials))
        lines += frame[[cell.paper is not None for cell in experiment.cells]].to_dict("records")
    return pd.DataFrame(lines, columns=[*report.COLUMNS, "hours"])


def hours(experiment: Experiment, cells: Sequence[report.Measured], trials: Trials) -> list[float]:
    """Return how many hours each cell's trials short of 50 take on one CPU core; NaN: unknown."""
    seconds = seconds_of(experiment, trials)
    return [max(PAPER_TRIALS - len(m.errors), 0) * seconds[m.cell.setting] / 3600 for m in cells]


def seconds_of(experiment: Experiment, trials: Trials) -> dict[Setting, float]:
    """Return what a trial of each of the experiment's settings takes on a CPU core.

    The median of the finished ones of as much work, of this experiment where it has any, else of
    others; where nobody has run such a trial there, what the experiment's file says.
    """
    otherwise = math.nan if experiment.seconds is None else experiment.seconds
    own = {setting: trials.get(setting, ()) for setting in experiment.settings}
    medians = _median_seconds(trials) | _median_seconds(own)
    return {setting: medians.get(_work(setting), otherwise) for setting in own}


def _median_seconds(trials: Trials) -> dict[tuple, float]:
    alike: dict[tuple, list[float]] = {}
    for setting, some in trials.items():
        alike.setdefault(_work(setting), []).extend(core_seconds(some))
    return {work: median(seconds) for work, seconds in alike.items() if seconds}


def _work(setting: Setting) -> tuple:
    return setting.dataset, setting.model, setting.selected, setting.rounds, setting.iterations


def cost(hours: Sequence[float]) -> str:
    """Say how many hours these are together."""
    total = sum(hours)
    return "unknown" if math.isnan(total) else f"about {total:,.1f}"


def draw(
    experiments: Sequence[Experiment], trials: Trials, out: Path, grey: bool = False
) -> list[Path]:
    """Write each experiment that has trials as fidelity-NAME.png and .svg; return the files.

    Under names of their own, since they may be made of more trials than the pages beside them.
    """
    cells = {one: measured(one, trials) for one in experiments}
    known = {one: some for one, some in cells.items() if any(m.errors for m in some)}
    drawn = (figures.draw(e, some, out, grey, f"fidelity-{e.name}") for e, some in known.items())
    return [file for files in drawn for file in files]


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


def used(experiments: Sequence[Experiment], trials: Trials) -> list[Trial]:
    """Return the trials of these experiments, each once."""
    settings = dict.fromkeys(setting for one in experiments for setting in one.settings)
    return [trial for setting in settings for trial in trials.get(setting, ())]


def summary(frame: pd.DataFrame) -> str:
    """Count the measured cells, those that are judged, those inside, and those still open."""
    done = frame[frame["trials"] > 0]
    judged = done[done["verdict"] != report.TOO_FEW]
    inside = int((judged["verdict"] == "inside").sum())
    share = f" ({inside / len(judged):.0%})" if len(judged) else ""
    outside = judged[judged["verdict"] == "outside"]
    open_yet = int(((outside["mean"] - outside["paper"]).abs() <= outside["ci95"]).sum())
    told = (
        f" Of the {len(outside)} outside, {open_yet} {'has' if open_yet == 1 else 'have'} a 95% "
        "confidence interval that holds the paper's value: more trials decide."
    )
    return (
        f"{len(done)} of the {len(frame)} values that the paper prints are measured, {len(judged)} "
        f"of them in enough trials for a verdict; {inside} of these{share} are inside the "
        "tolerance." + told * (open_yet > 0)
    )


def outside(frame: pd.DataFrame) -> list[str]:
    """Return a line for each measured cell that is outside the tolerance."""
    return [
        f"outside: {one_line(f'{line.experiment}, {line.row}, {line.column}')}: "
        f"{line.mean:.3f} ±{line.ci95:.3f}, the paper has {line.paper:.2f} "
        f"({counted(line.trials, 'trial')})"
        for line in frame[frame["verdict"] == "outside"].itertuples()
    ]


def latex(experiment: Experiment, trials: Trials) -> str:
    """Return a table as LaTeX (booktabs), each cell "ours ± interval (paper, difference)"."""
    return report.table(experiment, measured(experiment, trials), "latex_booktabs") + "\n"


# ---- Markdown -----------------------------------------------------------------------------------


def markdown(experiments: Sequence[Experiment], trials: Trials, frame: pd.DataFrame) -> str:
    """Return the report on a paper's experiments; `frame` is `as_frame` of the same."""
    paper, verdicts = judged(experiments, trials)
    told = [
        {"section": one.section, "claim": one.text, "verdict": word, "ours": evidence}
        for one, word, evidence in verdicts
    ]
    parts = [
        "# Fidelity report" + f": {report.markdown(paper)}" * (paper != PAPER) + "\n",
        f"{summary(frame)} {SEEDS_TOLD} Written by `python -m fltrust_repro report`.",
        "",
        f"Inside: {report.CRITERION}.",
        f"A cell or claim with fewer than {report.LEAST_TRIALS} trials is not judged.",
        "± is the 95% confidence interval over trials (Student's t).",
        "",
    ]
    if verdicts:
        parts += [
            "## What the paper says in words\n",
            f"{claims.counted(verdicts)}.\n\n{report.rendered(told, 'github')}\n",
        ]
    for experiment in experiments:
        heading = f"## {report.markdown(experiment.title)}\n"
        lines = frame[frame["experiment"] == experiment.name]
        if len(lines):
            parts += [heading, f"{_values_table(lines)}\n"]
            absent = lines["hours"][lines["trials"] == 0]
            if len(absent):
                needed = f"{PAPER_TRIALS} trials of each take {cost(absent)} hours on one CPU core"
                cells = counted(len(absent), "cell")
                parts.append(f"Missing: {cells}; {needed}.\n")
        elif drawable(experiment, trials):
            parts += [heading, f"{report.picture_link(experiment)}\n"]
    return "\n".join(parts)


def _values_table(lines: pd.DataFrame) -> str:
    def number(form: str, value: float) -> str:
        return "" if math.isnan(value) else form.format(value)

    shown = [
        {
            "row": line.row,
            "column": line.column,
            "paper": f"{line.paper:.2f}",
            "ours": number("{:.3f}", line.mean) + report.plus_minus(line.ci95),
            "trials": line.trials,
            "difference": number("{:+.3f}", line.difference),
            "verdict": line.verdict,
        }
        for line in lines.itertuples()
    ]
    return report.rendered(shown, "github")
