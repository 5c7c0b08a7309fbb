"""The arena's ranking as text: for a terminal of 80 columns, as a page of Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from fltrust_repro import arena, report
from fltrust_repro.errors import wrong_in
from fltrust_repro.standings import CANDIDATES, NO_C, Cell, Entry, Standings
from fltrust_repro.trials import Trial
from fltrust_repro.words import counted

if TYPE_CHECKING:
    import pandas as pd

LEGEND = f"""Error rates without attack, and under the attack that is worst for the rule: the mean
over seeds and its 95% interval; the gap is the difference over seeds that both have. Place, and the
ranks a rule may have: two are told apart where the 95% interval (Student's t) of their difference,
paired over the seeds that both have, leaves out 0, which is not corrected for the number of pairs;
those of whom none is told from another below it share a place. Everywhere {arena.FEW} seeds;
{len(arena.SEEDS)} without attack and under the {CANDIDATES} attacks that are worst for a rule,
which decide."""
_LONGEST = 20  # letters of a rule's name on a terminal; the rest comes below
_NEAR = 2  # neighbours on either side of a row that is asked for
_COLUMNS = ("place", "rule", "clean", "worst", "gap", "attack")
MEANING = {  # of flags
    "attack without effect": "The worst attack undid nothing in over half of the iterations",
    "equals the mean": "Gave the mean in 95% of the iterations under it, or more",
    "unsettled": "An attack that few seeds have met may be worse still",
    "diverged": "Diverged in some trial",
    arena.RANDOM: "Draws at random, which no attacker foresees",
    arena.INCOMPLETE: "Trials are missing still",
}


def heading(found: Standings) -> str:
    """Say what is ranked."""
    return f"{found.protocol}, version {found.version}: {found.title}"


def groups(found: Standings) -> dict[str, list[Entry]]:
    """Return the entries that are ranked together, by a heading."""
    names = "Rules", "Rules with examples of the server's own"
    return {name: some for name, some in zip(names, found.leagues()) if some}


def table(entries: Sequence[Entry], style: str, near: Collection[str] = ()) -> str:
    """Arrange entries that are ranked together; `near` leaves only these rows' neighbours."""
    rows = [number for number, one in enumerate(entries) if one.row in near]
    shown = [
        number
        for number in range(len(entries))
        if not near or any(abs(number - row) <= _NEAR for row in rows)
    ]
    lines: list[dict[str, str]] = []
    for before, number in zip([-1, *shown], [*shown, len(entries)]):
        if number > before + 1:
            lines.append(_line("..."))
        if number < len(entries):
            lines += _lines(entries[number], entries, style)
    return report.rendered(lines, style)


def _lines(entry: Entry, entries: Sequence[Entry], style: str) -> list[dict[str, str]]:
    """An entry's line, and on a terminal another one for the end of a long name."""
    first, last = entry.rank
    place = f"{_place(entry.place, [one.place for one in entries])} {first}"
    numbers = (
        f"{entry.clean.mean:.3f}",
        _mean(entry.score).replace("±0", "±"),
        f"{entry.gap:+.3f}",
    )
    head, plus, tail = entry.row.rpartition("+")
    is_long = style == "simple" and plus and len(entry.row) > _LONGEST
    name = head + plus if is_long else entry.row
    line = _line(place + f"-{last}" * (last > first), name, *numbers, entry.worst)
    return [line, _line("", f"  {tail}")] if is_long else [line]


def _line(*values: str) -> dict[str, str]:
    return dict.fromkeys(_COLUMNS, "") | dict(zip(_COLUMNS, values))


def _place(place: int, places: Sequence[int]) -> str:
    return f"{place}" + "=" * (places.count(place) > 1)


def _mean(cell: Cell) -> str:
    return f"{cell.mean:.3f}{report.plus_minus(cell.half)}"


def notes(found: Standings, rows: Sequence[str], seeds: int) -> list[str]:
    """Say what the table does not of these rows: leagues, flags, breakdowns, no place yet.

    `seeds` are those that were looked at, at most.
    """
    entries, told = [one for one in found.entries if one.row in rows], []
    league = [one.league_place for one in found.entries if one.league == NO_C]
    if alone := [f"{_place(e.league_place, league)} {e.row}" for e in entries if e.league == NO_C]:
        told.append(f"Do not know c; their places among such rules: {', '.join(alone)}.")
    for flag, meaning in MEANING.items():
        if flagged := [entry.row for entry in entries if flag in entry.flags]:
            all_of_many = len(flagged) == len(entries) > _NEAR
            told.append(f"{meaning}: {'all rules' if all_of_many else ', '.join(flagged)}.")
    if known := [one for one in entries if one.breakdown is not None]:
        limit = ((one, " (its limit)" * (arena.LIMIT in one.flags)) for one in known)
        which = ", ".join(f"{one.row} {one.breakdown}{by_limit}" for one, by_limit in limit)
        told.append(f"The smallest c that doubles the clean error: {which}.")
    ranked = {entry.row for entry in entries}
    if not ranked:
        few = min(arena.FEW, seeds)
        do = "; --draw --trials 1 shows what is known of fewer" * (few > 1)
        told.append(f"None of them has met every attack with {counted(few, 'seed')} yet{do}.")
    elif left := [row for row in rows if row not in ranked]:
        told.append(f"Not ranked, as they have not met every attack: {', '.join(left)}.")
    return told


def incomplete(found: Standings) -> str:
    """Say how many trials of the protocol are missing; nothing where none is."""
    left = counted(found.missing, "trial")
    are = "is" if found.missing == 1 else "are"
    return f"{left} {are} missing still: places may change." if found.missing else ""


def left_out(refused: Mapping[str, Sequence[tuple[str, str]]], rows: int) -> list[str]:
    """Say which cells there cannot be, and why."""
    told = []
    for why, places in refused.items():
        those, under = (list(dict.fromkeys(names)) for names in zip(*places))
        who = "all rules" if len(those) == rows > 1 else ", ".join(those)
        columns = ", ".join(under) if len(under) <= 3 else f"{len(under)} columns"
        told.append(f"Left out: {who} under {columns}: {wrong_in(why)}.")
    return told


def summary(entry: Entry, found: Standings) -> str:
    """Say in a sentence where a row stands."""
    entries = next(some for some in groups(found).values() if entry in some)
    place = _place(entry.place, [one.place for one in entries])
    return (
        f"{entry.row}: place {place} of {len(entries)} (rank {entry.rank[0]} to {entry.rank[1]}), "
        f"{_mean(entry.score)} under {entry.worst}, {entry.clean.mean:.3f} without attack."
    )


def page(found: Standings, command: str, trials: Sequence[Trial], told: Sequence[str]) -> str:
    """Return the page of Markdown; `told` are the sentences below the ranking."""
    parts = [f"# Arena {report.markdown(heading(found))}\n", f"{LEGEND}\n"]
    if left := incomplete(found):
        parts.append(f"**{left}**\n")
    for name, entries in groups(found).items():
        parts += [f"## {name}\n", f"{table(entries, 'github')}\n"]
    parts += [f"- {report.markdown(line)}" for line in told]
    met = [name for name in found.columns if any(name in entry.cells for entry in found.entries)]
    cells = [
        {"rule": entry.row} | {name: f"{own[name].mean:.3f}" if name in own else "" for name in met}
        for entry, own in ((entry, entry.cells) for entry in found.entries)
    ]
    parts += ["\n## Every cell: mean error rates\n", f"{report.rendered(cells, 'github')}\n"]
    if printed := _reported(found):
        parts += ["## What papers print of the same\n", f"{report.rendered(printed, 'github')}\n"]
    parts.append(f"- Command: {report.markdown_code(f'python -m fltrust_repro {command}')}")
    parts += [f"- {name}: {report.markdown(text)}" for name, text in report.origin(trials)]
    return "\n".join([*parts, ""])


def _reported(found: Standings) -> list[dict[str, str]]:
    cells = ((entry.row, cell) for entry in found.entries for cell in entry.cells.values())
    return [
        {
            "rule": row,
            "attack": cell.column,
            "reported": f"{cell.reported:.2f}",
            "measured": _mean(cell),
            "difference": f"{cell.mean - cell.reported:+.3f}",
        }
        for row, cell in cells
        if cell.reported is not None
    ]


def as_frame(found: Standings) -> pd.DataFrame:
    """One line per cell, best rule first, with what its row has in the ranking."""
    import pandas as pd  # which takes a while to load

    lines = (_of_row(found, entry) for entry in found.entries)
    return pd.DataFrame(chain.from_iterable(lines))


def _of_row(found: Standings, entry: Entry) -> list[dict[str, Any]]:
    own = {
        "protocol": found.protocol, "version": found.version, "league": entry.league,
        "place": entry.place, "rank from": entry.rank[0], "rank to": entry.rank[1],
        "league place": entry.league_place, "row": entry.row,
        "gap": round(entry.gap, 4), "gap ci95": round(entry.gap_half, 4),
        "breakdown": entry.breakdown, "flags": "; ".join(entry.flags),
    }  # fmt: skip
    return [
        {
            **own, "column": column, "decides": int(column == entry.worst),
            "trials": len(cell.errors), "mean": round(cell.mean, 4), "ci95": round(cell.half, 4),
            "reported": cell.reported, "undone": cell.undone, "no effect": cell.no_effect,
            "same as mean": cell.same_as_mean, "diverged": int(cell.diverged),
        }
        for column, cell in entry.cells.items()
    ]  # fmt: skip
