"""experiments/*.toml -> settings: one file per table and figure of the paper, or of a user's own.

title = "..."
measure = "lowest_error_rate"   # optional: the default is "error_rate", of the final model
seconds = 5          # optional: of one trial on one CPU core, to say what missing cells cost
[setting]            # what all cells share
[rows]               # per row: name = { setting fields }
[columns]            # per column likewise; it wins over the row
[paper]              # optional: row = [the paper's value for each column, nan for none]

A figure has, in place of rows and columns:

vary = "c"           # one of `VARIED`: what the horizontal axis shows
values = [5, 10]     # optional: the default is in `VARIED`
[panels]             # per panel: name = { setting fields }
[lines]              # per line likewise; it wins over the panel
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fltrust_repro.errors import BadInput, shown
from fltrust_repro.files import check_name, path_of
from fltrust_repro.settings import Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MEASURES = ("error_rate", "lowest_error_rate")
MOST_BYTES = 1_000_000  # of an experiment's file; the largest of the paper's has 2,000
MOST_CELLS = 10_000
MOST_LETTERS = 300  # of a title, or of the name of a row


@dataclass(frozen=True)
class Varied:
    """A parameter that figures vary: its axis, its setting fields, the values of the paper.

    The paper's text does not print the points of its figures; the values are assumed.
    """

    label: str
    fields: Callable[[Any], dict[str, Any]]
    values: tuple[float, ...]


VARIED = {
    "m": Varied(
        "number of worker devices m (c = m / 5)",
        lambda m: {"workers": m, "compromised": m // 5},
        (25, 50, 75, 100, 150),
    ),
    "c": Varied(
        "compromised worker devices c", lambda c: {"compromised": c}, (5, 10, 15, 20, 25, 30)
    ),
    "p": Varied("degree of non-IID p", lambda p: {"non_iid": p}, (0.1, 0.3, 0.5, 0.7, 0.9)),
    "beta": Varied(
        "trimmed values per side beta", lambda beta: {"beta": beta}, (20, 25, 30, 35, 40, 45)
    ),
    "epsilon": Varied(
        "epsilon of the Krum attack",
        lambda epsilon: {"epsilon": epsilon},
        (0.01, 0.05, 0.1, 0.5, 1.0, 2.0),
    ),
    "rounds": Varied("rounds of local SGD", lambda n: {"rounds": n}, (1, 2, 3, 5, 10)),
    "selected": Varied(
        "worker devices selected per iteration", lambda n: {"selected": n}, (20, 40, 60, 80, 100)
    ),
    "poisoned-fraction": Varied(
        "fraction of poisoned iterations",
        lambda share: {"poisoned_fraction": share},
        (0.0, 0.25, 0.5, 0.75, 1.0),
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

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of all cells, row by row."""
        return tuple(cell.setting for cell in self.cells)

    def choose(self, rows: Sequence[str], columns: Sequence[str]) -> tuple[Cell, ...]:
        """Return the cells of some rows and columns; naming none means all of them.

        Raises `BadInput` for a name that the experiment does not have.
        """
        for kind, asked, known in (("row", rows, self.rows), ("column", columns, self.columns)):
            for name in asked:
                if name not in known:
                    raise BadInput(
                        f"{self.name} has no {kind} {name!r}; its {kind}s are {', '.join(known)}."
                    )
        return tuple(
            cell
            for cell in self.cells
            if cell.row in (rows or self.rows) and cell.column in (columns or self.columns)
        )


def figure_of(
    name: str,
    command: str,
    title: str,
    shared: dict[str, Any],
    panels: dict[str, dict[str, Any]],
    lines: dict[str, dict[str, Any]],
    vary: str,
    values: Sequence[float] | None = None,
    seconds: float | None = None,
) -> Experiment:
    """Arrange a figure: for each panel and line a row of settings, one per value of `vary`.

    Raises `BadInput` for an unknown `vary`, for no values, and for a wrong setting.
    """
    if vary not in VARIED:
        raise BadInput(f"vary is {shown(vary)}; choose one of {', '.join(VARIED)}.")
    varied = VARIED[vary]
    points = tuple(varied.values if values is None else values)
    if not all(map(_is_number, points)) or len({f"{x:g}" for x in points}) < max(len(points), 1):
        allowed = "at least one number, each finite and none twice"
        raise BadInput(f"values are {shown(list(points))}; give {allowed}.")
    _check_size("figure", len(panels) * len(lines), len(points))
    figure = Figure(varied.label, points, tuple(panels), tuple(lines))
    cells = []
    for panel, panel_fields in panels.items():
        for line, line_fields in lines.items():
            for point in points:
                fields = {**shared, **panel_fields, **line_fields, **varied.fields(point)}
                row, column = figure.row(panel, line), f"{vary} = {point:g}"
                cells.append(Cell(row, column, Setting.from_dict(fields), None))
    rows = tuple(dict.fromkeys(cell.row for cell in cells))
    columns = tuple(dict.fromkeys(cell.column for cell in cells))
    return Experiment(name, command, title, rows, columns, tuple(cells), figure, seconds=seconds)


def _is_number(value: Any) -> bool:
    """Whether a value of a file or command line is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_size(what: str, rows: int, columns: int) -> None:
    if rows * columns > MOST_CELLS:
        raise BadInput(f"{what}: {rows} rows of {columns} cells; at most {MOST_CELLS:,} can be.")


def directory() -> Path:
    """Return the folder `experiments/`: of the current directory, else of the repository."""
    package = Path(__file__).parent
    for folder in (Path("experiments"), package.parent / "experiments", package / "paper"):
        if any(folder.glob("*.toml")):
            return folder
    raise BadInput(
        "there is no folder experiments/ with .toml files here; run in a clone of the repository."
    )


def available() -> dict[str, Path]:
    """Return the experiments by name."""
    return {file.stem: file for file in sorted(directory().glob("*.toml"))}


def load_experiment(name: str) -> Experiment:
    """Read an experiment by its name, or by the path of a .toml file of one's own.

    Raises `BadInput` for an unknown name and for a file that is wrong, naming the place.
    """
    known = available()
    file = path_of(name) if name.endswith(".toml") else known.get(name)
    if file is None or not file.is_file():
        raise BadInput(
            f"unknown experiment {shown(name)}; choose one of {', '.join(known)}, or give the path "
            "of a .toml file."
        )
    check_name(f"the name of {str(file)!r}", file.stem)
    return _build(file, _read(file))


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}); make it readable.") from error
    if len(content) > MOST_BYTES:
        raise BadInput(f"{file} has more than {MOST_BYTES:,} bytes; no experiment needs them.")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid TOML in UTF-8: {error}.") from error


_KINDS = {
    "title": str,
    "measure": str,
    "seconds": (int, float),
    "setting": dict,
    "rows": dict,
    "columns": dict,
    "paper": dict,
    "vary": str,
    "values": list,
    "panels": dict,
    "lines": dict,
}
_TABLE = ("title", "setting", "rows", "columns")
_FIGURE = ("title", "setting", "vary", "panels", "lines")


def _build(file: Path, content: dict[str, Any]) -> Experiment:
    _check_parts(file, content)
    ours = file.resolve().parent == directory().resolve()
    name, command = file.stem, f"reproduce {file.stem if ours else file}"
    if "vary" in content:
        return _figure(file, name, command, content)
    return Experiment(
        name=name,
        command=command,
        title=content["title"],
        rows=tuple(content["rows"]),
        columns=tuple(content["columns"]),
        cells=tuple(_cells(file, content)),
        measure=content.get("measure", MEASURES[0]),
        seconds=content.get("seconds"),
    )


def _check_parts(file: Path, content: dict[str, Any]) -> None:
    strange = sorted(set(content) - set(_KINDS))
    if strange:
        raise BadInput(
            f"{file} has unknown parts {', '.join(strange)}; there are {', '.join(_KINDS)}."
        )
    needed = _FIGURE if "vary" in content else _TABLE
    for part in dict.fromkeys([*needed, *content]):
        if not isinstance(content.get(part), _KINDS[part]):
            kind = {str: "text", dict: "table", list: "list"}.get(_KINDS[part], "number")
            raise BadInput(f"{file} has no {part}, or not as a {kind}; see table2a.toml.")
    for part in set(needed) & {"rows", "columns", "panels", "lines"}:
        if not content[part]:
            raise BadInput(f"{file} has no {part}; an experiment needs at least one of each.")
        for name, fields in content[part].items():
            _check_words(file, f"a name in [{part}]", name)
            if not isinstance(fields, dict):
                raise BadInput(f"{file}: {name!r} in [{part}] must be {{ field = value, ... }}.")
    _check_words(file, "title", content["title"])
    measure, seconds = content.get("measure", MEASURES[0]), content.get("seconds", 1)
    if measure not in MEASURES:
        raise BadInput(f"{file}: measure is {shown(measure)}; choose one of {', '.join(MEASURES)}.")
    if not _is_number(seconds) or not 0 < seconds < 1e9:
        raise BadInput(f"{file}: seconds is {shown(seconds)}; give a number above 0, below 1e9.")


def _check_words(file: Path, what: str, text: str) -> None:
    if not text.strip() or not text.isprintable() or len(text) > MOST_LETTERS:
        raise BadInput(
            f"{file}: {what} is {shown(text)}; give at most {MOST_LETTERS} letters on one line."
        )


def _figure(file: Path, name: str, command: str, content: dict[str, Any]) -> Experiment:
    parts = [content[part] for part in ("title", "setting", "panels", "lines", "vary")]
    try:
        return figure_of(name, command, *parts, content.get("values"), content.get("seconds"))
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from error


def _cells(file: Path, content: dict[str, Any]) -> list[Cell]:
    _check_size(str(file), len(content["rows"]), len(content["columns"]))
    cells = []
    for row, values in _paper_values(file, content).items():
        for (column, fields), value in zip(content["columns"].items(), values):
            try:
                setting = Setting.from_dict(
                    {**content["setting"], **content["rows"][row], **fields}
                )
            except BadInput as error:
                raise BadInput(f"{file}, row {row!r}, column {column!r}: {error}") from error
            known = value is not None and not math.isnan(value)
            cells.append(Cell(row, column, setting, value if known else None))
    return cells


def _paper_values(file: Path, content: dict[str, Any]) -> dict[str, list[float | None]]:
    """The paper's value for every column, by row; None where the file gives none."""
    rows, columns, paper = content["rows"], content["columns"], content.get("paper", {})
    unknown = sorted(set(paper) - set(rows))
    if unknown:
        raise BadInput(f"{file}: [paper] names {', '.join(unknown)}, which [rows] does not have.")
    for row, values in paper.items():
        numbers = isinstance(values, list) and all(
            value != value or (_is_number(value) and 0 <= value <= 1) for value in values
        )
        if not numbers or len(values) != len(columns):
            raise BadInput(
                f"{file}: [paper] {row} must be a list of {len(columns)} numbers from 0 to 1, or "
                "nan, one per column."
            )
    return {row: paper.get(row, [None] * len(columns)) for row in rows}
