"""An experiment's TOML file: it is read, and what no experiment has is refused."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from fltrust_repro.errors import BadInput, choose, shown
from fltrust_repro.varied import is_number, varied

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 1_000_000  # the largest of the paper's has 2,000
MOST_LETTERS = 300  # of a title, or of the name of a row


def read(file: Path) -> dict[str, Any]:
    """Return what a TOML file holds; `BadInput` where it cannot be read."""
    try:
        with file.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}); make it readable.") from error
    if len(text) > MOST_BYTES:
        raise BadInput(f"{file} has more than {MOST_BYTES:,} bytes; no experiment needs them.")
    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid TOML in UTF-8: {error}.") from error


_WORDS = {str: "a text", dict: "a table", list: "a list", Real: "a number"}
_OF_TABLES = {"title": str, "rows": dict, "columns": dict}
_OF_FIGURES = {"title": str, "vary": str, "panels": dict, "lines": dict}
_OPTIONAL = {"setting": dict, "published_by": str, "measure": str, "seconds": Real, "paper": dict,
             "plugins": list}  # fmt: skip


def check_parts(content: Mapping[str, Any]) -> None:
    """Raise `BadInput` for a part that no such experiment has, or that is missing or wrong."""
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
    seconds = content.get("seconds", 1)
    if not is_number(seconds) or not 0 < seconds < 1e9:
        raise BadInput(f"seconds is {shown(seconds)}; give a number above 0, below 1e9.")


def check_varied(content: Mapping[str, Any]) -> None:
    """Raise `BadInput` for a field that what a figure varies would take the place of."""
    one = varied(content["vary"])
    rows = [row for part in ("panels", "lines") for row in content[part].values()]
    for row in (content.get("setting", {}), *rows):
        for field, value in row.items():
            if one.decides(field, value):
                raise BadInput(f"{field} is given, but vary decides it; {one.instead}.")


def check_paper(paper: Mapping[str, Any], rows: Collection[str], columns: int) -> None:
    """Raise `BadInput` unless the paper's values are one per column, of some of the rows."""
    for row, values in paper.items():
        if row not in rows:
            raise BadInput(f"[paper] names {shown(row)}, which is no row; {choose(row, rows)}")
        are_rates = isinstance(values, list) and all(
            value != value or (is_number(value) and 0 <= value <= 1) for value in values
        )
        if not are_rates or len(values) != columns:
            wanted = f"a list of {columns} numbers from 0 to 1, or nan, one per column"
            raise BadInput(f"[paper] {row} must be {wanted}.")
