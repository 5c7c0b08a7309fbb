"""Figures: error rate against a varied parameter, and over the iterations of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fltrust_repro import captions, drawing
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import MEASURES, Experiment
from fltrust_repro.files import write_bytes
from fltrust_repro.heat_maps import table_picture
from fltrust_repro.ranges import grows
from fltrust_repro.report import Measured
from fltrust_repro.styles import MOST_TICKS, Style, styles_of

PANELS = 3  # beside each other
MOST_LETTERS = 26  # of a direct label


def draw(
    experiment: Experiment,
    measured: Sequence[Measured],
    folder: Path,
    grey: bool = False,
    name: str = "",
) -> list[Path]:
    """Write a figure or a table as NAME.png and NAME.svg; return the files.

    None where a picture of it could not be looked at; NAME is the experiment's, if no other.
    """
    if not experiment.has_picture:
        return []
    make = picture if experiment.figure else table_picture
    files = {kind: folder / f"{name or experiment.name}.{kind}" for kind in drawing.KINDS}
    for kind, file in files.items():
        write_bytes(file, make(experiment, measured, kind, grey))
    return list(files.values())


def picture(
    experiment: Experiment, measured: Sequence[Measured], kind: str, grey: bool = False
) -> bytes:
    """Return a figure as the bytes of a "png" or an "svg"; the same numbers give the same bytes.

    Lines are means over trials, with `drawing.band` between points that have one; each ends in its
    name, or where too many end or a name is long, there is a legend. `grey`: in greys, for print.
    """
    frame: Any = experiment.figure  # a table has none, and no lines
    cells = {(m.cell.row, m.cell.column): m for m in measured}
    top = drawing.top_of(drawing.band(m)[1] for m in measured if m.errors)
    notes = [captions.of_bands(measured), f"vertical axes end at {top:g}" * (top < 1)]
    told = [captions.of_measured(measured, "point"), "; ".join(filter(None, notes))]
    across = min(len(frame.panels), PANELS)
    down = -(-len(frame.panels) // across)
    with drawing.context(experiment.name, 9):
        size = (max(3.6 * across + 0.4, 5.2), 3 * down + 0.5)
        drawn = drawing.sheet(*size, experiment.title, list(filter(None, told)))
        axes = drawn.subplots(down, across, squeeze=False, sharey=True)
        lines = _lines(frame.lines, grey)
        direct = _fits(frame.lines)
        for panel, axis in zip(frame.panels, axes.flat):
            _draw_panel(axis, experiment, panel, cells, lines)
            axis.set_ylim(0, top)
            if direct:
                drawing.name_lines(axis, axis.get_lines(), frame.lines)
        for axis in axes.flat[len(frame.panels) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel(MEASURES[experiment.measure].lower())
        if not direct:
            _add_legend(drawn, axes.flat[0].get_lines(), frame.lines)
        return drawing.as_bytes(drawn, kind)


def _lines(names: Sequence[str], grey: bool) -> dict[str, dict[str, Any]]:
    """Matplotlib's arguments for each line, the strongest on top.

    Markers are hollow and get smaller from the first line to the last, so that those on one place
    are all seen.
    """
    styles = styles_of(names)
    sizes = np.linspace(8.5, 4.5, len(names)) if len(names) > 1 else [5.5]
    return {
        name: _plotted(styles[name], grey) | {"markersize": size, "zorder": 3 + styles[name].width}
        for name, size in zip(names, sizes)
    }


def _plotted(style: Style, grey: bool) -> dict[str, Any]:
    return {
        "color": style.ink(grey), "marker": style.marker, "linewidth": style.width,
        "linestyle": (0, style.dashes) if style.dashes else "-",
        "markerfacecolor": "none", "markeredgewidth": 1.1,
    }  # fmt: skip


def _draw_panel(
    axis: Any,
    experiment: Experiment,
    panel: str,
    cells: Mapping[tuple[str, str], Measured],
    lines: Mapping[str, Mapping[str, Any]],
) -> None:
    frame: Any = experiment.figure
    for name, style in lines.items():
        row = [cells.get((frame.row(panel, name), column)) for column in experiment.columns]
        known = [(value, m) for value, m in zip(frame.values, row) if m and m.errors]
        x = [value for value, _ in known]
        axis.plot(x, [m.mean for _, m in known], **style)
        if known:
            low, high = zip(*(drawing.band(m) for _, m in known))
            sure = [math.isfinite(m.half_width) for _, m in known]
            look: dict[str, Any] = {"color": style["color"], "alpha": 0.14, "linewidth": 0}
            axis.fill_between(x, low, high, where=sure, **look)
    axis.set_title(one_line(panel))
    axis.set_xlabel(one_line(frame.label))
    if grows(frame.values):
        axis.set_xscale("log")
        axis.minorticks_off()
    every = slice(None, None, -(-len(frame.values) // MOST_TICKS))
    names = [column.rpartition(" = ")[2] for column in experiment.columns]
    axis.set_xticks(frame.values[every], [one_line(name) for name in names[every]])
    axis.grid(**drawing.GRID)
    axis.spines[["top", "right"]].set_visible(False)


def _fits(lines: Sequence[str]) -> bool:
    """Whether names can stand at the ends of lines."""
    return len(lines) * drawing.LINE <= 1 and max(map(len, lines)) <= MOST_LETTERS


def _add_legend(drawn: Any, lines: Sequence[Any], names: Sequence[str]) -> None:
    legend = drawn.legend(
        lines, ["line"] * len(lines), loc="outside right upper", fontsize=8, frameon=False,
        ncols=-(-len(lines) // 20), handlelength=4,
    )  # fmt: skip
    # Afterwards, since a legend leaves out names that begin with an underscore.
    for text, name in zip(legend.get_texts(), names):
        text.set_text(one_line(name))
