"""The fidelity report as one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import pandas as pd

from fltrust_repro import claims, fidelity, figures, report
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import Experiment
from fltrust_repro.paper_claims import CLAIMS
from fltrust_repro.settings import Setting
from fltrust_repro.trials import Trial

Trials = Mapping[Setting, Sequence[Trial]]


@dataclass(frozen=True)
class Shown:
    """A cell of a table: what was measured, the verdict, and the hours that it still needs."""

    measured: report.Measured
    verdict: str
    hours: float

    @property
    def needs(self) -> str:
        """The hours in words."""
        return "unknown time" if math.isnan(self.hours) else f"{self.hours:,.1f} h"


@dataclass(frozen=True)
class Section:
    """What the page shows of a table or figure of the paper.

    Attributes
    ----------
    experiment : Experiment
    rows : dict of list of Shown
        The table, by row.
    state : str
        Its verdicts counted; of a figure, its points with trials.
    cost : str
        Hours that the cells without trials need; empty where there is none.
    per_cell : str
        Trials of the cells with any: "10 trials per cell"; empty where none has.
    picture : str or None
        Data URI of the figure, if each of its points has a trial.
    curves : dict of list of figures.Curve
        Error rates over iterations, by row.
    commands, origin
        Where the numbers came from, as `report` says it.
    """

    experiment: Experiment
    rows: dict[str, list[Shown]]
    state: str
    cost: str
    per_cell: str
    picture: str | None
    curves: dict[str, list[figures.Curve]]
    commands: list[str]
    origin: list[tuple[str, str]]

    @property
    def iterations(self) -> int:
        """Where the horizontal axis of the curves ends."""
        return max(setting.iterations for setting in self.experiment.settings)

    @property
    def legend(self) -> list[figures.Curve]:
        """A curve of each column that has one, in the table's order."""
        known = {curve.label: curve for row in self.curves.values() for curve in row}
        return [known[column] for column in self.experiment.columns if column in known]


def html(experiments: Sequence[Experiment], trials: Trials, frame: pd.DataFrame) -> str:
    """Return the page: summary, claims, tables, figures, error curves and where they came from.

    `frame` is `fidelity.as_frame` of the same experiments and trials. The same numbers give the
    same bytes.
    """
    from jinja2 import Environment, StrictUndefined  # here, since only this page needs it

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    judged = claims.judge(CLAIMS, fidelity.numbers(experiments, trials))
    used = {s: trials[s] for e in experiments for s in e.settings if s in trials}
    return environment.from_string(template).render(
        summary=fidelity.summary(frame),
        seeds=fidelity.seeds_told(),
        least_trials=report.LEAST_TRIALS,
        paper_trials=fidelity.PAPER_TRIALS,
        outside=frame[frame["verdict"] == "outside"].to_dict("records"),
        titles={experiment.name: experiment.title for experiment in experiments},
        claims=judged,
        claims_state=claims.counted(judged),
        sections=[_section(experiment, trials) for experiment in _ordered(experiments)],
        origin=_origin([trial for some in used.values() for trial in some]),
        panel=figures.PANEL,
    )


def _ordered(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Tables first, then what the text prints, then figures."""
    return sorted(
        experiments, key=lambda e: (e.figure is not None, not e.title.startswith("Table"))
    )


def _section(experiment: Experiment, trials: Trials) -> Section:
    cells = fidelity.measured(experiment, trials)
    words = report.verdicts(cells)
    hours = fidelity.hours(experiment, cells, trials)
    rows: dict[str, list[Shown]] = {}
    for one in map(Shown, cells, words, hours):
        rows.setdefault(one.measured.cell.row, []).append(one)
    absent = [needed for m, needed in zip(cells, hours) if not m.errors]
    used = [t for s in dict.fromkeys(experiment.settings) for t in trials.get(s, ())]
    return Section(
        experiment=experiment,
        rows=rows,
        state=_state(experiment, cells, words),
        cost=fidelity.cost(absent) if absent else "",
        per_cell=_per_cell(cells),
        picture=_picture(experiment, cells) if fidelity.drawable(experiment, trials) else None,
        curves=figures.curves(experiment, trials),
        commands=report.commands(experiment, used),
        origin=_origin(used),
    )


def _state(experiment: Experiment, cells: Sequence[report.Measured], words: Sequence[str]) -> str:
    printed = [word for word, m in zip(words, cells) if m.cell.paper is not None]
    if printed:
        return report.tally(sorted(printed))
    known = sum(bool(m.errors) for m in cells)
    what = "cells" if experiment.figure is None else "points"
    return f"{known} of {len(cells)} {what} measured"


def _per_cell(cells: Sequence[report.Measured]) -> str:
    counts = [len(m.errors) for m in cells if m.errors]
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    span = f"{most}" if least == most else f"{least} to {most}"
    return f"{span} trial{'s' if most > 1 else ''} per cell"


def _origin(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    if not trials:
        return []
    last = max(trial.finished for trial in trials)[:10]
    return [*report.origin(trials), ("Last trial ended", last)]


def _picture(experiment: Experiment, cells: Sequence[report.Measured]) -> str:
    # Not inline: what two SVGs name alike would clash if they stood in one document.
    content = figures.picture(experiment, cells, "svg")
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()


def _shown(value: object) -> object:
    # Names and evidence, which are str; what macros return is Markup and has lines.
    return one_line(value) if type(value) is str else value
