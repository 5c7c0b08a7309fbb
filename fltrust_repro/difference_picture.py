"""A picture of a comparison: each setting's difference with its interval, beside zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fltrust_repro import comparison, drawing
from fltrust_repro.comparison_page import Cell, Comparison
from fltrust_repro.errors import one_line
from fltrust_repro.words import cut

MOST = 60  # settings that a picture can show
_LONGEST = 80  # letters of a name


class _Look(NamedTuple):
    """How a verdict is drawn; told apart without colour, too."""

    colour: str
    marker: str
    filled: bool


_NEUTRAL = _Look("#6e6e6e", "o", False)
_LOOKS = {
    comparison.LOWER: _Look("#0072b2", "<", True),
    comparison.HIGHER: _Look("#d55e00", ">", True),
    comparison.PERHAPS[comparison.LOWER]: _Look("#0072b2", "<", False),
    comparison.PERHAPS[comparison.HIGHER]: _Look("#d55e00", ">", False),
    comparison.EQUAL: _Look("#6e6e6e", "|", True),
    comparison.TOO_FEW: _Look("#6e6e6e", "x", True),
}


def picture(found: Comparison, kind: str) -> bytes:
    """Return the differences as the bytes of a "png" or an "svg".

    Settings stand in the order of the table; of more than `MOST` those that chance explains least.
    The same numbers give the same bytes.
    """
    cells = _shown(found.cells)
    a, b = (one_line(name) for name in found.names)
    notes = [found.shared] if found.shared else []
    notes.append(
        "95% intervals. Filled: differs; hollow: perhaps (Holm); grey: not seen; x: too few"
    )
    if len(cells) < len(found.cells):
        notes.append(f"{len(cells)} of {len(found.cells):,} settings, which chance explains least")
    with drawing.context("comparison", 8):
        names = [cut(one_line(cell.name), _LONGEST) or "all" for cell in cells]
        width = 4.2 + 0.062 * max(24, *map(len, names))
        height = 0.17 * len(cells) + 1.05 + 0.15 * len(notes)
        drawn = drawing.sheet(width, height, f"A: {a};  B: {b}", notes)
        axis = drawn.subplots()
        for place, cell in enumerate(cells):
            _draw(axis, place, cell)
        axis.axvline(0, color=drawing.INK, linewidth=0.8, zorder=1)
        axis.set_yticks(range(len(cells)), names)
        axis.set_ylim(len(cells) - 0.5, -0.5)
        axis.set_xlabel("B - A, difference of mean testing error rates\n← B lower     B higher →")
        axis.grid(**drawing.GRID, axis="x")
        axis.tick_params(axis="y", length=0)
        axis.spines[["left", "right", "top"]].set_visible(False)
        return drawing.as_bytes(drawn, kind)


def _shown(cells: Sequence[Cell]) -> list[Cell]:
    chances = comparison.chances([cell.difference for cell in cells])
    ranks = sorted(range(len(cells)), key=lambda k: (math.isnan(chances[k]), chances[k], k))
    return [cells[k] for k in sorted(ranks[:MOST])]


def _draw(axis: Any, place: int, cell: Cell) -> None:
    look, one = _LOOKS.get(cell.verdict, _NEUTRAL), cell.difference
    if one.half > 0:
        ends = one.value - one.half, one.value + one.half
        axis.plot(ends, (place, place), color=look.colour, linewidth=1.4, solid_capstyle="butt")
    axis.plot(
        one.value, place, look.marker, color=look.colour, markersize=5, zorder=3,
        markerfacecolor=look.colour if look.filled else "white",
    )  # fmt: skip
