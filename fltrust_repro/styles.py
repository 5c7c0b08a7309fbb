"""One style per attack, the same in every figure: a colour, a grey, a marker and dashes.

The colours are Okabe and Ito's ("Color Universal Design", 2008; the grey is that of R's palette of
the same name), which eyes that see few colours tell apart. Their yellow is too pale for thin lines
on white paper, and their black cannot be seen on a dark page.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

KNOWLEDGES = ("partial", "full")  # as settings have them, and as lines end in them: "krum, full"


@dataclass(frozen=True)
class Style:
    """How a line is drawn: `colour` and, in print without colours, `grey`, both as "#rrggbb".

    `marker` is Matplotlib's letter; `dashes` are lengths on and off in widths of the line, none for
    a line without gaps; `width` is in points.
    """

    colour: str
    grey: str
    marker: str
    dashes: tuple[float, ...] = ()
    width: float = 1.3

    @property
    def svg_dashes(self) -> str:
        """The dashes as SVG's `stroke-dasharray`."""
        return " ".join(f"{length:g}" for length in self.dashes) or "none"

    def ink(self, grey: bool) -> str:
        """Return the grey where only greys are printed, else the colour."""
        return self.grey if grey else self.colour


# Each colour with its grey, from what is to be seen first to what may be pale.
_VERMILLION = ("#d55e00", "#000000")
_BLUE = ("#0072b2", "#383838")
_PURPLE = ("#cc79a7", "#595959")
_GREEN = ("#009e73", "#6e6e6e")
_SKY = ("#56b4e9", "#4a4a4a")
_ORANGE = ("#e69f00", "#808080")
_GREY = ("#999999", "#949494")  # what the others are compared with, and nothing else
_COLOURS = (_VERMILLION, _BLUE, _PURPLE, _GREEN, _SKY, _ORANGE)
MOST_TICKS = 8  # of an axis: more names would run into each other
MARKERS = "osD^vPX*"
_SOLID: tuple[float, ...] = ()
_DASHED, _DOTTED, _MIXED, _LONG = (4.0, 2.0), (1.0, 1.5), (6.0, 2.0, 1.0, 2.0), (8.0, 3.0)
DASHES = (_SOLID, _DASHED, _MIXED, _LONG, _DOTTED)

_FIXED = {
    # The paper's columns; its message, full knowledge, is the strongest line.
    "no-attack": Style(*_GREY, "P", _LONG),
    "gaussian": Style(*_GREEN, "s", _DOTTED),
    "label-flip": Style(*_PURPLE, "^", _MIXED),
    "partial": Style(*_BLUE, "D", _DASHED),
    "full": Style(*_VERMILLION, "o", _SOLID, 2.4),
    # Built-in attacks; the paper's two, often drawn together, differ in colour, too.
    "krum": Style(*_VERMILLION, "s", _SOLID),
    "trimmed-mean": Style(*_ORANGE, "^", _DASHED),
    "tailored": Style(*_VERMILLION, "D", _MIXED),
    "tailored-persistent": Style(*_VERMILLION, "v", _LONG),
    "tailored-pull": Style(*_VERMILLION, "p", _DOTTED),
    "fltrust-adaptive": Style(*_VERMILLION, "P", _DASHED),
    "min-max": Style(*_BLUE, "o", _SOLID),
    "min-sum": Style(*_BLUE, "s", _DASHED),
    "alie": Style(*_BLUE, "^", _MIXED),
    "byzmean": Style(*_BLUE, "v", _LONG),
    "ipm": Style(*_SKY, "o", _SOLID),
    "sign-flip": Style(*_SKY, "s", _DASHED),
    "mpaf": Style(*_SKY, "D", _MIXED),
    "poisonedfl": Style(*_ORANGE, "o", _SOLID),
    "rop": Style(*_ORANGE, "s", _DASHED),
    "mimic": Style(*_ORANGE, "D", _MIXED),
    "random-labels": Style(*_PURPLE, "s", _DASHED),
    "dynamic-label-flip": Style(*_PURPLE, "v", _LONG),
    "back-gradient": Style(*_GREEN, "D", _DASHED),
    "scaling": Style(*_GREEN, "o", _SOLID),
}
_LOOKS = {(style.colour, style.marker) for style in _FIXED.values()}
# For attacks of users: no colour and marker of the above together.
_FREE = tuple(
    Style(*colour, marker, DASHES[k % len(DASHES)])
    for k, (marker, colour) in enumerate(product(MARKERS, _COLOURS))
    if (colour[0], marker) not in _LOOKS
)


def style_of(column: str) -> Style:
    """Return the style of an attack, or of a column or line of a table or figure.

    >>> from fltrust_repro.styles import style_of
    >>> style_of("full").colour, style_of("krum, partial").svg_dashes
    ('#d55e00', '4 2')
    """
    return styles_of([column])[column]


def styles_of(columns: Iterable[str]) -> dict[str, Style]:
    """Return the styles of what one picture shows, whatever the order.

    Built-in attacks and the paper's columns have theirs whatever else is drawn; any other name one
    by its letters, and the next that is free where another name of the picture has it. A line
    "ATTACK, KNOWLEDGE" has the attack's colour and marker, and the knowledge's dashes and width.
    """
    columns = list(columns)
    bases = {column: _parted(column) for column in columns}
    chosen, taken = dict(_FIXED), set()
    for base in sorted({base for base, _ in bases.values()} - set(_FIXED)):
        first = zlib.crc32(base.encode()) % len(_FREE)
        places = [(first + step) % len(_FREE) for step in range(len(_FREE))]
        place = next((place for place in places if place not in taken), first)
        taken.add(place)
        chosen[base] = _FREE[place]
    return {column: _of_knowledge(chosen[base], known) for column, (base, known) in bases.items()}


def _parted(column: str) -> tuple[str, str]:
    """The attack that a name stands for, and the knowledge that it ends in, if any."""
    name, comma, last = column.rpartition(", ")
    base, knowledge = (name, last) if comma and last in KNOWLEDGES else (column, "")
    base = base.replace(" ", "-")
    return "no-attack" if base == "none" else base, knowledge


def _of_knowledge(style: Style, knowledge: str) -> Style:
    told = _FIXED.get(knowledge)
    return style if told is None else replace(style, dashes=told.dashes, width=told.width)
