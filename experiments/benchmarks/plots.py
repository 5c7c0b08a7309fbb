"""The log-log plot of the rules' times."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from measure import Row
from peers import LIBRARIES
from rules import RULES

_MARKERS = "os^Dv*"


def plot(rows: Sequence[Row]) -> bytes | None:
    """PNG of the rules' times over d, a panel per rule and m; None without any."""
    known = [row for row in rows if row.section == "rules" and row.median]
    if not known:
        return None
    cases = [name for name in RULES if any(row.case == name for row in known)]
    workers = sorted({row.m for row in known})
    picture = Figure(figsize=(3 * len(workers), 2.2 * len(cases)), layout="constrained")
    panels = picture.subplots(len(cases), len(workers), squeeze=False, sharex=True, sharey="row")
    for case, line in zip(cases, panels):
        for m, axis in zip(workers, line):
            axis.set_title(f"{case}, m = {m}", fontsize=9)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            for k, name in enumerate(LIBRARIES):
                of_it = [row for row in known if (row.case, row.m, row.who) == (case, m, name)]
                points = sorted((row.d, row.median) for row in of_it)
                x, y = zip(*points) if points else ((), ())
                # Hollow and smaller and smaller, so that those on one place are all seen.
                style = {"markersize": 9 - k, "markerfacecolor": "none"}
                axis.plot(x, y, f"C{k}-", marker=_MARKERS[k], linewidth=1, label=name, **style)
    for axis in panels[-1]:
        axis.set_xlabel("d")
    for line in panels:
        line[0].set_ylabel("seconds")
    handles = panels[0, 0].get_lines()
    picture.legend(handles=handles, loc="outside upper center", fontsize=8, ncols=len(handles))
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=120)
    return file.getvalue()
