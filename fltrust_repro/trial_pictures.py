"""Pictures of a trial: its error rate and loss over the iterations, and poisoned examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fltrust_repro import captions, drawing
from fltrust_repro.errors import BadInput
from fltrust_repro.files import write_bytes
from fltrust_repro.poisoning import PoisonedSet
from fltrust_repro.report import seeds_named
from fltrust_repro.settings import Setting
from fltrust_repro.styles import Style, style_of
from fltrust_repro.trials import Trial

COLUMNS, MOST = 12, 48  # poisoned examples beside each other, and in all


def draw_trial(
    trial: Trial,
    path: Path,
    plain: Trial | None = None,
    others: Sequence[Trial] = (),
    grey: bool = False,
) -> None:
    """Write a picture of a trial: its error rate over the iterations, and its training loss beside.

    `plain` is the same seed without attack; `others`, of the same setting, are drawn thin. `grey`
    draws in greys, for print.
    """
    kind = drawing.check_picture(path)
    if not trial.result.curve:
        raise BadInput("this trial has no error curve to draw; run it again.")
    style = style_of(_attack_of(trial.setting))
    lines = [(plain, style_of("no-attack"), "without attack")] if plain is not None else []
    lines.append((trial, style, f"seed {trial.seed}"))
    told = [f"thin: {seeds_named(t.seed for t in others)}"] * bool(others)
    with drawing.context(trial.setting.key(), 9):
        title = f"{captions.of_setting(trial.setting)}; seed {trial.seed}"
        drawn = drawing.sheet(8.6, 3.4, title, told)
        axes = drawn.subplots(1, 2)
        for part, (axis, name) in enumerate(zip(axes, ("testing error rate", "training loss")), 1):
            for other in others:
                axis.plot(*_curve(other, part), color=style.ink(grey), linewidth=0.5, alpha=0.3)
            shown = [axis.plot(*_curve(one, part), **_line(own, grey))[0]
                     for one, own, _ in lines]  # fmt: skip
            axis.set_ylim(0, _top(part, [one for one, _, _ in lines], others))
            axis.set_xlabel("iteration")
            axis.set_ylabel(name)
            axis.grid(**drawing.GRID)
            axis.spines[["top", "right"]].set_visible(False)
            drawing.name_lines(axis, shown, [name for _, _, name in lines])
        write_bytes(path, drawing.as_bytes(drawn, kind))


def _attack_of(setting: Setting) -> str:
    return ", ".join(filter(None, (setting.attack, setting.knowledge)))


def _curve(trial: Trial, part: int) -> tuple[list[int], list[float]]:
    """The iterations, and beside them the error rates (1) or losses (2) that are finite."""
    points = [(point[0], point[part]) for point in trial.result.curve if np.isfinite(point[part])]
    return [x for x, _ in points], [y for _, y in points]


def _top(part: int, lines: Sequence[Trial], others: Sequence[Trial]) -> float | None:
    """Where an axis ends: for losses so that others that grew without end do not make all flat."""
    main, thin = (max((max(_curve(one, part)[1], default=0.0) for one in some), default=0.0)
                  for some in (lines, others))  # fmt: skip
    if part == 1:
        return drawing.top_of([main, thin])
    return min(1.05 * max(main, thin), 2 * main) or None


def _line(style: Style, grey: bool) -> dict[str, Any]:
    dashes = (0, style.dashes) if style.dashes else "-"
    return {"color": style.ink(grey), "linewidth": max(style.width, 1.6), "linestyle": dashes}


def draw_poisoned(
    made: PoisonedSet, labels: Sequence[int | None], path: Path, title: str = "Poisoned examples"
) -> None:
    """Write a picture of poisoned examples with their labels, below what they started from.

    `labels` are those that they had before.
    """
    kind = drawing.check_picture(path)
    shown = list(zip(made.start, labels, made.x, made.labels))[:MOST]
    rows = -(-len(shown) // COLUMNS)
    with drawing.context(title, 8):
        told = f"{len(shown)} of {len(made.x)} examples; above each, its label"
        drawn = drawing.sheet(0.62 * COLUMNS + 0.7, 1.75 * rows + 0.6, title, [told])
        axes = drawn.subplots(2 * rows, COLUMNS, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for i, (start, old, end, new) in enumerate(shown):
            row, column = divmod(i, COLUMNS)
            for k, (image, label) in enumerate(((start, old), (end, new))):
                axis = axes[2 * row + k, column]
                axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
                axis.set_title("?" if label is None else f"{label}", fontsize=8, pad=2)
        for row, axis in enumerate(axes[:, 0]):
            axis.text(-0.25, 0.5, ("before", "after")[row % 2], transform=axis.transAxes,
                      ha="right", va="center")  # fmt: skip
        write_bytes(path, drawing.as_bytes(drawn, kind, 130))
