"""The package's structure as it stands: `python tests/house.py` prints rooms, lines and imports.

README, "Development", says on which floor a room, that is a module, stands. An arrow, that is an
import, leads to a lower floor or to another room of the same floor, never up, and never in a
circle; imports inside functions and for types count as any other.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fltrust_repro"
README = ROOT / "README.md"
MOST_LINES = 350


def floors() -> dict[str, list[str]]:
    """Return the rooms by floor, from the ground up, as the README lists them."""
    text = README.read_text(encoding="utf-8").split("## Development", 1)[1]
    found: dict[str, list[str]] = {}
    for floor, room in re.findall(r"^ {4}(\w[\w ]{11} | {13})(\w+) +\w", text, re.MULTILINE):
        if floor.strip():
            found[floor.strip()] = []
        found[list(found)[-1]].append(room)
    return dict(reversed(found.items()))


@cache
def rooms() -> dict[str, Path]:
    """Return the modules of the package by name."""
    return {file.stem: file for file in sorted(PACKAGE.glob("*.py"))}


@cache
def arrows() -> dict[str, set[str]]:
    """Return which rooms each room imports, wherever the import stands."""
    known = set(rooms()) - {"__init__"}
    found = {}
    for name, file in rooms().items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "fltrust_repro":
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module.removeprefix("fltrust_repro.")}
            elif isinstance(node, ast.Import):
                imported |= {alias.name.removeprefix("fltrust_repro.") for alias in node.names}
        found[name] = imported & known - {name}
    return found


def order() -> list[str] | None:
    """Return the rooms so that each comes after all that it imports; None in a circle."""
    left, done = dict(arrows()), []
    while left:
        free = sorted(name for name, imported in left.items() if imported <= set(done))
        if not free:
            return None
        done += free
        left = {name: imported for name, imported in left.items() if name not in free}
    return done


def main() -> None:
    """Print each floor's rooms, from the top down, with their lines and what they import."""
    imported, files = arrows(), rooms()
    lines = {name: len(file.read_text("utf-8").splitlines()) for name, file in files.items()}
    for floor, names in reversed(floors().items()):
        print(f"{floor}: {sum(lines[name] for name in names):,} lines")
        for name in names:
            print(f"  {name:15} {lines[name]:4}  -> {' '.join(sorted(imported[name]))}")
    count = sum(map(len, imported.values()))
    print(f"{len(files)} rooms, {sum(lines.values()):,} lines, {count} arrows")


if __name__ == "__main__":
    main()
