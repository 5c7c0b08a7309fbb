"""The fidelity report: every value that a paper prints beside ours, and its claims in words.

A page for each paper whose tables are experiments: as Markdown, as LaTeX, and as one HTML page that
needs no other file, no network and no script.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fltrust_repro import claims, figures, pages, report
from fltrust_repro.claims import CLAIMS
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import MEASURES, Experiment, readable
from fltrust_repro.settings import Setting
from fltrust_repro.standings import SERVER_DATA, Entry, Standings
from fltrust_repro.trials import FIRST_SEED, Trial

if TYPE_CHECKING:
    import pandas as pd

PAPER = "Fang et al., USENIX Security 2020"  # the one whose claims are judged, too
PAPER_TRIALS = 50
BEST = 5  # rules of an arena that are shown
SEEDS_TOLD = f"Seeds 0 to {FIRST_SEED - 1} chose the readings; trials with them are left out."
Trials = Mapping[Setting, Sequence[Trial]]


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


def _judged(
    experiments: Sequence[Experiment], trials: Trials
) -> tuple[str, list[tuple[claims.Claim, str, str]]]:
    """Whose page the experiments make, and that paper's claims with their verdicts."""
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
        frame = report.as_frame(experiment, cells).assign(hours=_hours(experiment, cells, trials))
        lines += frame[[cell.paper is not None for cell in experiment.cells]].to_dict("records")
    return pd.DataFrame(lines, columns=[*report.COLUMNS, "hours"])


def _hours(experiment: Experiment, cells: Sequence[report.Measured], trials: Trials) -> list[float]:
    """What each cell's trials short of 50 need, on one CPU core."""
    seconds = seconds_of(experiment, trials)
    return [max(PAPER_TRIALS - len(m.errors), 0) * seconds[m.cell.setting] / 3600 for m in cells]


def seconds_of(experiment: Experiment, trials: Trials) -> dict[Setting, float]:
    """Return what a trial of each of the experiment's settings takes.

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


def _cost(hours: Sequence[float]) -> str:
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
    return [
        f"outside: {one_line(f'{line.experiment}, {line.row}, {line.column}')}: "
        f"{line.mean:.3f}, the paper has {line.paper:.2f} "
        f"({line.trials} trial{'s' * (line.trials > 1)})"
        for line in frame[frame["verdict"] == "outside"].itertuples()
    ]


def latex(experiment: Experiment, trials: Trials) -> str:
    """Return a table as LaTeX (booktabs), each cell "ours ± interval (paper, difference)"."""
    return report.table(measured(experiment, trials), "latex_booktabs") + "\n"


# ---- Markdown -----------------------------------------------------------------------------------


def markdown(experiments: Sequence[Experiment], trials: Trials, frame: pd.DataFrame) -> str:
    """Return the report on a paper's experiments; `frame` is `as_frame` of the same."""
    paper, judged = _judged(experiments, trials)
    told = [
        {"section": one.section, "claim": one.text, "verdict": word, "ours": evidence}
        for one, word, evidence in judged
    ]
    parts = [
        "# Fidelity report" + f": {report.markdown(paper)}" * (paper != PAPER) + "\n",
        f"{summary(frame)} {SEEDS_TOLD} Written by `python -m fltrust_repro report`.",
        "",
        "Inside: within 0.03 of the paper, under a crafted attack within 0.03 + 20% of the",
        "increase that the paper prints over no attack; where that increase is 0.05 or more, ours",
        "must be significant too (one-sided Welch test, 95%), so that an attack that does nothing",
        "does not pass. A cell or claim with fewer than "
        f"{report.LEAST_TRIALS} trials is not judged.",
        "± is the 95% confidence interval over trials (Student's t).",
        "",
    ]
    if judged:
        parts += [
            "## What the paper says in words\n",
            f"{claims.counted(judged)}.\n\n{report.rendered(told, 'github')}\n",
        ]
    for experiment in experiments:
        heading = f"## {report.markdown(experiment.title)}\n"
        lines = frame[frame["experiment"] == experiment.name]
        if len(lines):
            parts += [heading, f"{_values_table(lines)}\n"]
            absent = lines["hours"][lines["trials"] == 0]
            if len(absent):
                needed = f"{PAPER_TRIALS} trials of each take {_cost(absent)} hours on one CPU core"
                parts.append(f"Missing: {len(absent)} cells; {needed}.\n")
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
            "ours": number("{:.3f}", line.mean) + number(" ±{:.3f}", line.ci95),
            "trials": line.trials,
            "difference": number("{:+.3f}", line.difference),
            "verdict": line.verdict,
        }
        for line in lines.itertuples()
    ]
    return report.rendered(shown, "github")


# ---- HTML ---------------------------------------------------------------------------------------


def html(
    experiments: Sequence[Experiment],
    trials: Trials,
    frame: pd.DataFrame,
    arena: Standings | None = None,
) -> str:
    """Return a paper's report as a page, with figures, error curves and where they came from.

    `frame` is `as_frame` of the same; the best rules of an `arena` come first, with a link to its
    page. The same numbers give the same bytes.
    """
    paper, judged = _judged(experiments, trials)
    # Tables first, then what the text prints, then figures.
    ordered = sorted(
        experiments, key=lambda e: (e.figure is not None, not e.title.startswith("Table"))
    )
    return pages.render(
        "page.html",
        arena=arena,
        best=[] if arena is None else _best(arena),
        paper="" if paper == PAPER else paper,
        summary=summary(frame),
        seeds=SEEDS_TOLD,
        least_trials=report.LEAST_TRIALS,
        paper_trials=PAPER_TRIALS,
        outside=frame[frame["verdict"] == "outside"].to_dict("records"),
        titles={experiment.name: experiment.title for experiment in experiments},
        claims=judged,
        claims_state=claims.counted(judged),
        sections=[_section(experiment, trials) for experiment in ordered],
        origin=_origin(_used(experiments, trials)),
        panel=figures.PANEL,
        measures=MEASURES,
    )


def _best(arena: Standings) -> list[tuple[Entry, bool]]:
    """The best rules without server data, and whether each shares its place."""
    ranked = [entry for entry in arena.entries if entry.league != SERVER_DATA]
    places = [entry.place for entry in ranked]
    return [(entry, places.count(entry.place) > 1) for entry in ranked[:BEST]]


def _section(experiment: Experiment, trials: Trials) -> dict[str, Any]:
    """What the page shows of a table or figure of the paper, by the template's names."""
    cells = measured(experiment, trials)
    words, hours = report.verdicts(cells), _hours(experiment, cells, trials)
    rows: dict[str, list[dict[str, Any]]] = {}
    for m, word, needed in zip(cells, words, hours):
        needs = "unknown time" if math.isnan(needed) else f"{needed:,.1f} h"
        rows.setdefault(m.cell.row, []).append({"measured": m, "verdict": word, "needs": needs})
    absent = [needed for m, needed in zip(cells, hours) if not m.errors]
    counts = sorted({len(m.errors) for m in cells if m.errors})
    span = " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:]))))
    printed = sorted(word for word, m in zip(words, cells) if m.cell.paper is not None)
    known = f"{len(cells) - len(absent)} of {len(cells)}"
    curves, used = figures.curves(experiment, trials), _used([experiment], trials)
    drawn, picture = {curve.label: curve for row in curves.values() for curve in row}, None
    if drawable(experiment, trials):
        # Not inline: what two SVGs name alike would clash if they stood in one document.
        content = base64.b64encode(figures.picture(experiment, cells, "svg")).decode()
        picture = f"data:image/svg+xml;base64,{content}"
    return {
        "experiment": experiment,
        "rows": rows,
        "state": report.tally(printed)
        or f"{known} {'points' if experiment.figure else 'cells'} measured",
        "cost": _cost(absent) if absent else "",
        "per_cell": f"{span} trial{'s' * (counts[-1] > 1)} per cell" if counts else "",
        "picture": picture,
        "curves": curves,
        "legend": [drawn[column] for column in experiment.columns if column in drawn],
        "iterations": max(setting.iterations for setting in experiment.settings),
        "commands": report.commands(experiment, used),
        "origin": _origin(used),
    }


def _used(experiments: Sequence[Experiment], trials: Trials) -> list[Trial]:
    settings = dict.fromkeys(setting for one in experiments for setting in one.settings)
    return [trial for setting in settings for trial in trials.get(setting, ())]


def _origin(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    if not trials:
        return []
    last = max(trial.finished for trial in trials)[:10]
    return [*report.origin(trials), ("Last trial ended", last)]
