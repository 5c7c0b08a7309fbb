"""Error rates as shades of a colour, from little to much, on which numbers can be read.

A single run from light to dark, so that grey print, and eyes that see few colours, tell as much.
Equal steps are equal ratios: from 0.10 to 0.20, twice the error, is as far as from 0.40 to 0.80.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fltrust_repro.standings import Standings

LEVELS = 24
LEAST = 0.005  # an error rate below it counts as it, since none has a logarithm
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CLOSER = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


class Shade(NamedTuple):
    """A colour, and what is written on it: both as "#rrggbb"."""

    fill: str
    ink: str


@dataclass(frozen=True)
class Scale:
    """A scale of shades between two error rates, of which the upper is at least twice the other.

    The default is for tables: the same colour means the same error rate in each of them.
    """

    low: float = 0.05
    high: float = 1.0

    @classmethod
    def over(cls, errors: Iterable[float]) -> Scale:
        """Return the scale from the least to the largest of some error rates, or a wider one."""
        known = [max(error, LEAST) for error in errors]
        low = min(known, default=LEAST)
        high = min(max([*known, 2 * low]), 1.0)
        return cls(min(low, high / 2), high)

    @classmethod
    def of(cls, standings: Standings) -> Scale:
        """Return the scale of a protocol's mean error rates."""
        entries = standings.entries
        return cls.over(cell.mean for entry in entries for cell in entry.cells.values())

    def part(self, error: float) -> float:
        """Return how far up the scale an error rate lies, from 0 to 1."""
        part = math.log(max(error, LEAST) / self.low) / math.log(self.high / self.low)
        return min(max(part, 0.0), 1.0)

    def level(self, error: float) -> int:
        """Return the place of an error rate's shade among `shades`."""
        return min(int(self.part(error) * LEVELS), LEVELS - 1)

    def ticks(self) -> list[float]:
        """Return round error rates on the scale; closer ones where the others are too few."""
        few, more = ([tick for tick in ticks if round(self.low, 3) <= tick <= self.high]
                     for ticks in (TICKS, CLOSER))  # fmt: skip
        return few if len(few) > 1 else more

    def marks(self) -> list[dict[str, Any]]:
        """Return the ticks with how far up they lie, as a page shows them."""
        return [{"at": self.part(tick), "text": f"{tick:g}"} for tick in self.ticks()]


def as_text(error: float) -> str:
    """Return an error rate in three digits, short enough for a cell of a heat map.

    >>> from fltrust_repro.shades import as_text
    >>> as_text(0.1234), as_text(0.9996)
    ('.123', '1.00')
    """
    text = f"{error:.3f}"
    return text[1:] if text.startswith("0") else text[:4]


def shades(dark: bool = False, grey: bool = False) -> list[Shade]:
    """Return the shades from little error to much; on a dark page the little is dark.

    `grey` gives greys, for print.
    """
    from matplotlib import colormaps  # here, since it is slow to import and few commands draw
    from matplotlib.colors import to_hex

    # Neither end is black: a light page's much would hide its frame, a dark page's little the page.
    first, last = (0.12, 1.0) if dark else (1.0, 0.08)
    run = colormaps["gray" if grey else "magma"]
    fills = [to_hex(run(first + (last - first) * k / (LEVELS - 1))) for k in range(LEVELS)]
    return [Shade(fill, max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, fill)))
            for fill in fills]  # fmt: skip


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours "#rrggbb", from 1 to 21 (WCAG 2.2)."""
    lesser, greater = sorted(map(_luminance, (one, other)))
    return (greater + 0.05) / (lesser + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
