"""experiments/*.toml -> settings: one file per table and figure of the paper, or of a user's own.

title = "..."
published_by = "..."           # optional: whose numbers `paper` are
measure = "lowest_error_rate"  # optional, one of `MEASURES`: the default is of the final model
seconds = 5                    # optional: of one trial on one CPU core
[setting]                      # what all cells share
[rows]                         # per row: name = { setting fields }
[columns]                      # per column likewise; it wins over the row
[paper]                        # optional: row = [the paper's value for each column, nan for none]

In place of rows and columns a figure has `vary = "c"` (one of `VARIED`, the horizontal axis),
`values = [5, 10]` (optional), [panels] and [lines], of which the line wins, as rows are written.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import click

from fltrust_repro.errors import BadInput, choose, shown
from fltrust_repro.files import check_name, path_of
from fltrust_repro.plugins import load_plugin
from fltrust_repro.settings import Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MEASURES = {
    "error_rate": "Testing error rate",  # of the final model
    "lowest_error_rate": "Lowest testing error rate",
    "late_error_rate": "Mean testing error rate of the last fifth of the iterations",
}
MOST_BYTES = 1_000_000  # of an experiment's file; the largest of the paper's has 2,000
MOST_CELLS = 10_000
MOST_DRAWN = 60  # panels of a figure's picture, rows and columns of a table's
MOST_LETTERS = 300  # of a title, or of the name of a row

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Varied:
    """A parameter that figures vary: its axis, its setting field, the paper's values, assumed."""

    label: str
    field: str
    values: tuple[float, ...]

    def fields(self, value: Any) -> dict[str, Any]:
        """Return the fields of a setting at one of the values."""
        also = {"compromised": value // 5} if self.field == "workers" else {}
        return {self.field: value, **also}


VARIED = {
    "m": Varied("number of worker devices m (c = m / 5)", "workers", (25, 50, 75, 100, 150)),
    "c": Varied("compromised worker devices c", "compromised", (5, 10, 15, 20, 25, 30)),
    "p": Varied("degree of non-IID p", "non_iid", (0.1, 0.3, 0.5, 0.7, 0.9)),
    "beta": Varied("trimmed values per side beta", "beta", (20, 25, 30, 35, 40, 45)),
    "epsilon": Varied("epsilon of the Krum attack", "epsilon", (0.01, 0.05, 0.1, 0.5, 1.0, 2.0)),
    "rounds": Varied("rounds of local SGD", "rounds", (1, 2, 3, 5, 10)),
    "selected": Varied("worker devices selected per iteration", "selected", (20, 40, 60, 80, 100)),
    "poisoned-fraction": Varied(
        "fraction of poisoned iterations", "poisoned_fraction", (0.0, 0.25, 0.5, 0.75, 1.0)
    ),
}


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

    @property
    def has_picture(self) -> bool:
        """Whether a picture of it can be looked at: not of too many panels, rows or columns."""
        parts = (self.rows, self.columns) if self.figure is None else (self.figure.panels,)
        return max(map(len, parts)) <= MOST_DRAWN

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of all cells, row by row."""
        return tuple(cell.setting for cell in self.cells)

    def choose(self, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> tuple[Cell, ...]:
        """Return the cells of some rows and columns; naming none means all of them.

        Raises `BadInput` for a name that the experiment does not have.
        """
        for kind, asked, known in (("row", rows, self.rows), ("column", columns, self.columns)):
            for name in asked:
                if name not in known:
                    wrong = f"{self.name} has no {kind} {shown(name)}"
                    raise BadInput(f"{wrong}; {choose(name, known)}")
        return tuple(
            cell
            for cell in self.cells
            if cell.row in (rows or self.rows) and cell.column in (columns or self.columns)
        )


def table_of(settings: Sequence[Setting]) -> list[Cell]:
    """Return a row for each setting, named by the fields in which it differs from the others."""
    told = [setting.as_dict() for setting in settings]
    varied = [name for name in told[0] if len({fields[name] for fields in told}) > 1] or ["rule"]
    names = [", ".join(f"{name} {fields[name]}" for name in varied) for fields in told]
    return [Cell(name, "", setting, None) for name, setting in zip(names, settings)]


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

    `others` are further fields of `Experiment`; a wrong value raises `BadInput`.
    """
    if vary not in VARIED:
        raise BadInput(f"vary is {shown(vary)}; {choose(vary, VARIED)}")
    varied = VARIED[vary]
    points = tuple(varied.values if values is None else values)
    if not all(map(_is_number, points)) or len({f"{x:g}" for x in points}) < max(len(points), 1):
        allowed = "at least one number, each finite and none twice"
        raise BadInput(f"values are {shown(list(points))}; give {allowed}.")
    _check_size(len(panels) * len(lines), len(points))
    figure = Figure(varied.label, points, tuple(panels), tuple(lines))
    rows = {
        figure.row(panel, line): {**panels[panel], **lines[line]}
        for panel in panels
        for line in lines
    }
    columns = {f"{vary} = {point:g}": varied.fields(point) for point in points}
    return _arranged(name, command, title, setting, rows, columns, figure=figure, **others)


def _arranged(
    name: str,
    command: str,
    title: str,
    setting: Fields,
    rows: Mapping[str, Fields],
    columns: Mapping[str, Fields],
    paper: Mapping[str, Sequence[float]] | None = None,
    **others: Any,
) -> Experiment:
    _check_size(len(rows), len(columns))
    paper = paper or {}
    for row, values in paper.items():
        if row not in rows:
            raise BadInput(f"[paper] names {shown(row)}, which is no row; {choose(row, rows)}")
        are_rates = isinstance(values, list) and all(
            value != value or (_is_number(value) and 0 <= value <= 1) for value in values
        )
        if not are_rates or len(values) != len(columns):
            wanted = f"a list of {len(columns)} numbers from 0 to 1, or nan, one per column"
            raise BadInput(f"[paper] {row} must be {wanted}.")
    cells = []
    for row, of_row in rows.items():
        printed = paper.get(row, [math.nan] * len(columns))
        for (column, of_column), value in zip(columns.items(), printed):
            try:
                of_cell = Setting.from_dict({**setting, **of_row, **of_column})
            except BadInput as error:
                raise BadInput(f"row {row!r}, column {column!r}: {error}") from error
            cells.append(Cell(row, column, of_cell, None if math.isnan(value) else value))
    return Experiment(name, command, title, tuple(rows), tuple(columns), tuple(cells), **others)


def _check_size(rows: int, columns: int) -> None:
    if rows * columns > MOST_CELLS:
        given = f"{rows:,} rows of {columns:,} cells"
        raise BadInput(f"there are {given}; at most {MOST_CELLS:,} cells can be.")


def _is_number(value: Any) -> bool:
    """Whether a value of a file or command line is a finite number that a float can hold."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


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
            click.echo(f"Note: left out: {error}", err=True)
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
    try:
        with file.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}); make it readable.") from error
    if len(text) > MOST_BYTES:
        raise BadInput(f"{file} has more than {MOST_BYTES:,} bytes; no experiment needs them.")
    try:
        content = tomllib.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid TOML in UTF-8: {error}.") from error
    return _build(file, content)


def _build(file: Path, content: Fields) -> Experiment:
    ours = file.resolve().parent == home().resolve()
    command = f"reproduce {file.stem if ours else file}"
    try:
        _check_parts(content)
        for plugin in content.get("plugins", []):
            load_plugin(file.parent / plugin)
        arrange = figure_of if "vary" in content else _arranged
        told = {name: part for name, part in content.items() if name != "plugins"}
        return arrange(file.stem, command, **{"setting": {}, **told})
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from error


_WORDS = {str: "a text", dict: "a table", list: "a list", Real: "a number"}
_OF_TABLES = {"title": str, "rows": dict, "columns": dict}
_OF_FIGURES = {"title": str, "vary": str, "panels": dict, "lines": dict}
_OPTIONAL = {"setting": dict, "published_by": str, "measure": str, "seconds": Real, "paper": dict,
             "plugins": list}  # fmt: skip


def _check_parts(content: Fields) -> None:
    """Refuse a part that no such experiment has, that is missing, or that is of another kind."""
    is_figure = not {"vary", "panels", "lines"}.isdisjoint(content)
    needed = _OF_FIGURES if is_figure else _OF_TABLES
    known = {**needed, **_OPTIONAL, **({"values": list} if is_figure else {})}
    for part, value in content.items():
        if part not in known:
            raise BadInput(f"unknown part {shown(part)}; {choose(part, known)}")
        if not isinstance(value, known[part]):
            raise BadInput(f"{part} is {shown(value)}; give {_WORDS[known[part]]}.")
    words = [(part, content[part]) for part in ("title", "published_by") if part in content]
    for plugin in content.get("plugins", []):
        if not isinstance(plugin, str) or not plugin.endswith(".py"):
            raise BadInput(f"plugins holds {shown(plugin)}; give names of Python files.")
    for part, kind in needed.items():
        if not content.get(part):
            wanted = f"give {_WORDS[kind]}, as table2a.toml does"
            raise BadInput(f"{part} is missing or empty; {wanted}.")
        for name, fields in content[part].items() if kind is dict else ():
            words.append((f"a name in [{part}]", name))
            if not isinstance(fields, dict):
                wrong = f"{name!r} in [{part}] is {shown(fields)}"
                raise BadInput(f"{wrong}; give {{ field = value, ... }}.")
    for what, text in words:
        if not text.strip() or not text.isprintable() or len(text) > MOST_LETTERS:
            allowed = f"at most {MOST_LETTERS} letters on one line"
            raise BadInput(f"{what} is {shown(text)}; give {allowed}.")
    measure, seconds = content.get("measure", "error_rate"), content.get("seconds", 1)
    if measure not in MEASURES:
        raise BadInput(f"measure is {shown(measure)}; {choose(measure, MEASURES)}")
    if not _is_number(seconds) or not 0 < seconds < 1e9:
        raise BadInput(f"seconds is {shown(seconds)}; give a number above 0, below 1e9.")
