"""Figures: error rate against a varied parameter, a panel per rule and a line per attack."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fltrust_repro.experiments import Experiment
from fltrust_repro.report import Measured
from fltrust_repro.store import write_bytes

# Told apart without colour: every line has its own grey, marker and dashes.
_STYLES = (
    {"color": "0.0", "marker": "o", "linestyle": "-"},
    {"color": "0.45", "marker": "s", "linestyle": "--"},
    {"color": "0.6", "marker": "^", "linestyle": ":"},
    {"color": "0.25", "marker": "D", "linestyle": "-."},
    {"color": "0.1", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "0.7", "marker": "P", "linestyle": (0, (1, 1))},
)


def draw(experiment: Experiment, measured: Sequence[Measured], folder: Path) -> None:
    """Write NAME.png and NAME.svg: mean lines, with a band of the 95% confidence interval.

    The same numbers give the same bytes. Points without trials are left out.
    """
    import matplotlib as mpl  # here, since it is slow to import and few commands draw
    from matplotlib.figure import Figure

    frame = experiment.figure
    cells = {(m.cell.row, m.cell.column): m for m in measured}
    panels = len(frame.panels)
    with mpl.rc_context({"svg.hashsalt": experiment.name, "font.size": 9}):
        picture = Figure(figsize=(3.4 * panels + 0.4, 3.2), layout="constrained")
        axes = picture.subplots(1, panels, squeeze=False, sharey=True)[0]
        for panel, axis in zip(frame.panels, axes):
            for line, style in zip(frame.lines, _cycle(len(frame.lines))):
                row = [cells[frame.row(panel, line), column] for column in experiment.columns]
                known = [(x, m) for x, m in zip(frame.values, row) if m.errors]
                x = [value for value, _ in known]
                mean = np.array([m.mean for _, m in known])
                half = np.nan_to_num([m.half_width for _, m in known])
                axis.plot(x, mean, label=line, markersize=4, linewidth=1.2, **style)
                axis.fill_between(x, mean - half, mean + half, color=style["color"], alpha=0.15)
            axis.set_title(panel)
            axis.set_xlabel(frame.label)
            if min(frame.values) > 0 and max(frame.values) >= 50 * min(frame.values):
                axis.set_xscale("log")
                axis.minorticks_off()
            axis.set_xticks(frame.values, [f"{value:g}" for value in frame.values])
            axis.set_ylim(0, 1)
            axis.grid(color="0.9", linewidth=0.6)
        axes[0].set_ylabel("testing error rate")
        axes[0].legend(fontsize=8)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = io.BytesIO()
            picture.savefig(content, format=kind, dpi=150, metadata=metadata)
            write_bytes(folder / f"{experiment.name}.{kind}", content.getvalue())


def _cycle(count: int) -> list[dict]:
    return [_STYLES[i % len(_STYLES)] for i in range(count)]
