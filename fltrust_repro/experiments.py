"""experiments/*.toml -> settings: one file per table and figure of the paper, or of a user's own.

title = "..."
published_by = "..."           # optional: whose numbers `paper` are
measure = "lowest_error_rate"  # optional, one of `MEASURES`: the default is of the final model
seconds = 5                    # optional: of one trial on one CPU core
[setting]                      # what all cells share
[rows]                         # per row: name = { setting fields }
[columns]                      # per column likewise; it wins over the row
[paper]                        # optional: row = [the paper's value for each column, nan for none]

In place of rows and columns a figure has `vary = "c"` (what `varied` knows, the horizontal axis),
`values = [5, 10]` (optional), [panels] and [lines], of which the line wins, as rows are written.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from fltrust_repro.errors import BadInput, BeyondLimit, choose, note, shown
from fltrust_repro.experiment_files import check_paper, check_parts, check_varied, read
from fltrust_repro.files import check_name, in_name, path_of
from fltrust_repro.plugins import load_plugin
from fltrust_repro.settings import Setting
from fltrust_repro.varied import Axis, Fields, axis, left_out, level, setting_at

MEASURES = {
    "error_rate": "Testing error rate",  # of the final model
    "lowest_error_rate": "Lowest testing error rate",
    "late_error_rate": "Mean testing error rate of the last fifth of the iterations",
}
MOST_CELLS = 10_000
Groups = Mapping[str, Sequence[str]]  # rows that one name stands for
Points = Mapping[str, tuple[Fields, Mapping[Axis, float]]]  # what rows have, and vary themselves
MOST_DRAWN = 40  # panels of a figure's picture, rows and columns of a table's


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its setting and, where the paper prints it, the paper's value."""

    row: str
    column: str
    setting: Setting
    paper: float | None


@dataclass(frozen=True)
class Figure:
    """What turns a table into a figure: a row per panel and line, a column per value."""

    label: str
    values: tuple[float, ...]
    panels: tuple[str, ...]
    lines: tuple[str, ...]

    def row(self, panel: str, line: str) -> str:
        """Return the row of the table that holds a panel's line."""
        return f"{panel}: {line}" if len(self.panels) > 1 else line


@dataclass(frozen=True)
class Grid:
    """What turns a table into heat maps over two parameters: a row per map and value of one."""

    across: Axis
    down: Axis
    maps: tuple[str, ...]  # "krum: full"

    def row(self, one: str, column: str) -> str:
        """Return the row of the table that holds a map's row."""
        return f"{one}, {column}"


@dataclass(frozen=True)
class Experiment:
    """A named set of settings, arranged as a table."""

    name: str
    command: str  # that runs it, after `python -m fltrust_repro`
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    figure: Figure | None = None
    measure: str = "error_rate"
    seconds: float | None = None
    published_by: str | None = None
    packed: bool = False  # its trials are so many that their file is compressed
    grid: Grid | None = None
    notes: tuple[str, ...] = ()  # what a reader should know of its cells

    @property
    def has_picture(self) -> bool:
        """Whether one picture of it can be looked at: not of too many panels, rows or columns."""
        parts = (self.rows, self.columns) if self.figure is None else (self.figure.panels,)
        return self.grid is None and max(map(len, parts)) <= MOST_DRAWN

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of all cells, row by row."""
        return tuple(cell.setting for cell in self.cells)

    @property
    def maps(self) -> dict[str, str]:
        """The heat maps of a grid by what they show, with the names of their files."""
        maps = self.grid.maps if self.grid else ()
        words = [in_name(one, most=100) for one in maps]
        apart = [f"{w}-{k}" if words.count(w) > 1 else w for k, w in enumerate(words, 1)]
        return {one: f"{self.name}-{word}" for one, word in zip(maps, apart)}

    def choose(self, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> tuple[Cell, ...]:
        """Return the cells of some rows and columns; naming none means all of them.

        Raises `BadInput` for a name that the experiment does not have, and where limits leave
        nothing.
        """
        for kind, asked, known in (("row", rows, self.rows), ("column", columns, self.columns)):
            for name in asked:
                if name not in known:
                    wrong = f"{self.name} has no {kind} {shown(name)}"
                    raise BadInput(f"{wrong}; {choose(name, known)}")
        rows, columns = rows or self.rows, columns or self.columns
        chosen = tuple(one for one in self.cells if one.row in rows and one.column in columns)
        if not chosen:
            why = " ".join(self.notes) or "choose other rows or columns."
            raise BadInput(f"{self.name} has no cell there. {why}")
        return chosen


def figure_of(
    name: str,
    command: str,
    title: str,
    setting: Fields,
    panels: Mapping[str, Fields],
    lines: Mapping[str, Fields],
    vary: str,
    values: Sequence[float] | None = None,
    **others: Any,
) -> Experiment:
    """Arrange a figure: for each panel and line a row of settings, one per value of `vary`.

    A point beyond a limit of its rule or attack is left out; `notes` name it, and lines that do not
    depend on `vary`. `others` are further fields of `Experiment`; a wrong value raises `BadInput`.
    """
    across = axis(vary, values)
    figure = Figure(across.varied.label, across.values, (*panels,), (*lines,))
    groups = {panel: [figure.row(panel, line) for line in lines] for panel in panels}
    if len({row for rows in groups.values() for row in rows}) < len(panels) * len(lines):
        raise BadInput("two lines of the figure have one name with their panels'; rename one.")
    points: Points = {
        figure.row(*one): (fields, {}) for one, fields in _crossed(setting, panels, lines).items()
    }
    described = {"name": name, "command": command, "title": title, "figure": figure, **others}
    made = _drawn(points, across, groups, **described)
    return _told(made, [across], groups, dict(zip(points, points)))


def grid_of(
    name: str,
    command: str,
    title: str,
    setting: Fields,
    panels: Mapping[str, Fields],
    lines: Mapping[str, Fields],
    across: Axis,
    down: Axis,
) -> Experiment:
    """Arrange heat maps, one per panel and line, over the values of two parameters.

    Of the table each row is one of a map. What `figure_of` says holds here, too.
    """
    _check_size(len(panels) * len(lines) * len(down.values), len(across.values))
    crossed = _crossed(setting, panels, lines)
    maps = {f"{panel}: {line}": fields for (panel, line), fields in crossed.items()}
    grid = Grid(across, down, tuple(maps))
    points = {
        grid.row(one, column): (fields, {down: value})
        for one, fields in maps.items()
        for column, value in zip(down.columns, down.values)
    }
    groups = {
        f"{panel}, {column}": [grid.row(f"{panel}: {line}", column) for line in lines]
        for panel in panels
        for column in down.columns
    }
    described = {"name": name, "command": command, "title": title, "grid": grid}
    made = _drawn(points, across, groups, **described)
    of = {grid.row(one, column): one for one in maps for column in down.columns}
    shown = dict.fromkeys(of[cell.row] for cell in made.cells)  # limits may leave nothing of a map
    made = replace(made, grid=replace(grid, maps=tuple(shown)))
    whole = {panel: [f"{panel}: {line}" for line in lines] for panel in panels}
    return _told(made, [across, down], whole, of)


def _crossed(
    setting: Fields, panels: Mapping[str, Fields], lines: Mapping[str, Fields]
) -> dict[tuple[str, str], Fields]:
    """Return the fields of each line in each panel."""
    pairs = product(panels, lines)
    return {(panel, line): {**setting, **panels[panel], **lines[line]} for panel, line in pairs}


def _drawn(points: Points, across: Axis, groups: Groups, **described: Any) -> Experiment:
    """A row per point of other parameters, if any, a column per value of one."""
    at = dict(zip(across.columns, across.values))
    refused: dict[str, dict[str, str]] = {}

    def setting_of(row: str, column: str) -> Setting | None:
        fields, point = points[row]
        try:
            return setting_at(fields, {across: at[column], **point})
        except BeyondLimit as error:
            refused.setdefault(row, {})[column] = str(error)
            return None

    made = _arranged((*points,), across.columns, setting_of, **described)
    told = left_out(groups, refused)
    if not made.cells:
        raise BadInput(f"no point is left. {told[0]}")
    return replace(made, notes=tuple(told))


def _told(made: Experiment, axes: list[Axis], groups: Groups, of: Mapping[str, str]) -> Experiment:
    """Add to the notes what does not vary; each row is `of` a line or a map."""
    settings: dict[str, list[Setting]] = {}
    for cell in made.cells:
        settings.setdefault(of[cell.row], []).append(cell.setting)
    return replace(made, notes=(*made.notes, *level(axes, groups, settings)))


def _table_of(
    setting: Fields, rows: Mapping[str, Fields], columns: Mapping[str, Fields], **described: Any
) -> Experiment:
    def setting_of(row: str, column: str) -> Setting:
        return Setting.from_dict({**setting, **rows[row], **columns[column]})

    return _arranged((*rows,), (*columns,), setting_of, **described)


def _arranged(
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    setting_of: Callable[[str, str], Setting | None],
    paper: Mapping[str, Sequence[float]] | None = None,
    **described: Any,
) -> Experiment:
    """A cell for each row and column that has a setting; `described` are other fields."""
    _check_size(len(rows), len(columns))
    paper = paper or {}
    check_paper(paper, rows, len(columns))
    cells = []
    for row in rows:
        printed = paper.get(row, [math.nan] * len(columns))
        for column, value in zip(columns, printed):
            try:
                setting = setting_of(row, column)
            except BadInput as error:
                raise BadInput(f"row {row!r}, column {column!r}: {error}") from error
            if setting is not None:
                cells.append(Cell(row, column, setting, None if math.isnan(value) else value))
    return Experiment(rows=rows, columns=columns, cells=tuple(cells), **described)


def _check_size(rows: int, columns: int) -> None:
    if rows * columns > MOST_CELLS:
        raise BadInput(f"there are {rows * columns:,} cells; at most {MOST_CELLS:,} can be.")


def home() -> Path:
    """Return the folder of the paper's experiments: of a checkout, else of the package."""
    package = Path(__file__).parent
    checkout = package.parent / "experiments"  # beside setup.py
    return checkout if (checkout / "table2a.toml").is_file() else package / "paper"


def published() -> Path:
    """Return the folder of the trials that are published with the experiments; only read."""
    return home() / "results"


def available() -> dict[str, Path]:
    """Return the files of the paper's experiments, and of those that chose readings, by name."""
    files = {file.stem: file for file in sorted(home().glob("*.toml"))}
    return {name: file for name, file in files.items() if name != "arena"}  # which holds protocols


def readable() -> list[Experiment]:
    """Return the experiments of `home`; says on stderr what is wrong with one that is left out."""
    found = []
    for name in available():
        try:
            found.append(load_experiment(name))
        except BadInput as error:
            note(f"left out: {error}")
    return found


def load_experiment(name: str | Path) -> Experiment:
    """Read an experiment by its name, or by the path of a .toml file of one's own.

    Raises `BadInput` for an unknown name and for a file that is wrong, naming the place.

    >>> from fltrust_repro.experiments import load_experiment
    >>> load_experiment("table2a").choose(["krum"], ["full"])[0].paper
    0.8
    """
    known, name = available(), str(name)
    file = path_of(name) if name.endswith(".toml") else known.get(name)
    if file is None or not file.is_file():
        wanted = f"give the path of a .toml file, or {choose(name, known)}"
        raise BadInput(f"unknown experiment {shown(name)}; {wanted}")
    check_name(f"the name of {str(file)!r}", file.stem)
    return _build(file, read(file))


def _build(file: Path, content: Fields) -> Experiment:
    ours = file.resolve().parent == home().resolve()
    command = f"reproduce {file.stem if ours else shlex.quote(str(file))}"
    try:
        check_parts(content)
        measure = content.get("measure", "error_rate")
        if measure not in MEASURES:
            raise BadInput(f"measure is {shown(measure)}; {choose(measure, MEASURES)}")
        for plugin in content.get("plugins", []):
            load_plugin(file.parent / plugin)
        if "vary" in content:
            check_varied(content)
        arrange = figure_of if "vary" in content else _table_of
        told = {name: part for name, part in content.items() if name != "plugins"}
        return arrange(name=file.stem, command=command, **{"setting": {}, **told})
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from error
