"""Heat maps: error rates as coloured cells with their numbers, rules down and attacks across."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fltrust_repro import captions, drawing
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import MEASURES, Experiment
from fltrust_repro.report import TOO_FEW, Measured, verdicts
from fltrust_repro.shades import Scale, Shade, as_text, shades
from fltrust_repro.standings import Standings

STRIP = 0.38  # width of the paper's part of a cell
LINES = 3  # of a column's name that stands upright


class Tile(NamedTuple):
    """A cell that is drawn: its mean error rate, with a mark behind, or none.

    `paper` is what the paper prints of it; a frame is drawn around what is to be seen first.
    """

    mean: float | None
    mark: str = ""
    paper: float | None = None
    framed: bool = False


Tiles = Mapping[tuple[str, str], Tile]  # by row and column


class Look(NamedTuple):
    """The size of a cell in inches; that of its number, and of what parts it from others."""

    width: float
    height: float
    points: float
    gap: float


TABLE, GRID, ARENA = Look(0.95, 0.4, 9, 4), Look(0.6, 0.34, 9, 2), Look(0.34, 0.2, 7, 2)


def table_picture(
    experiment: Experiment, measured: Sequence[Measured], kind: str, grey: bool = False
) -> bytes:
    """Return a table as the bytes of a "png" or an "svg"; the same numbers give the same bytes.

    A cell has the colour of its mean error rate, the same in all tables, and at its right a part
    with the paper's value in the colour of that: where it stands out, the two differ. A frame marks
    what `report.verdict` finds outside the tolerance. `grey` draws in greys, for print.
    """
    words, rows, columns = verdicts(measured), experiment.rows, experiment.columns
    tiles = {(m.cell.row, m.cell.column): _of_table(m, w) for m, w in zip(measured, words)}
    printed = any(tile.paper is not None for tile in tiles.values())
    told = [
        "in the right part of a cell: the paper's value" * printed,
        "* and a frame: outside the tolerance" * ("outside" in words),
        "?: too few trials to say" * (TOO_FEW in words),
        "-: not measured" * ("missing" in words),
    ]
    notes = [captions.of_measured(measured, "cell"), "; ".join(filter(None, told))]
    with drawing.context(experiment.name, TABLE.points):
        axis = _drawn(rows, columns, tiles, Scale(), TABLE, grey)
        _name_cells(axis, rows, columns, TABLE)
        _add_scale(axis, Scale(), MEASURES[experiment.measure].lower(), grey)
        return _finished(axis, experiment.title, notes, kind)


def _of_table(measured: Measured, verdict: str) -> Tile:
    mark = {"outside": "*", TOO_FEW: "?"}.get(verdict, "")
    mean = measured.mean if measured.errors else None
    return Tile(mean, mark, measured.cell.paper, verdict == "outside")


def grid_picture(
    title: str,
    row_label: str,
    rows: Sequence[str],
    column_label: str,
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    kind: str,
    grey: bool = False,
    notes: Sequence[str] = (),
) -> bytes:
    """Return mean error rates over two varied parameters as the bytes of a "png" or an "svg".

    `values` are by row and column; a place without one is left empty. The first row is the lowest,
    as on an axis; `notes` are lines below.
    """
    upwards, scale = list(rows)[::-1], Scale.over(values.values())
    tiles = {place: Tile(mean) for place, mean in values.items()}
    with drawing.context(title, GRID.points):
        axis = _drawn(upwards, columns, tiles, scale, GRID, grey)
        _name_cells(axis, upwards, columns, GRID, below=True)
        axis.set_xlabel(one_line(column_label))
        axis.set_ylabel(one_line(row_label))
        _add_scale(axis, scale, "mean testing error rate", grey)
        return _finished(axis, title, notes, kind)


def standings_picture(standings: Standings, caption: str, kind: str, grey: bool = False) -> bytes:
    """Return an arena's mean error rates as the bytes of a "png" or an "svg".

    A row per rule with its place, best first, those with server data below; a column per attack,
    and each rule's worst framed. The same numbers give the same bytes.
    """
    alone, with_data = standings.leagues()
    ordered = [*alone, *with_data]
    rows = [f"{entry.row}  {entry.place}" for entry in ordered]
    tiles = {
        (row, column): Tile(cell.mean, framed=column == entry.worst)
        for row, entry in zip(rows, ordered)
        for column, cell in entry.cells.items()
    }
    scale, columns = Scale.of(standings), standings.columns
    with drawing.context(standings.protocol, ARENA.points):
        axis = _drawn(rows, columns, tiles, scale, ARENA, grey)
        _name_cells(axis, rows, columns, ARENA)
        if alone and with_data:
            axis.axhline(len(alone) - 0.5, color="0", linewidth=1, zorder=3)
        _add_scale(axis, scale, "mean testing error rate", grey)
        return _finished(axis, caption, ["framed: a rule's worst; -: not met"], kind)


# ---- cells, their names and their scale: in inches from the cells, which are the figure ----------


def _drawn(
    rows: Sequence[str], columns: Sequence[str], tiles: Tiles, scale: Scale, look: Look, grey: bool
) -> Any:
    """Return an axis with the cells, centred on whole numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(look.width * len(columns), look.height * len(rows)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    every = shades(grey=grey)
    for i, row in enumerate(rows):
        for k, column in enumerate(columns):
            _draw_tile(axis, k, i, tiles.get((row, column), Tile(None)), scale, look, every)
    for rule, count in ((axis.axvline, len(columns)), (axis.axhline, len(rows))):
        for k in range(count + 1):
            rule(k - 0.5, color="white", linewidth=look.gap, zorder=2)
    # They lie inside the axis, so that its bounds, asked for a few times, need not look at each.
    for artist in (*axis.patches, *axis.texts, *axis.lines):
        artist.set_in_layout(False)
    return axis


def _draw_tile(
    axis: Any, x: int, y: int, tile: Tile, scale: Scale, look: Look, every: Sequence[Shade]
) -> None:
    """Draw a cell's part, the paper's part beside it, and in the gap around them the frame."""
    from matplotlib.patches import Rectangle

    left, parts = x - 0.5, 1 if tile.paper is None else 1 - STRIP
    told = "-" if tile.mean is None else as_text(tile.mean) + tile.mark
    weight = "bold" if tile.framed else "normal"
    drawn: list[Any] = [(left, parts, tile.mean, told, {"fontsize": look.points, "weight": weight})]
    if tile.paper is not None:
        told = f"{tile.paper:.2f}".removeprefix("0")
        drawn.append((left + parts, STRIP, tile.paper, told, {"fontsize": 0.8 * look.points}))
    for start, width, error, text, font in drawn:
        shade = Shade("none", "0.5") if error is None else every[scale.level(error)]
        axis.add_patch(Rectangle((start, y - 0.5), width, 1, color=shade.fill, linewidth=0))
        middle = (start + width / 2, y)
        axis.text(*middle, text, color=shade.ink, ha="center", va="center", zorder=3, **font)
    if tile.framed:
        line: dict[str, Any] = {
            "edgecolor": "0",
            "linewidth": look.gap / 2,
            "zorder": 4,
            "clip_on": False,
        }
        axis.add_patch(Rectangle((left, y - 0.5), 1, 1, fill=False, **line))


def _name_cells(
    axis: Any, rows: Sequence[str], columns: Sequence[str], look: Look, below: bool = False
) -> None:
    """Name rows and columns: these upright, on a few lines, where all have room, else aslant."""
    names = [one_line(column) for column in columns]
    letters = int(72 * look.width / (0.58 * look.points))
    folded = [textwrap.wrap(name, letters, break_long_words=False) or [""] for name in names]
    room = all(len(part) <= LINES and max(map(len, part)) <= letters for part in folded)
    aslant: dict[str, Any] = {"rotation": 60, "rotation_mode": "anchor"}
    aslant["ha"] = "right" if below else "left"
    told = ["\n".join(part) for part in folded] if room else names
    axis.set_xticks(range(len(names)), told, **({} if room else aslant))
    axis.set_yticks(range(len(rows)), [one_line(row) for row in rows])
    axis.tick_params(length=0, top=False, bottom=False, labeltop=not below, labelbottom=below)
    axis.spines[:].set_visible(False)


def _add_scale(axis: Any, scale: Scale, what: str, grey: bool) -> None:
    """Draw the shades below all that there is, with error rates on them."""
    from matplotlib.colors import ListedColormap

    left, bottom, _, _ = _bounds(axis)
    inches, every = axis.figure.get_size_inches(), shades(grey=grey)
    place = (0 if left < -0.5 else left, bottom - 0.4, 2.6, 0.11)
    bar = axis.figure.add_axes([length / of for length, of in zip(place, [*inches, *inches])])
    edges, levels = np.linspace(0, 1, len(every) + 1), [range(len(every))]
    bar.pcolormesh(edges, [0, 1], levels, cmap=ListedColormap([shade.fill for shade in every]))
    ticks = scale.ticks()
    bar.set_xticks([scale.part(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    bar.set_yticks([])
    bar.tick_params(labelsize="small")
    bar.spines[:].set_visible(False)
    bar.set_title(what, fontsize="small", loc="left", pad=3)


def _finished(axis: Any, title: str, notes: Sequence[str], kind: str) -> bytes:
    """Write a title above all that there is and notes below, and return the picture."""
    figure = axis.figure
    bounds = [_bounds(one) for one in figure.axes]
    left, bottom, top = bounds[0][0], min(b[1] for b in bounds), bounds[0][3]
    width, height = figure.get_size_inches()
    letters = max(90, int(15 * (bounds[0][2] - left)))  # that stand beside each other
    above, below = (drawing.lines(texts, letters) for texts in ([title], notes))
    figure.text(left / width, (top + 0.1) / height, above, color=drawing.INK)
    small: dict[str, Any] = {"fontsize": "small", "color": drawing.QUIET, "va": "top"}
    figure.text(left / width, (bottom - 0.1) / height, below, **small)
    return drawing.as_bytes(figure, kind, tight=True)


def _bounds(axis: Any) -> list[float]:
    """Where an axis with its names lies: left, bottom, right, top in inches."""
    return [float(length) / axis.figure.dpi for length in axis.get_tightbbox().extents]
