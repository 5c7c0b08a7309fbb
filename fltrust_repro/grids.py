"""Two parameters varied at once: a heat map for each rule and attack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fltrust_repro import figures
from fltrust_repro.experiments import Experiment
from fltrust_repro.files import write_bytes
from fltrust_repro.report import Measured

KINDS = ("png", "svg")


def draw(experiment: Experiment, measured: Sequence[Measured], folder: Path) -> list[Path]:
    """Write each heat map of a grid as PNG and SVG; return the files, none of another table."""
    means = {(m.cell.row, m.cell.column): m.mean for m in measured if m.errors}
    files = []
    for one, name in experiment.maps.items():
        for kind in KINDS:
            files.append(folder / f"{name}.{kind}")
            write_bytes(files[-1], _picture(experiment, one, means, kind))
    return files


def _picture(
    experiment: Experiment, one: str, means: dict[tuple[str, str], float], kind: str
) -> bytes:
    grid: Any = experiment.grid
    across, down = grid.across, grid.down
    values = {
        (label, tick): means[grid.row(one, row), column]
        for label, row in zip(down.labels, down.columns)
        for tick, column in zip(across.labels, across.columns)
        if (grid.row(one, row), column) in means
    }
    title = f"{experiment.title}: {one}"
    ends = down.varied.label, down.labels, across.varied.label, across.labels
    return figures.grid_picture(title, *ends, values, kind)
