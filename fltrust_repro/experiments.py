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
    command: str  # what `reproduce` takes
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


_PARTS = {"title": "text", "setting": "table", "rows": "table", "columns": "table"}


def _build(file: Path, content: dict[str, Any]) -> Experiment:
    strange = sorted(set(content) - {*_PARTS, "paper"})
    if strange:
        raise BadInput(
            f"{file} has unknown parts {', '.join(strange)}; there are {', '.join(_PARTS)}, paper."
        )
    for part, kind in {**_PARTS, "paper": "table"}.items():
        value = content.get(part, {} if part == "paper" else None)
        if not isinstance(value, str if kind == "text" else dict):
            raise BadInput(f"{file} has no {part}, or not as a {kind}; see table2a.toml.")
    for part in ("rows", "columns"):
        for name, fields in content[part].items():
            if not isinstance(fields, dict):
                raise BadInput(f"{file}: {name!r} in [{part}] must be {{ field = value, ... }}.")
        if not content[part]:
            raise BadInput(f"{file} has no {part}; an experiment needs at least one of each.")
    cells = []
    for row, values in _paper_values(file, content).items():
        for (column, fields), value in zip(content["columns"].items(), values):
            try:
                setting = Setting.from_dict(
                    {**content["setting"], **content["rows"][row], **fields}
                )
            except BadInput as error:
                raise BadInput(f"{file}, row {row!r}, column {column!r}: {error}") from error
            cells.append(Cell(row, column, setting, value))
    return Experiment(
        name=file.stem,
        command=file.stem if file.parent == directory() else str(file),
        title=content["title"],
        rows=tuple(content["rows"]),
        columns=tuple(content["columns"]),
        cells=tuple(cells),
    )


def _paper_values(file: Path, content: dict[str, Any]) -> dict[str, list[float | None]]:
    """The paper's value for every column, by row; None where the file gives none."""
    rows, columns, paper = content["rows"], content["columns"], content.get("paper", {})
    unknown = sorted(set(paper) - set(rows))
    if unknown:
        raise BadInput(f"{file}: [paper] names {', '.join(unknown)}, which [rows] does not have.")
    for row, values in paper.items():
        numbers = isinstance(values, list) and all(
            isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
        )
        if not numbers or len(values) != len(columns):
            raise BadInput(
                f"{file}: [paper] {row} must be a list of {len(columns)} numbers, one per column."
            )
    return {row: paper.get(row, [None] * len(columns)) for row in rows}
