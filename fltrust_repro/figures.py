"""Figures: error rate against a varied parameter, and over the iterations of training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from fltrust_repro.errors import BadInput, one_line
from fltrust_repro.experiments import Experiment
from fltrust_repro.files import write_bytes
from fltrust_repro.poisoning import PoisonedSet
from fltrust_repro.report import Measured
from fltrust_repro.shades import Scale, as_text, shades
from fltrust_repro.standings import SERVER_DATA, Entry, Standings
from fltrust_repro.trials import Trial

# A name is not to be read as mathematics or TeX, whatever its dollars and braces.
_LITERAL: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False}
# Told apart without colour: every line has its own grey, marker and dashes.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "0.0", "marker": "o", "linestyle": "-"},
    {"color": "0.45", "marker": "s", "linestyle": "--"},
    {"color": "0.6", "marker": "^", "linestyle": ":"},
    {"color": "0.25", "marker": "D", "linestyle": "-."},
    {"color": "0.1", "marker": "v", "linestyle": (0, (9, 3))},
    {"color": "0.7", "marker": "P", "linestyle": (0, (5, 2, 1, 2, 1, 2))},
)
_GRID: dict[str, Any] = {"color": "0.9", "linewidth": 0.6}
# The same numbers give the same bytes: no date, and not which Matplotlib.
_METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}}


def draw(experiment: Experiment, measured: Sequence[Measured], folder: Path) -> list[Path]:
    """Write NAME.png and NAME.svg, mean lines with bands of 95% confidence; return the files."""
    files = {kind: folder / f"{experiment.name}.{kind}" for kind in _METADATA}
    for kind, file in files.items():
        write_bytes(file, picture(experiment, measured, kind))
    return list(files.values())


def picture(experiment: Experiment, measured: Sequence[Measured], kind: str) -> bytes:
    """Return a figure as the bytes of a "png" or an "svg"; the same numbers give the same bytes."""
    import matplotlib as mpl  # here, since it is slow to import and few commands draw
    from matplotlib.figure import Figure

    frame: Any = experiment.figure  # a table has none, and no picture
    panels = len(frame.panels)
    cells = {(m.cell.row, m.cell.column): m for m in measured}
    with mpl.rc_context({**_LITERAL, "svg.hashsalt": experiment.name, "font.size": 9}):
        drawn = Figure(figsize=(3.4 * panels + 0.4, 3.2), layout="constrained")
        axes = drawn.subplots(1, panels, squeeze=False, sharey=True)[0]
        for panel, axis in zip(frame.panels, axes):
            _draw_panel(axis, experiment, panel, cells)
        axes[0].set_ylabel("testing error rate")
        legend = drawn.legend(
            axes[0].get_lines(), ["line"] * len(frame.lines),
            loc="outside upper center",  # above the panels, where it cannot cover a line
            ncols=2 * panels + 1, fontsize=8, frameon=False,
        )  # fmt: skip
        # Afterwards, since a legend leaves out names that begin with an underscore.
        for text, line in zip(legend.get_texts(), frame.lines):
            text.set_text(one_line(line))
        return _bytes(drawn, kind)


def _draw_panel(
    axis: Any, experiment: Experiment, panel: str, cells: Mapping[tuple[str, str], Measured]
) -> None:
    frame: Any = experiment.figure
    for line, style in zip(frame.lines, cycle(_STYLES)):
        row = [cells[frame.row(panel, line), column] for column in experiment.columns]
        known = [m for m in row if m.errors]
        x = [value for value, m in zip(frame.values, row) if m.errors]
        mean = np.array([m.mean for m in known])
        half = np.nan_to_num([m.half_width for m in known])
        axis.plot(x, mean, markersize=4, linewidth=1.2, **style)
        axis.fill_between(x, mean - half, mean + half, color=style["color"], alpha=0.15)
    axis.set_title(one_line(panel))
    axis.set_xlabel(one_line(frame.label))
    if min(frame.values) > 0 and max(frame.values) >= 50 * min(frame.values):
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(frame.values, [f"{value:g}" for value in frame.values])
    axis.set_ylim(0, 1)
    axis.grid(**_GRID)


def _bytes(drawn: Any, kind: str, dpi: int = 150) -> bytes:
    content = io.BytesIO()
    drawn.savefig(content, format=kind, dpi=dpi, metadata=_METADATA[kind])
    return content.getvalue()


def check_picture(path: Path) -> str:
    """Return the kind of picture that a path names, "png" or "svg"; else raise `BadInput`."""
    kind = path.suffix[1:].lower()
    if kind not in _METADATA:
        raise BadInput(f"{str(path)!r} is neither .png nor .svg; name the picture so.")
    if path.is_dir():
        raise BadInput(f"{str(path)!r} is a folder; name a file for the picture.")
    return kind


def draw_trial(trial: Trial, path: Path) -> None:
    """Write a picture of a trial's error rate and training loss over the iterations."""
    kind = check_picture(path)
    if not trial.result.curve:
        raise BadInput("this trial has no error curve to draw; run it again.")
    from matplotlib.figure import Figure

    iterations, errors, losses = zip(*trial.result.curve)
    drawn = Figure(figsize=(6, 3.2), layout="constrained")
    axis = drawn.subplots()
    axis.plot(iterations, errors, label="testing error rate", **_STYLES[0], markersize=3)
    axis.plot(iterations, losses, label="training loss", **_STYLES[1], markersize=3)
    axis.set_xlabel("iteration")
    axis.set_ylim(0)
    axis.grid(**_GRID)
    axis.legend(fontsize=8)
    write_bytes(path, _bytes(drawn, kind))


def draw_poisoned(made: PoisonedSet, path: Path) -> None:
    """Write a picture of poisoned examples, each with its label, below what it started from."""
    kind = check_picture(path)
    from matplotlib.figure import Figure

    columns, shown = 12, list(zip(made.start, made.x, made.labels))[:48]
    rows = -(-len(shown) // columns)
    drawn = Figure(figsize=(0.6 * columns, 1.5 * rows), layout="constrained")
    axes = drawn.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (start, end, label) in enumerate(shown):
        row, column = divmod(i, columns)
        above, below = axes[2 * row : 2 * row + 2, column]
        above.imshow(start[0], cmap="gray", vmin=0, vmax=1)
        below.imshow(end[0], cmap="gray", vmin=0, vmax=1)
        above.set_title(f"{label}", fontsize=7, pad=2)
    write_bytes(path, _bytes(drawn, kind, 130))


# ---- a heat map of rules x attacks --------------------------------------------------------------


def heat_map(standings: Standings, caption: str, kind: str) -> bytes:
    """Return an arena's mean error rates as the bytes of a "png" or an "svg".

    A row per rule with its place, best first, those with server data below; a column per attack,
    and each rule's worst outlined. The same numbers give the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ordered = sorted(standings.entries, key=lambda entry: entry.league == SERVER_DATA)
    size = (0.33 * len(standings.columns) + 2.3, 0.19 * len(ordered) + 1.8)
    with mpl.rc_context({**_LITERAL, "svg.hashsalt": standings.protocol, "font.size": 7}):
        drawn = Figure(figsize=size, layout="constrained")
        axis = drawn.subplots()
        scale = Scale.of(standings)
        mesh = _draw_cells(axis, ordered, standings.columns, scale)
        _name_cells(axis, ordered, standings.columns)
        bar = drawn.colorbar(mesh, ax=axis, location="bottom", shrink=0.5, aspect=30, pad=0.01)
        ticks = scale.ticks()
        bar.set_ticks([scale.part(tick) for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
        bar.outline.set_visible(False)
        bar.ax.set_title("mean testing error rate", fontsize=7, loc="left", pad=3)
        drawn.suptitle(one_line(caption), x=0.01, ha="left", fontsize=8)
        return _bytes(drawn, kind)


def _draw_cells(axis: Any, rows: Sequence[Entry], columns: Sequence[str], scale: Scale) -> Any:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    every, parts = shades(), np.full((len(rows), len(columns)), np.nan)
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    for i, entry in enumerate(rows):
        for k, column in enumerate(columns):
            if column not in entry.cells:
                axis.text(k, i, "-", color="0.5", **middle)
                continue
            mean = entry.cells[column].mean
            parts[i, k], ink = scale.part(mean), every[scale.level(mean)].ink
            text = axis.text(k, i, as_text(mean), color=ink, **middle)
            if column == entry.worst:
                text.set_weight("bold")
                axis.add_patch(Rectangle((k - 0.41, i - 0.38), 0.82, 0.76, fill=False, ec=ink))
    # Centred on whole numbers, as the texts are.
    edges = [np.arange(n + 1) - 0.5 for n in parts.shape[::-1]]
    colours = ListedColormap([shade.fill for shade in every])
    mesh = axis.pcolormesh(
        *edges, parts, cmap=colours, vmin=0, vmax=1, ec="white", lw=0.5, zorder=0
    )
    axis.invert_yaxis()
    return mesh


def _name_cells(axis: Any, rows: Sequence[Entry], columns: Sequence[str]) -> None:
    names = [one_line(column) for column in columns]
    axis.set_xticks(range(len(names)), names, rotation=60, ha="left", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), [f"{one_line(row.row)}  {row.place}" for row in rows])
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    with_data = sum(row.league == SERVER_DATA for row in rows)
    if 0 < with_data < len(rows):
        axis.axhline(len(rows) - with_data - 0.5, color="0", linewidth=1)
