"""The fidelity report as one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd

from fltrust_repro import claims, fidelity, figures, report
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import Experiment
from fltrust_repro.settings import Setting
from fltrust_repro.trials import Trial

Trials = Mapping[Setting, Sequence[Trial]]


def html(experiments: Sequence[Experiment], trials: Trials, frame: pd.DataFrame) -> str:
    """Return the page: summary, claims, tables, figures, error curves and where they came from.

    `frame` is `fidelity.as_frame` of the same experiments and trials. The same numbers give the
    same bytes.
    """
    from jinja2 import Environment, StrictUndefined  # here, since only this page needs it

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        # Names and evidence, which are str; what macros return is Markup and has lines.
        finalize=lambda value: one_line(value) if type(value) is str else value,
    )  # fmt: skip
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    judged = claims.judge(claims.CLAIMS, fidelity.numbers(experiments, trials))
    # Tables first, then what the text prints, then figures.
    ordered = sorted(
        experiments, key=lambda e: (e.figure is not None, not e.title.startswith("Table"))
    )
    settings = [setting for experiment in experiments for setting in experiment.settings]
    return environment.from_string(template).render(
        summary=fidelity.summary(frame),
        seeds=fidelity.seeds_told(),
        least_trials=report.LEAST_TRIALS,
        paper_trials=fidelity.PAPER_TRIALS,
        outside=frame[frame["verdict"] == "outside"].to_dict("records"),
        titles={experiment.name: experiment.title for experiment in experiments},
        claims=judged,
        claims_state=claims.counted(judged),
        sections=[_section(experiment, trials) for experiment in ordered],
        origin=_origin(_used(settings, trials)),
        panel=figures.PANEL,
    )


def _section(experiment: Experiment, trials: Trials) -> dict[str, Any]:
    """What the page shows of a table or figure of the paper, by the template's names."""
    cells = fidelity.measured(experiment, trials)
    words, hours = report.verdicts(cells), fidelity.hours(experiment, cells, trials)
    rows: dict[str, list[dict[str, Any]]] = {}
    for m, word, needed in zip(cells, words, hours):
        needs = "unknown time" if math.isnan(needed) else f"{needed:,.1f} h"
        rows.setdefault(m.cell.row, []).append({"measured": m, "verdict": word, "needs": needs})
    absent = [needed for m, needed in zip(cells, hours) if not m.errors]
    counts = [len(m.errors) for m in cells if m.errors]
    printed = sorted(word for word, m in zip(words, cells) if m.cell.paper is not None)
    what = "cells" if experiment.figure is None else "points"
    curves, used = figures.curves(experiment, trials), _used(experiment.settings, trials)
    known = {curve.label: curve for row in curves.values() for curve in row}
    return {
        "experiment": experiment,
        "rows": rows,
        "state": report.tally(printed) or f"{len(counts)} of {len(cells)} {what} measured",
        "cost": fidelity.cost(absent) if absent else "",
        "per_cell": _per_cell(counts),
        "picture": _picture(experiment, cells) if fidelity.drawable(experiment, trials) else None,
        "curves": curves,
        "legend": [known[column] for column in experiment.columns if column in known],
        "iterations": max(setting.iterations for setting in experiment.settings),
        "commands": report.commands(experiment, used),
        "origin": _origin(used),
    }


def _used(settings: Sequence[Setting], trials: Trials) -> list[Trial]:
    return [trial for setting in dict.fromkeys(settings) for trial in trials.get(setting, ())]


def _per_cell(counts: Sequence[int]) -> str:
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
