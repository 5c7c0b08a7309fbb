"""Two parameters varied at once: a heat map for each rule and attack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fltrust_repro import captions, drawing
from fltrust_repro.experiments import Experiment
from fltrust_repro.files import write_bytes
from fltrust_repro.heat_maps import grid_picture
from fltrust_repro.report import Measured


def draw(
    experiment: Experiment, measured: Sequence[Measured], folder: Path, grey: bool = False
) -> list[Path]:
    """Write each heat map of a grid as PNG and SVG; return the files, none of another table."""
    files = []
    for one, name in experiment.maps.items():
        for kind in drawing.KINDS:
            files.append(folder / f"{name}.{kind}")
            write_bytes(files[-1], _picture(experiment, one, measured, kind, grey))
    return files


def _picture(
    experiment: Experiment, one: str, measured: Sequence[Measured], kind: str, grey: bool
) -> bytes:
    grid: Any = experiment.grid
    across, down = grid.across, grid.down
    places = {
        (grid.row(one, row), column): (label, tick)
        for label, row in zip(down.labels, down.columns)
        for tick, column in zip(across.labels, across.columns)
    }
    own = [m for m in measured if (m.cell.row, m.cell.column) in places]
    values = {places[m.cell.row, m.cell.column]: m.mean for m in own if m.errors}
    title, notes = f"{one}; {experiment.title}", [captions.of_measured(own, "point")]
    ends = down.varied.label, down.labels, across.varied.label, across.labels
    return grid_picture(title, *ends, values, kind, grey, notes)
