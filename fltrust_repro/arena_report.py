"""The arena's ranking as text: for a terminal of 80 columns, as a page of Markdown and as CSV."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import pandas as pd

from fltrust_repro import arena, report, standings
from fltrust_repro.experiments import Experiment
from fltrust_repro.standings import KNOWS_C, NO_C, SERVER_DATA, Entry, Standings
from fltrust_repro.trials import Trial

_LONGEST = 20  # letters of a rule's name on a terminal; the rest comes below
_NEIGHBOURS = 2  # on either side of a row that is asked for
_MEANING = {
    "attack without effect": "The attack undid nothing in over half of the iterations compared",
    "equals the mean": "The rule gave the mean in 95% of the iterations compared, or more",
    "diverged": "Diverged in some trial",
    arena.RANDOM: "Draws at random, which no attacker foresees",
    arena.INCOMPLETE: "Trials are missing still",
}


def heading(found: Standings, knowledge: str) -> str:
    """Say what is ranked."""
    return f"{found.protocol}, version {found.version}: {found.title}; {knowledge} knowledge"


def groups(found: Standings) -> dict[str, list[Entry]]:
    """Return the entries that are ranked together, by a heading."""
    theirs = [one for one in found.entries if one.league == SERVER_DATA]
    others = [one for one in found.entries if one.league != SERVER_DATA]
    told = {"Rules": others, "Rules of a server with examples of its own": theirs}
    return {name: some for name, some in told.items() if some}


def place(entry: Entry, entries: Iterable[Entry]) -> str:
    """Return a place among entries as it is printed: "2", a shared one "2="."""
    shared = sum(one.place == entry.place for one in entries) > 1
    return f"{entry.place}" + "=" * shared


def table(entries: Sequence[Entry], style: str, near: Collection[str] = ()) -> str:
    """Arrange entries that are ranked together; `near` leaves only these rows' neighbours."""
    at = [number for number, one in enumerate(entries) if one.row in near]
    kept = [
        n for n in range(len(entries)) if not near or any(abs(n - k) <= _NEIGHBOURS for k in at)
    ]
    lines: list[dict[str, str]] = []
    for before, number in zip([-1, *kept], kept):
        if number > before + 1:
            lines.append(_line("..."))
        lines += _lines(entries[number], entries, style)
    if kept and kept[-1] < len(entries) - 1:
        lines.append(_line("..."))
    return report.rendered(lines, style)


def _lines(entry: Entry, entries: Sequence[Entry], style: str) -> list[dict[str, str]]:
    first, last = entry.rank
    ranks = f"{place(entry, entries)} {first}" + f"-{last}" * (last > first)
    score, names = entry.score, [entry.row]
    if style == "simple" and len(entry.row) > _LONGEST:
        head, plus, tail = entry.row.rpartition("+")
        names = [head + plus, f"  {tail}"] if plus else names
    spread = "" if math.isnan(score.half) else f" ±{score.half:.3f}".replace("±0", "±")
    cells = (f"{entry.clean.mean:.3f}", f"{score.mean:.3f}{spread}", f"{entry.gap:+.3f}")
    return [_line(ranks, names[0], *cells, entry.worst), *(_line("", n) for n in names[1:])]


def _line(*values: str) -> dict[str, str]:
    names = ("place", "rule", "clean", "worst", "gap", "attack")
    return dict(zip(names, (*values, *[""] * (len(names) - len(values)))))


def notes(found: Standings, rows: Sequence[str]) -> list[str]:
    """Say what the table does not: leagues, flags, breakdowns, and which of `rows` it lacks."""
    told = []
    alone = sorted((e for e in found.entries if e.league == NO_C), key=lambda e: e.league_place)
    if alone and any(one.league == KNOWS_C for one in found.entries):
        counts = Counter(one.league_place for one in alone)
        their = (f"{e.league_place}{'=' * (counts[e.league_place] > 1)} {e.row}" for e in alone)
        told.append(f"Do not know c, placed among themselves: {', '.join(their)}.")
    for flag, meaning in _MEANING.items():
        if flagged := [one.row for one in found.entries if flag in one.flags]:
            told.append(f"{meaning}: {', '.join(flagged)}.")
    if known := [one for one in found.entries if one.breakdown is not None]:
        which = (
            f"{e.row} {e.breakdown}" + " (its limit)" * (arena.LIMIT in e.flags) for e in known
        )
        told.append(f"The smallest c that doubles the clean error: {', '.join(which)}.")
    ranked = {one.row for one in found.entries}
    if left := [row for row in rows if row not in ranked]:
        told.append(f"Not ranked, since they have not met every attack: {', '.join(left)}.")
    if found.missing:
        told.append(f"Missing still: {found.missing:,} trials.")
    return told


def left_out(refused: Mapping[str, Sequence[tuple[str, str]]], rows: int) -> list[str]:
    """Say which cells there cannot be, and why."""
    told = []
    for why, places in refused.items():
        those = list(dict.fromkeys(row for row, _ in places))
        under = list(dict.fromkeys(column for _, column in places))
        who = "every rule" if len(those) == rows else ", ".join(those)
        told.append(f"left out: {who} under {_counted(under)}: {why.rstrip('.')}.")
    return told


def _counted(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} columns"


def summary(entry: Entry, found: Standings) -> str:
    """Say in a sentence where a row stands."""
    entries = next(some for some in groups(found).values() if entry in some)
    (first, last), score = entry.rank, entry.score
    spread = "" if math.isnan(score.half) else f" ±{score.half:.3f}"
    return (
        f"{entry.row}: place {place(entry, entries)} of {len(entries)} (95%: {first} to {last}): "
        f"{score.mean:.3f}{spread} under {entry.worst}, {entry.clean.mean:.3f} without attack."
    )


def page(
    found: Standings,
    knowledge: str,
    experiment: Experiment,
    trials: Sequence[Trial],
    told: Sequence[str],
) -> str:
    """Return the page of Markdown; `told` are the sentences below the ranking."""
    parts = [f"# Arena {report.markdown(heading(found, knowledge))}\n", f"{LEGEND}\n"]
    for name, entries in groups(found).items():
        parts += [f"## {name}\n", f"{table(entries, 'github')}\n"]
    parts += [f"- {report.markdown(line)}" for line in told]
    lines = [
        {"rule": entry.row}
        | {c: f"{entry.cells[c].mean:.3f}" if c in entry.cells else "" for c in found.columns}
        for entry in found.entries
    ]
    parts += ["\n## Every cell: mean error rates\n", report.rendered(lines, "github") + "\n"]
    parts.append(
        f"- Command: {report.markdown_code(f'python -m fltrust_repro {experiment.command}')}"
    )
    parts += [f"- {name}: {report.markdown(text)}" for name, text in report.origin(trials)]
    return "\n".join([*parts, ""])


LEGEND = f"""Error rates: without attack, and under the attack that is worst for the rule, as mean
over seeds with its 95% interval; the gap is their difference. Place, and the 95% interval of the
rank (bootstrap over seeds, the same for all rules): rules that cannot be told apart share a place.
{arena.FEW} seeds everywhere; {len(arena.SEEDS)} without attack and under the
{standings.CANDIDATES} attacks that are worst for a rule."""


def as_frame(found: Standings, knowledge: str) -> pd.DataFrame:
    """One line per cell, best rule first, with what its row has in the ranking."""
    lines = [
        {
            "protocol": found.protocol, "version": found.version, "knowledge": knowledge,
            "place": one.place, "rank from": one.rank[0], "rank to": one.rank[1],
            "league": one.league, "league place": one.league_place,
            "row": one.row, "column": cell.column, "worst": int(column == one.worst),
            "trials": len(cell.errors), "mean": round(cell.mean, 4), "ci95": round(cell.half, 4),
            "gap": round(cell.mean - one.clean.mean, 4),
            "undone": _rounded(cell.undone), "no effect": _rounded(cell.no_effect),
            "same as mean": _rounded(cell.same_as_mean), "diverged": int(cell.diverged),
            "breakdown": "" if one.breakdown is None else one.breakdown,
            "flags": "; ".join(one.flags),
        }
        for one in found.entries
        for column, cell in one.cells.items()
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _rounded(value: float | None) -> float:
    return math.nan if value is None else round(value, 4)
