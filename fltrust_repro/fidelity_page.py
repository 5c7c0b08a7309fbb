"""The fidelity report as one HTML page: how faithful, where not, and which rule holds, first.

Tiles lead to every table and figure; a table is a heat map beside the paper's values, a figure a
chart. The page needs no other file and no network; without its script all numbers stand there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from fltrust_repro import claims, curves, fidelity, pages, report
from fltrust_repro.definitions import is_own
from fltrust_repro.experiments import MEASURES, Experiment
from fltrust_repro.fidelity import PAPER, PAPER_TRIALS
from fltrust_repro.report import TOO_FEW, Measured
from fltrust_repro.shades import Scale, shades
from fltrust_repro.standings import Entry, Standings
from fltrust_repro.trial_files import ENDING, PACKED
from fltrust_repro.trials import Trial, Trials
from fltrust_repro.words import counted, spanning

if TYPE_CHECKING:
    from pandas import DataFrame

BEST = 5  # rules of an arena that are shown
FOLDER = "fidelity"  # of each table's numbers as CSV, beside the page
# How a cell counts in its tile, and how that is said of several; told apart without colour, too.
_COUNTS = {"inside": "inside", "outside": "outside", TOO_FEW: TOO_FEW, "missing": "missing",
           "not in the paper": "measured"}  # fmt: skip


class Shown(NamedTuple):
    """A cell of a table with its verdict, and what it says when it is pointed at."""

    measured: Measured
    verdict: str
    detail: str


def page(
    experiments: Sequence[Experiment],
    trials: Trials,
    frame: DataFrame,
    arena: Standings | None = None,
    own: Sequence[Experiment] = (),
    own_trials: Trials | None = None,
    beside: Collection[str] = (),
) -> str:
    """Return a paper's report as a page; the same numbers give the same bytes.

    `frame` is `fidelity.as_frame` of the same; the best rules of an `arena` stand on the first
    screen. `own` are the user's sweeps and experiments, and `beside` the files of the folder that
    the page is for, to some of which it links.
    """
    paper, judged = fidelity.judged(experiments, trials)
    # Tables first, then what the text prints, then figures.
    ordered = sorted(
        experiments, key=lambda e: (e.figure is not None, not e.title.startswith("Table"))
    )
    sections = [_section(one, trials, beside) for one in ordered]
    used = fidelity.used(experiments, trials)
    known = [one for one in own if fidelity.used([one], own_trials or {})]
    their_own = [_section(one, own_trials or {}, beside) for one in known]
    scale = Scale()  # that of the pictures of tables
    script, digest = pages.script("shared.js", "page.js")
    return pages.render(
        "page.html",
        paper="" if paper == PAPER else paper,
        facts=_facts(frame),
        summary=fidelity.summary(frame),
        seeds=fidelity.SEEDS_TOLD,
        criterion=report.CRITERION,
        least_trials=report.LEAST_TRIALS,
        paper_trials=PAPER_TRIALS,
        arena=arena,
        best=[] if arena is None else _best(arena),
        claims=[(f"claim-{k}", *one) for k, one in enumerate(judged, 1)],
        claims_state=claims.counted(judged),
        sections=sections,
        own=their_own,
        origin=_origin(used),
        scale=scale,
        marks=scale.marks(),
        shades={"light": shades(), "dark": shades(dark=True)},
        box=curves.BOX,
        measures=MEASURES,
        page_name=fidelity.page_name(paper),
        script=script,
        digest=digest,
    )  # fmt: skip


def tables(experiments: Sequence[Experiment], trials: Trials) -> dict[str, str]:
    """Return the CSV files that the page links to, by their places beside it."""
    known = [one for one in experiments if fidelity.used([one], trials)]
    frames = (report.as_frame(one, fidelity.measured(one, trials)) for one in known)
    return {_csv_of(one): frame.to_csv(index=False) for one, frame in zip(known, frames)}


def _csv_of(experiment: Experiment) -> str:
    return f"{FOLDER}/{_id(experiment)}.csv"


def _id(experiment: Experiment) -> str:
    """What the page calls an experiment; one's own may have the name of one of the paper's."""
    return f"own-{experiment.name}" if is_own(experiment) else experiment.name


def _facts(frame: DataFrame) -> dict[str, Any]:
    """What the headline counts of the values that the paper prints."""
    words = list(frame["verdict"])
    inside, outside, few, missing = map(words.count, ("inside", "outside", TOO_FEW, "missing"))
    beyond = frame[frame["verdict"] == "outside"]
    return {
        "printed": len(words), "judged": inside + outside, "inside": inside, "outside": outside,
        "few": few, "missing": missing, "where": beyond["experiment"].value_counts().to_dict(),
        "share": f"{inside / (inside + outside):.0%}" if inside + outside else "",
        "values": beyond.to_dict("records"),
    }  # fmt: skip


def _best(arena: Standings) -> list[tuple[Entry, bool]]:
    """The best rules without server data, and whether each shares its place."""
    ranked, _ = arena.leagues()
    places = [entry.place for entry in ranked]
    return [(entry, places.count(entry.place) > 1) for entry in ranked[:BEST]]


def _section(experiment: Experiment, trials: Trials, beside: Collection[str]) -> dict[str, Any]:
    """What the page shows of a table or figure, by the template's names."""
    cells = fidelity.measured(experiment, trials)
    hours = fidelity.hours(experiment, cells, trials)
    shown = [
        Shown(m, word := report.verdict(m, plain), _detail(m, plain, word, needed))
        for m, plain, needed in zip(cells, report.baselines(cells), hours)
    ]
    places = {(one.measured.cell.row, one.measured.cell.column): one for one in shown}
    absent = [needed for m, needed in zip(cells, hours) if not m.errors]
    used = fidelity.used([experiment], trials)
    short, colon, _ = experiment.title.partition(": ")
    return {
        "id": _id(experiment),
        "experiment": experiment,
        "short": short.replace(" to ", "\N{EN DASH}") if colon else experiment.name,
        # A table of one's own may lack a cell.
        "rows": {row: [(column, places.get((row, column))) for column in experiment.columns]
                 for row in experiment.rows},
        "unit": "point" if experiment.figure else "cell",
        **_tally(shown, "points" if experiment.figure else "cells"),
        "absent": len(absent),
        "cost": fidelity.cost(absent) if absent else "",
        "per_cell": _per_cell(cells),
        "chart": curves.as_varied(experiment, cells),
        "curves": curves.over_iterations(experiment, trials),
        "files": _files(experiment, bool(used), beside),
        "commands": report.commands(experiment, used),
        "origin": _origin(used),
    }  # fmt: skip


def _tally(every: Sequence[Shown], units: str) -> dict[str, Any]:
    """The counts of a tile, what they are in words, and the class that leads."""
    printed = [shown for shown in every if shown.measured.cell.paper is not None]
    words = [shown.verdict for shown in printed or every]
    counts = [(name, words.count(word)) for word, name in _COUNTS.items() if word in words]
    names = [name for name, _ in counts]
    if names == ["missing"]:
        state = "not measured"
    elif not printed:
        known = dict(counts)["measured"]
        state = f"{known} of {len(words)} {units}" if known < len(words) else f"{known} {units}"
    else:
        state = ", ".join(f"{count} {name}" for name, count in counts)
    leads = next(name for name in ("outside", "inside", "measured", *names) if name in names)
    told = {"counts": counts, "state": state, "leads": leads.replace(" ", "-")}
    return {**told, "printed": bool(printed)}


def _detail(m: Measured, plain: Measured | None, word: str, hours: float) -> str:
    """A cell in a sentence: ours, the paper's, how far it may be, and what it was made of."""
    told = f"{m.cell.row}, {m.cell.column}: "
    printed = "" if m.cell.paper is None else f"; the paper has {m.cell.paper:.2f}"
    if not m.errors:
        time = "unknown time" if math.isnan(hours) else f"{hours:,.1f} hours"
        return f"{told}not measured{printed}; {PAPER_TRIALS} trials take {time} on one CPU core"
    told += f"{m.mean:.3f}{report.plus_minus(m.half_width)}"
    told += f" over {counted(len(m.errors), 'trial')}{printed}"
    if m.diverged:
        told += f"; {m.diverged} diverged"
    if m.cell.paper is None:
        return told
    told += f", difference {m.difference:+.3f}, tolerance ±{report.tolerance(m, plain):.3f}"
    if report.must_rise(m, plain):
        told += " and significantly above no attack"
    return f"{told}: {word}"


def _per_cell(cells: Sequence[Measured]) -> str:
    counts = [len(m.errors) for m in cells if m.errors]
    return spanning(counts, "trial") if counts else ""


def _files(experiment: Experiment, known: bool, beside: Collection[str]) -> list[tuple[str, str]]:
    """What to call the files with these numbers, and where they lie beside the page."""
    name = experiment.name
    found = [("CSV", quote(_csv_of(experiment)))] * known
    each = (f"{name}{ENDING}", f"{name}{ENDING}{PACKED}")
    return [*found, *(("every trial", quote(file)) for file in each if file in beside)]


def _origin(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    if not trials:
        return []
    last = max(trial.finished for trial in trials)[:10]
    return [*report.origin(trials), ("Last trial ended", last)]
