"""What all pictures share: the kinds of file, names as they are, and the same bytes each time."""

from __future__ import annotations

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fltrust_repro.errors import BadInput, one_line
from fltrust_repro.report import Measured

# The same numbers give the same bytes: no date, and not which Matplotlib.
_METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}}
KINDS = tuple(_METADATA)
TOPS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # of axes of error rates
LINE = 0.062  # height of a direct label, of that of a panel
INK, QUIET = "0.1", "0.35"  # of words, and of those that are read last
GRID: dict[str, Any] = {"color": "0.9", "linewidth": 0.6}


def check_picture(path: Path) -> str:
    """Return the kind of picture that a path names, "png" or "svg"; else raise `BadInput`."""
    kind = path.suffix[1:].lower()
    if kind not in KINDS:
        raise BadInput(f"{str(path)!r} is neither .png nor .svg; name the picture so.")
    if path.is_dir():
        raise BadInput(f"{str(path)!r} is a folder; name a file for the picture.")
    return kind


@contextlib.contextmanager
def context(name: str, size: float) -> Iterator[None]:
    """Draw with letters of so many points, and names that are no mathematics.

    `name` decides what an SVG calls its parts. Letters that the font lacks are drawn as boxes.
    """
    import matplotlib as mpl  # here, since it is slow to import and few commands draw

    # A name is not to be read as mathematics or TeX, whatever its dollars and braces.
    literal: Any = {"text.parse_math": False, "text.usetex": False}
    with (
        warnings.catch_warnings(),
        mpl.rc_context({**literal, "svg.hashsalt": name, "font.size": size}),
    ):
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


def sheet(width: float, height: float, title: str, notes: Sequence[str] = ()) -> Any:
    """Return an empty picture, its size in inches, with a title above and notes below."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    # At 9 points; so many letters stand beside each other.
    drawn.suptitle(lines([title], int(14 * width)), x=0.01, ha="left", fontsize="medium", color=INK)
    told = lines(notes, int(17.5 * width))
    drawn.supxlabel(told, x=0.01, ha="left", fontsize="small", color=QUIET)
    return drawn


def lines(texts: Sequence[str], letters: int) -> str:
    """Return texts below each other, each on lines of at most so many letters; none if empty."""
    return "\n".join(line for text in texts for line in textwrap.wrap(one_line(text), letters))


def as_bytes(drawn: Any, kind: str, dpi: int = 150, tight: bool = False) -> bytes:
    """Return a picture as the bytes of a file; if `tight`, with all that reaches beyond it."""
    content = io.BytesIO()
    room: Any = {"bbox_inches": "tight", "pad_inches": 0.08} if tight else {}
    drawn.savefig(content, format=kind, dpi=dpi, metadata=_METADATA[kind], **room)
    return _small(content) if kind == "png" else content.getvalue()


def _small(png: io.BytesIO) -> bytes:
    """Return a picture of few colours with a palette: a third of the bytes."""
    from PIL import Image

    made = io.BytesIO()
    with Image.open(png) as drawn:
        method = Image.Quantize.MAXCOVERAGE  # which keeps a colour that is seldom, too
        flat = drawn.convert("RGB").quantize(255, method, dither=Image.Dither.NONE)
        flat.save(made, format="png", optimize=True, dpi=drawn.info["dpi"])
    return made.getvalue()


def top_of(errors: Iterable[float]) -> float:
    """Return where an axis of error rates ends that begins at 0: the least of `TOPS` above all."""
    highest = max(errors, default=1.0)
    return next(top for top in TOPS if top >= min(1.02 * highest, 1.0))


def band(measured: Measured) -> tuple[float, float]:
    """Return the ends of the mean's 95% confidence interval, within [0, 1].

    That of the table (Student's t), without what cannot be: no error rate is below 0 or above 1, so
    that what remains holds the mean as surely. An interval on a logit scale would stay inside by
    itself, and would differ from the table's.
    """
    half = float(np.nan_to_num(measured.half_width))
    return max(measured.mean - half, 0.0), min(measured.mean + half, 1.0)


def name_lines(axis: Any, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Write names beside the ends of an axis's lines, joined by dotted lines of their colour.

    A line without points has no end, and no name.
    """
    ending = [(line, name) for line, name in zip(lines, names) if len(line.get_xdata())]
    if not ending:
        return
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line, _ in ending]
    low, high = axis.get_ylim()
    places = apart([(y - low) / (high - low) for _, y in ends], LINE, LINE / 2, 1.0)
    for (line, name), end, place in zip(ending, ends, places):
        # Dotted, so that it is not taken for more of the line.
        joined = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.8,
                  "linestyle": ":", "shrinkA": 0, "shrinkB": 3}  # fmt: skip
        axis.annotate(
            one_line(name), end, (1.06, place), textcoords="axes fraction", fontsize=8,
            va="center", color=INK, arrowprops=joined, annotation_clip=False,
        )  # fmt: skip


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Return places as near to those wanted as can be, in their order, at least `gap` apart.

    Least squares, within [low, high] if they fit there at all.

    >>> from fltrust_repro.drawing import apart
    >>> apart([0.5, 0.1, 0.1], 0.2, 0, 1).tolist()
    [0.5, 0.0, 0.2]
    """
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    nearest = np.asarray(wanted, dtype=float)[order] - steps
    places = np.empty(len(order))
    places[order] = steps + isotonic_regression(
        nearest, y_min=low, y_max=max(low, high - steps[-1]) if len(steps) else None
    )
    return places
