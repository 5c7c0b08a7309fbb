"""Lines with bands for charts in SVG: error rates over the iterations, or as a parameter varies.

Drawn by the page's own template, since Matplotlib takes a second for fifteen panels, and since
these lines answer to pointing and follow a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fltrust_repro.drawing import band, top_of
from fltrust_repro.experiments import Experiment
from fltrust_repro.ranges import grows
from fltrust_repro.report import Measured, half_widths, plus_minus
from fltrust_repro.styles import DASHES, MARKERS, MOST_TICKS, Style, styles_of
from fltrust_repro.trials import Trial, Trials

BOX = (1600, 1000)  # units of a panel; a thousandth of its highest error rate is one upwards
POINTS = 26  # of a line over the iterations: hundreds stand in a page


class Mark(NamedTuple):
    """A point of a line with what it says; x and y in `BOX`, the origin at the upper left."""

    x: int
    y: int
    text: str


class Line(NamedTuple):
    """A line of a panel, as SVG paths: the mean, and the band of its 95% interval, or nothing."""

    label: str
    style: Style
    opacity: float
    path: str
    band: str
    marks: list[Mark]
    last: float


class Chart(NamedTuple):
    """Panels of lines on shared axes; ticks and places have their position and their text."""

    panels: dict[str, list[Line]]
    legend: list[Line]
    top: float
    ticks: list[tuple[int, str]]
    places: list[tuple[int, str]]


def over_iterations(experiment: Experiment, trials: Trials) -> Chart:
    """Return the error curves of a table's or figure's cells with trials, a panel per row."""
    longest = max(setting.iterations for setting in experiment.settings)
    styles = _of_columns(experiment)
    panels: dict[str, list[Line]] = {}
    places: dict[int, str] = {}
    for cell in experiment.cells:
        known = [trial for trial in trials.get(cell.setting, ()) if trial.result.curve]
        if not known:
            continue
        iterations, rates = sampled(known, POINTS)
        x = [round(BOX[0] * k / longest) for k in iterations.tolist()]
        places.update(zip(x, map(str, iterations.tolist())))
        style, opacity = styles[cell.row, cell.column]
        mean, half = rates.mean(axis=0), half_widths(rates)
        text = f"{cell.column}: {_told(mean[-1], half[-1])} at the end"
        line = _line(cell.column, style, x, mean, half, 1.0, [""] * (len(x) - 1) + [text])
        panels.setdefault(cell.row, []).append(line._replace(opacity=opacity))
    ticks = [(round(BOX[0] * part), f"{longest * part:g}") for part in (0, 0.5, 1)]
    return Chart(panels, _legend(experiment.columns, panels), 1.0, ticks, sorted(places.items()))


def as_varied(experiment: Experiment, cells: Sequence[Measured]) -> Chart:
    """Return a figure's panels: each line's error rates at the values with trials."""
    figure = experiment.figure
    if figure is None:
        return Chart({}, [], 1.0, [], [])
    measured = {(m.cell.row, m.cell.column): m for m in cells if m.errors}
    top = top_of(band(m)[1] for m in measured.values())
    positions = _positions(figure.values)
    styles = styles_of(figure.lines)
    panels: dict[str, list[Line]] = {}
    for panel in figure.panels:
        for name in figure.lines:
            row = [measured.get((figure.row(panel, name), column)) for column in experiment.columns]
            known = [(x, m) for x, m in zip(positions, row) if m is not None]
            if known:
                texts = [f"{name}, {m.cell.column}: {_told(m.mean, m.half_width)}"
                         for _, m in known]  # fmt: skip
                mean, half = (np.array([getattr(m, what) for _, m in known])
                              for what in ("mean", "half_width"))  # fmt: skip
                line = _line(name, styles[name], [x for x, _ in known], mean, half, top, texts)
                panels.setdefault(panel, []).append(line)
    places = list(zip(positions, experiment.columns))
    every = -(-len(places) // MOST_TICKS)
    ticks = [(x, column.rpartition(" = ")[2]) for x, column in places[::every]]
    return Chart(panels, _legend(figure.lines, panels), top, ticks, places)


def _positions(values: Sequence[float]) -> list[int]:
    """Where values lie on the axis: equal ratios are equal steps where they span fifty or more."""
    if grows(values):
        values = [math.log(value) for value in values]
    low, span = min(values), max(values) - min(values)
    return [round(BOX[0] * (value - low) / span) if span else BOX[0] // 2 for value in values]


def _of_columns(experiment: Experiment) -> dict[tuple[str, str], tuple[Style, float]]:
    """Each cell's style and opacity: a table's columns are attacks, a figure's a line's values."""
    figure, columns = experiment.figure, experiment.columns
    if figure is None:
        own = styles_of(columns)
        return {(row, column): (own[column], 1.0) for row in experiment.rows for column in columns}
    own, found = styles_of(figure.lines), {}
    for panel in figure.panels:
        for line in figure.lines:
            for k, column in enumerate(columns):
                style = replace(own[line], width=1.3, marker=MARKERS[k % len(MARKERS)],
                                dashes=DASHES[k % len(DASHES)])  # fmt: skip
                paler = 0.6 * (len(columns) - 1 - k) / max(len(columns) - 1, 1)
                found[figure.row(panel, line), column] = style, 1 - paler
    return found


def _legend(labels: Sequence[str], panels: Mapping[str, Sequence[Line]]) -> list[Line]:
    """One line of each label; without a colour where that differs between panels."""
    drawn: dict[str, list[Line]] = {label: [] for label in labels}
    for lines in panels.values():
        for line in lines:
            drawn[line.label].append(line)
    shown = [some for some in drawn.values() if some]
    if all(len({line.style for line in some}) == 1 for some in shown):
        return [some[0] for some in shown]
    plain = [replace(some[0].style, colour="currentColor") for some in shown]
    return [some[0]._replace(style=style) for some, style in zip(shown, plain)]


def _line(
    label: str,
    style: Style,
    x: Sequence[int],
    mean: np.ndarray,
    half: np.ndarray,
    top: float,
    texts: Sequence[str],
) -> Line:
    """A line through means, whose band stays in [0, 1]; points with a text get a mark."""

    def up(rates: np.ndarray) -> list[int]:
        return [round(BOX[1] * (1 - rate / top)) for rate in np.clip(rates, 0, top).tolist()]

    y, spread = up(mean), np.nan_to_num(half)
    upper, lower = ([*zip(x, up(ends))] for ends in (mean + spread, mean - spread))
    # A point of too few trials has no interval, and the band a gap.
    runs = _runs(np.isfinite(half)) if spread.any() else []
    around = [upper[run] + lower[run][::-1] for run in runs]
    marks = [Mark(*point) for point in zip(x, y, texts) if point[2]]
    bands = "z".join(map(_path, around))
    return Line(label, style, 1.0, _path([*zip(x, y)]), bands, marks, float(mean[-1]))


def _runs(marked: np.ndarray) -> list[slice]:
    """Places of marked ones beside each other."""
    ends = np.flatnonzero(np.diff([False, *marked, False]))
    return [slice(*run) for run in ends.reshape(-1, 2).tolist()]


def _path(points: Sequence[tuple[int, int]]) -> str:
    """The first point, then steps, which are shorter than places."""
    (x, y), steps = points[0], zip(points, points[1:])
    return f"M{x} {y}" + "".join(f"l{c - a} {d - b}" for (a, b), (c, d) in steps)


def _told(mean: float, half: float) -> str:
    return f"{mean:.2f}{plus_minus(half, 2)}"


def mean_curve(trials: Sequence[Trial], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return iterations, at most so many of them, and the trials' mean error rate at each."""
    iterations, rates = sampled(trials, most)
    return iterations, np.mean(rates, axis=0)


def sampled(trials: Sequence[Trial], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return k <= `most` iterations, and the error rates there of n trials, float64 (n, k).

    The trials are of one setting, so that all are evaluated at the same iterations; one that ended
    before the others, since it diverged, keeps the error rate that it ended with.
    """
    known = [trial.result.curve for trial in trials]
    longest = max(known, key=len)
    chosen = np.linspace(0, len(longest) - 1, min(len(longest), most)).round().astype(int).tolist()
    rates = [[curve[min(k, len(curve) - 1)][1] for k in chosen] for curve in known]
    return np.array([longest[k][0] for k in chosen]), np.array(rates)
