"""The arena as one HTML page: the ranking first, then rules x attacks, each cell with its curve.

The page needs no other file and no network. Its own script sorts, filters and shows a cell's
details; without it all numbers of the tables stand there still.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fltrust_repro import arena, arena_protocols, experiments, heat_maps, pages
from fltrust_repro.arena_protocols import protocols, table_of
from fltrust_repro.arena_report import MEANING, incomplete
from fltrust_repro.curves import POINTS, mean_curve
from fltrust_repro.drawing import KINDS
from fltrust_repro.experiments import Fields
from fltrust_repro.files import write_bytes, write_text
from fltrust_repro.report import seeds_told
from fltrust_repro.settings import FIELDS
from fltrust_repro.shades import TICKS, Scale, as_text, shades
from fltrust_repro.standings import LEAGUES, NO_ATTACK, SERVER_DATA, Cell, Entry, Standings
from fltrust_repro.trials import Trials

Curves = Mapping[tuple[str, str], Sequence[tuple[int, float]]]  # iteration and mean error rate


def at_hand(
    trials: Trials, rows: Mapping[str, Mapping[str, Fields]] | None = None
) -> tuple[list[Standings], dict[str, Curves]]:
    """Return the rankings that trials give, of every protocol and knowledge, and their curves.

    A column that no rule has met is left out. `rows` are a protocol's further ones, of one's own.
    """
    printed = arena_protocols.reported()
    found: list[Standings] = []
    curves: dict[str, Curves] = {}
    for name, protocol in protocols().items():
        for knowledge in FIELDS["knowledge"].metadata["choices"]:
            table = table_of(protocol, knowledge, (rows or {}).get(name), printed=printed)
            ranking = arena.ranking(table, trials)
            if ranking.entries:
                met = {column for entry in ranking.entries for column in entry.cells}
                columns = tuple(column for column in ranking.columns if column in met)
                found.append(replace(ranking, columns=columns))
                curves[ranking.protocol] = curves_of(ranking, table.experiment.cells, trials)
    return found, curves


def curves_of(
    standings: Standings, cells: Iterable[experiments.Cell], trials: Trials
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return by row and column the error curve, of at most `POINTS` points, of each ranked cell.

    The mean is over the seeds that the ranking counts, of those that have a curve.
    """
    seeds, found = standings.errors(), {}
    for cell in cells:
        place = cell.row, cell.column
        counted = [t for t in trials.get(cell.setting, ()) if t.seed in seeds.get(place, ())]
        if known := [trial for trial in counted if trial.result.curve]:
            iterations, rates = mean_curve(known, POINTS)
            found[place] = list(zip(iterations.tolist(), rates.tolist()))
    return found


def write(
    standings: Sequence[Standings], curves: Mapping[str, Curves], out: Path, grey: bool = False
) -> list[Path]:
    """Write arena.html, and a heat map of each protocol as arena-NAME.png and .svg.

    Each ranking has an entry; `curves` are by protocol, then as `curves_of` returns them. Returns
    the files: none where nothing is ranked.
    """
    if not standings:
        return []
    files = [out / "arena.html"]
    write_text(files[0], page(standings, curves))
    for one in standings:
        for kind in KINDS:
            files.append(out / f"arena-{_id(one)}.{kind}")
            write_bytes(files[-1], heat_maps.standings_picture(one, told(one), kind, grey))
    return files


def told(standings: Standings) -> str:
    """Return what the numbers of a protocol are, in a line."""
    which = f"{standings.protocol}, version {standings.version}: {standings.title}"
    return f"{which}; seeds {seeds_told(_seeds(standings))}"


def _seeds(standings: Standings) -> set[int]:
    cells = (cell for entry in standings.entries for cell in entry.cells.values())
    return {seed for cell in cells for seed in cell.errors}


def _id(standings: Standings) -> str:
    return "-".join(re.findall(r"\w+", standings.protocol.lower()))


def page(standings: Sequence[Standings], curves: Mapping[str, Curves]) -> str:
    """Return the page. The same numbers give the same bytes."""
    script, digest = pages.script("shared.js", "arena.js")
    known = {entry.league for one in standings for entry in one.entries}
    return pages.render(
        "arena.html",
        sections=[_section(one, curves.get(one.protocol, {})) for one in standings],
        leagues=[name for name in LEAGUES if name in known],
        shades={"light": shades(), "dark": shades(dark=True)},
        as_text=as_text,
        isnan=math.isnan,
        script=script,
        digest=digest,
    )


def _section(standings: Standings, curves: Curves) -> dict[str, Any]:
    """What the page shows of a protocol, by the template's names."""
    groups = dict(zip(("", SERVER_DATA), standings.leagues()))
    counts = {len(cell.errors) for entry in standings.entries for cell in entry.cells.values()}
    flags = {flag for entry in standings.entries for flag in entry.flags}
    scale = Scale.of(standings)
    return {
        "id": _id(standings),
        "standings": standings,
        "incomplete": incomplete(standings),
        "seeds": seeds_told(_seeds(standings)),
        "counts": sorted({min(counts), max(counts)}),
        "groups": {name: entries for name, entries in groups.items() if entries},
        "flags": {flag: meaning for flag, meaning in MEANING.items() if flag in flags},
        "scale": scale,
        "marks": scale.marks(),
        "data": _data(standings.columns, [*groups[""], *groups[SERVER_DATA]], curves),
    }


def _data(columns: Sequence[str], entries: Sequence[Entry], curves: Curves) -> dict[str, Any]:
    """What the script shows of each cell, row by row as in the table: short, since they are many.

    Error rates of curves are in thousandths; `iterations` are those that curves share.
    """
    iterations: list[list[int]] = []
    rows: list[list[list[Any] | None]] = []
    for entry in entries:
        rows.append([])
        for column in columns:
            if (cell := entry.cells.get(column)) is None:
                rows[-1].append(None)
                continue
            curve = curves.get((entry.row, column), ())
            if (at := [iteration for iteration, _ in curve]) not in iterations:
                iterations.append(at)
            errors = [round(1000 * error) for _, error in curve]
            rows[-1].append([*_numbers(cell), iterations.index(at), errors])
    lowest = min((error for curve in curves.values() for _, error in curve), default=1.0)
    least = max((tick for tick in TICKS[:-1] if tick <= lowest), default=TICKS[0])
    return {
        "iterations": iterations, "rows": rows, "clean": columns.index(NO_ATTACK), "least": least,
    }  # fmt: skip


def _numbers(cell: Cell) -> list[Any]:
    shares = (cell.undone, cell.no_effect, cell.same_as_mean)
    half = None if math.isnan(cell.half) else round(cell.half, 3)
    rounded = [None if share is None else round(share, 3) for share in shares]
    return [round(cell.mean, 3), half, cell.reported, *rounded, int(cell.diverged),
            len(cell.errors), seeds_told(cell.errors)]  # fmt: skip
