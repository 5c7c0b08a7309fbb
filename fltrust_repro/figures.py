"""Figures: error rate against a varied parameter, and over the iterations of training."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import Experiment
from fltrust_repro.files import write_bytes
from fltrust_repro.poisoning import PoisonedSet
from fltrust_repro.report import Measured
from fltrust_repro.settings import Setting
from fltrust_repro.trials import Trial

_NUMBERS = "Numbers"  # under which a PNG keeps the digest of what it shows

# Told apart without colour: every line has its own grey, marker and dashes.
_STYLES = (
    {"color": "0.0", "marker": "o", "linestyle": "-"},
    {"color": "0.45", "marker": "s", "linestyle": "--"},
    {"color": "0.6", "marker": "^", "linestyle": ":"},
    {"color": "0.25", "marker": "D", "linestyle": "-."},
    {"color": "0.1", "marker": "v", "linestyle": (0, (9, 3))},
    {"color": "0.7", "marker": "P", "linestyle": (0, (5, 2, 1, 2, 1, 2))},
)
# The same dashes in SVG, in units of the line's width.
_DASHES = {"-": "none", "--": "4 2", ":": "1 2", "-.": "6 2 1 2"}


def draw(experiment: Experiment, measured: Sequence[Measured], folder: Path) -> None:
    """Write NAME.png and NAME.svg: mean lines, with a band of the 95% confidence interval.

    The same numbers give the same bytes, and a picture that is there already stays as it is. Points
    without trials are left out.
    """
    numbers = _digest(experiment, measured)
    if _shows(folder / f"{experiment.name}.png", numbers):
        return
    import matplotlib as mpl  # here, since it is slow to import and few commands draw
    from matplotlib.figure import Figure

    frame = experiment.figure
    cells = {(m.cell.row, m.cell.column): m for m in measured}
    panels = len(frame.panels)
    with mpl.rc_context({"svg.hashsalt": experiment.name, "font.size": 9}):
        picture = Figure(figsize=(3.4 * panels + 0.4, 3.2), layout="constrained")
        axes = picture.subplots(1, panels, squeeze=False, sharey=True)[0]
        for panel, axis in zip(frame.panels, axes):
            _draw_panel(axis, experiment, panel, cells)
        axes[0].set_ylabel("testing error rate")
        # Above the panels, where it cannot cover a line.
        picture.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=2 * panels + 1,
            fontsize=8,
            frameon=False,
        )
        # The PNG last: it says for both what they show.
        kinds = {"svg": {"Date": None}, "png": {"Software": None, _NUMBERS: numbers}}
        for kind, metadata in kinds.items():
            content = io.BytesIO()
            picture.savefig(content, format=kind, dpi=150, metadata=metadata)
            write_bytes(folder / f"{experiment.name}.{kind}", content.getvalue())


def _draw_panel(
    axis: Any, experiment: Experiment, panel: str, cells: Mapping[tuple[str, str], Measured]
) -> None:
    frame = experiment.figure
    for line, style in zip(frame.lines, _cycle(len(frame.lines))):
        row = [cells[frame.row(panel, line), column] for column in experiment.columns]
        known = [(x, m) for x, m in zip(frame.values, row) if m.errors]
        x = [value for value, _ in known]
        mean = np.array([m.mean for _, m in known])
        half = np.nan_to_num([m.half_width for _, m in known])
        axis.plot(x, mean, label=line, markersize=4, linewidth=1.2, **style)
        axis.fill_between(x, mean - half, mean + half, color=style["color"], alpha=0.15)
    axis.set_title(panel)
    axis.set_xlabel(frame.label)
    if min(frame.values) > 0 and max(frame.values) >= 50 * min(frame.values):
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(frame.values, [f"{value:g}" for value in frame.values])
    axis.set_ylim(0, 1)
    axis.grid(color="0.9", linewidth=0.6)


def _digest(experiment: Experiment, measured: Sequence[Measured]) -> str:
    shown = [(m.cell.row, m.cell.column, m.errors) for m in measured]
    return hashlib.sha256(repr((experiment.figure, shown)).encode()).hexdigest()


def _shows(path: Path, numbers: str) -> bool:
    """Whether a picture, and the SVG beside it, were drawn from these numbers."""
    if not path.is_file() or not path.with_suffix(".svg").is_file():
        return False
    try:
        with Image.open(path) as picture:
            return picture.info.get(_NUMBERS) == numbers
    except OSError:  # not a picture, or not a whole one
        return False


def check_picture(path: Path) -> None:
    """Raise `BadInput` for a name that is neither .png nor .svg; to be asked before the work."""
    if path.suffix not in (".png", ".svg"):
        raise BadInput(f"{str(path)!r} is neither .png nor .svg; name the picture so.")


def draw_trial(trial: Trial, path: Path) -> None:
    """Write a picture of a trial's error rate and training loss over the iterations."""
    from matplotlib.figure import Figure

    iterations, errors, losses = zip(*trial.result.curve)
    picture = Figure(figsize=(6, 3.2), layout="constrained")
    axis = picture.subplots()
    axis.plot(iterations, errors, label="testing error rate", **_STYLES[0], markersize=3)
    axis.plot(iterations, losses, label="training loss", **_STYLES[1], markersize=3)
    axis.set_xlabel("iteration")
    axis.set_ylim(0)
    axis.grid(color="0.9", linewidth=0.6)
    axis.legend(fontsize=8)
    kind = path.suffix[1:]
    if kind not in ("png", "svg"):
        raise BadInput(f"{str(path)!r} is neither .png nor .svg; name the picture so.")
    content = io.BytesIO()
    picture.savefig(content, format=kind, dpi=150)
    write_bytes(path, content.getvalue())


@dataclass(frozen=True)
class Curve:
    """A cell's mean error rate over the iterations, as a line of an SVG panel.

    `points` are those of a polyline in a box of `PANEL` width and height, where the top is an
    error rate of 1; `opacity` is the line's grey, on a light page and on a dark one.
    """

    label: str
    points: str
    final: float
    dashes: str
    opacity: float


PANEL = (200, 100)
_POINTS = 51


def curves(
    experiment: Experiment, trials: Mapping[Setting, Sequence[Trial]]
) -> dict[str, list[Curve]]:
    """Return the error curves of a table's or figure's cells with trials, by row.

    Text and not pictures of matplotlib, which takes a second for fifteen panels.
    """
    longest = max(setting.iterations for setting in experiment.settings)
    styles = dict(zip(experiment.columns, _cycle(len(experiment.columns))))
    rows: dict[str, list[Curve]] = {}
    for cell in experiment.cells:
        known = [trial for trial in trials.get(cell.setting, ()) if trial.result.curve]
        if known:
            iterations, rates = mean_curve(known)
            x, y = PANEL[0] * iterations / longest, PANEL[1] * (1 - rates)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
            line = Curve(cell.column, points, rates[-1], **_svg_style(styles[cell.column]))
            rows.setdefault(cell.row, []).append(line)
    return rows


def mean_curve(trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """Return iterations, at most 51 of them, and the trials' mean error rate at each.

    The trials are of one setting, so that all are evaluated at the same iterations; one that ended
    before the others, since it diverged, keeps the error rate that it ended with.
    """
    known = [list(trial.result.curve) for trial in trials]
    longest = max(known, key=len)
    last = len(longest) - 1
    chosen = np.linspace(0, last, min(last + 1, _POINTS)).round().astype(int).tolist()
    whole = [curve + curve[-1:] * (len(longest) - len(curve)) for curve in known]
    rates = [[curve[k][1] for k in chosen] for curve in whole]
    return np.array([longest[k][0] for k in chosen]), np.mean(rates, axis=0)


def _svg_style(style: dict) -> dict:
    line = style["linestyle"]
    dashes = _DASHES[line] if isinstance(line, str) else " ".join(map(str, line[1]))
    # Thin lines on a screen need more contrast than the greys on paper have.
    return {"dashes": dashes, "opacity": 1 - 0.7 * float(style["color"])}


def draw_poisoned(made: PoisonedSet, path: Path, columns: int = 12, rows: int = 4) -> None:
    """Write a PNG or SVG with poisoned examples, each under the example that it started from.

    The label that training is given stands above each pair.
    """
    from matplotlib.figure import Figure

    shown = min(columns * rows, len(made.x))
    rows = -(-shown // columns)
    picture = Figure(figsize=(0.6 * columns, 1.5 * rows), layout="constrained")
    axes = picture.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i in range(shown):
        row, column = divmod(i, columns)
        for offset, image in enumerate((made.start[i], made.x[i])):
            axes[2 * row + offset, column].imshow(image[0], cmap="gray", vmin=0, vmax=1)
        axes[2 * row, column].set_title(f"{made.labels[i]}", fontsize=7, pad=2)
    content = io.BytesIO()
    kind = path.suffix[1:]
    metadata = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
    picture.savefig(content, format=kind, dpi=130, metadata=metadata)
    write_bytes(path, content.getvalue())


def _cycle(count: int) -> list[dict]:
    return [_STYLES[i % len(_STYLES)] for i in range(count)]
