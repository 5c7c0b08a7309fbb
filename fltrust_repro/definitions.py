"""Sweeps and experiments of one's own, kept beside their results: NAME.json says what NAME.csv is.

The program's own experiments are not kept so: their files come with it.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fltrust_repro.errors import BadInput, LeftOut, UnknownName, wrong_in
from fltrust_repro.experiments import MEASURES, Cell, Experiment, Figure
from fltrust_repro.files import is_file, write_text
from fltrust_repro.settings import Setting
from fltrust_repro.trials import protocol_of

ENDING = ".json"
_DECIDES = ("measure", "setting", "cells", "protocols")  # what numbers are made of
_WRONG = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)


def is_own(experiment: Experiment) -> bool:
    """Whether an experiment is none of the program's."""
    return experiment.command != f"reproduce {experiment.name}"


def keep(experiment: Experiment, out: Path) -> list[Path]:
    """Write an experiment of one's own as OUT/NAME.json; return the file, none for others."""
    if not is_own(experiment):
        return []
    file = _file_of(experiment, out)
    write_text(file, json.dumps(_told(experiment), indent=1) + "\n")
    return [file]


def is_anothers_place(experiment: Experiment, out: Path) -> bool:
    """Whether results of another experiment of this name lie in a folder.

    One's own is the same where its file lies where it lay, or has the same title: it may have been
    edited since, or moved. Sweeps of one name are one's own wish.
    """
    file = _file_of(experiment, out)
    if not is_own(experiment):
        return is_file(file)
    if not is_file(file):
        return is_file(file.with_suffix(".csv"))
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        before = told["file"] if "file" in told else _file_typed(told["command"])
        return before != _file_typed(experiment.command) and told["title"] != experiment.title
    except (OSError, *_WRONG):
        return False  # it is no experiment any more


def is_kept(experiment: Experiment, out: Path) -> bool:
    """Whether what lies in a folder under the experiment's name are results of the same cells."""
    file = _file_of(experiment, out)
    if not is_own(experiment):
        return True
    try:
        told, now = json.loads(file.read_text(encoding="utf-8")), _told(experiment)
        return all(told[part] == json.loads(json.dumps(now[part])) for part in _DECIDES)
    except (OSError, *_WRONG):
        return False


def _file_typed(command: str) -> str | None:
    """The file of one's own that a command names, by its whole path; None of a sweep."""
    kind, *words = shlex.split(command)
    return str(Path(words[0]).resolve()) if kind == "reproduce" else None


def _file_of(experiment: Experiment, out: Path) -> Path:
    return out / f"{experiment.name}{ENDING}"


def _told(experiment: Experiment) -> dict[str, Any]:
    """An experiment as its file tells it."""
    settings = [setting.as_dict() for setting in experiment.settings]
    shared = {name: value for name, value in settings[0].items()
              if all(other[name] == value for other in settings)}  # fmt: skip
    cells = [
        {"row": cell.row, "column": cell.column, "paper": cell.paper,
         "setting": {name: value for name, value in setting.items() if name not in shared}}
        for cell, setting in zip(experiment.cells, settings)
    ]  # fmt: skip
    return {
        "command": experiment.command, "file": _file_typed(experiment.command),
        "title": experiment.title, "measure": experiment.measure,
        "published_by": experiment.published_by, "seconds": experiment.seconds,
        "figure": None if experiment.figure is None else asdict(experiment.figure),
        "rows": experiment.rows, "columns": experiment.columns, "notes": experiment.notes,
        "setting": shared, "cells": cells,
        "protocols": sorted({*map(protocol_of, experiment.settings)}),
    }  # fmt: skip


def kept(folder: Path, left_out: LeftOut) -> list[Experiment]:
    """Return the experiments that are kept in a folder, by name.

    A file that is none is left alone; `left_out` takes those that this version does not understand.
    """
    found = []
    for file in sorted(folder.glob(f"*{ENDING}")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(told, dict) and {"command", "title", "cells"} <= told.keys():
                found.append(_experiment(file.stem, told))
        except UnknownName as error:
            of_plugin = f"{wrong_in(str(error))}; give --plugin to show it"
            left_out.add(file, "the experiment", BadInput(of_plugin))
        except (OSError, *_WRONG) as error:
            left_out.add(file, "the experiment", BadInput(str(error) or "a part is missing"))
    return found


def _experiment(name: str, told: Mapping[str, Any]) -> Experiment:
    """An experiment from what `keep` wrote of it."""
    cells = tuple(
        Cell(str(cell["row"]), str(cell["column"]),
             Setting.from_stored({**told["setting"], **cell["setting"]}),
             None if cell["paper"] is None else float(cell["paper"]))
        for cell in told["cells"]
    )  # fmt: skip
    figure = told["figure"]
    if figure is not None:
        parts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in figure.items()}  # fmt: skip
        figure = Figure(**parts)
    rows, columns = (tuple(map(str, told[part])) for part in ("rows", "columns"))
    astray = {cell.row for cell in cells} - {*rows} | {cell.column for cell in cells} - {*columns}
    if not cells or astray or told["measure"] not in MEASURES:
        raise BadInput("it has no cells, cells astray, or a measure that there is not")
    if len({(cell.row, cell.column) for cell in cells}) < len(cells):
        raise BadInput("two of its cells have one place")
    numbers = [told["seconds"] or 0, *(cell.paper or 0 for cell in cells)]
    if not all(map(_is_number, numbers)):
        raise BadInput("its seconds, or what a paper has, are no numbers")
    if figure is not None:
        _check_figure(figure, rows, columns)
    return Experiment(
        name, str(told["command"]), str(told["title"]), rows, columns, cells, figure,
        told["measure"], told["seconds"], told["published_by"],
        notes=tuple(map(str, told.get("notes", ()))),
    )  # fmt: skip


def _check_figure(figure: Figure, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Raise `BadInput` where a figure does not fit its experiment."""
    names = [*figure.panels, *figure.lines]
    lines = {figure.row(panel, line) for panel in figure.panels for line in figure.lines}
    if not all(isinstance(name, str) for name in names) or not {*rows} <= lines:
        raise BadInput("the panels and lines of its figure are not its rows")
    apart = len({*figure.values}) == len(figure.values) == len(columns)
    if not apart or not all(map(_is_number, figure.values)):
        raise BadInput("the values of its figure are not a number for each column")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
