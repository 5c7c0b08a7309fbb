"""experiments/*.toml -> settings: one file per table of the paper, or of a user's own.

title = "..."
[setting]            # what all cells share
[rows]               # per row: name = { setting fields }
[columns]            # per column likewise; it wins over the row
[paper]              # optional: row = [the paper's value for each column]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fltrust_repro.errors import BadInput
from fltrust_repro.settings import Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its setting and, where the paper prints it, the paper's value."""

    row: str
    column: str
    setting: Setting
    paper: float | None


@dataclass(frozen=True)
class Experiment:
    """A named set of settings, arranged as a table."""

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of all cells, row by row."""
        return tuple(cell.setting for cell in self.cells)


def directory() -> Path:
    """Return the folder `experiments/`: of the current directory, else of the repository."""
    here, repository = Path("experiments"), Path(__file__).parent.parent / "experiments"
    for folder in (here, repository):
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
    file = Path(name) if name.endswith(".toml") else known.get(name)
    if file is None or not file.is_file():
        raise BadInput(
            f"unknown experiment {name!r}; choose one of {', '.join(known)}, or give the path of a "
            ".toml file."
        )
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not valid TOML: {error}.") from error
    return _build(file, content)


def _build(file: Path, content: dict[str, Any]) -> Experiment:
    parts = {"title": str, "setting": dict, "rows": dict, "columns": dict, "paper": dict}
    for part, kind in parts.items():
        if not isinstance(content.get(part, {} if part == "paper" else None), kind):
            raise BadInput(
                f"{file} has no {part!r}, or not as a {kind.__name__}; see table2a.toml."
            )
    strange = sorted(set(content) - set(parts))
    if strange:
        raise BadInput(
            f"{file} has unknown parts {', '.join(strange)}; there are {', '.join(parts)}."
        )
    rows, columns, paper = content["rows"], content["columns"], content.get("paper", {})
    cells = []
    for row, row_fields in rows.items():
        values = paper.get(row, [None] * len(columns))
        if len(values) != len(columns):
            raise BadInput(
                f"{file}: [paper] {row} has {len(values)} values for {len(columns)} columns."
            )
        for (column, column_fields), value in zip(columns.items(), values):
            try:
                setting = Setting.from_dict({**content["setting"], **row_fields, **column_fields})
            except (BadInput, TypeError) as error:
                raise BadInput(f"{file}, row {row!r}, column {column!r}: {error}") from error
            cells.append(Cell(row, column, setting, value))
    return Experiment(file.stem, content["title"], tuple(rows), tuple(columns), tuple(cells))
