"""What the suite shows: a frame of all rows, and Markdown tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields

import against
import attacks
import defenses
import pandas as pd
import stages
from measure import Row
from peers import DEFINITIONS, DISTANCES, LIBRARIES, OURS
from rules import growth

from fltrust_repro.training import EVALUATE_EVERY


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row; times in seconds, memory in MiB."""
    table = pd.DataFrame([asdict(row) for row in rows], columns=[f.name for f in fields(Row)])
    return table.astype({"m": "Int64", "d": "Int64"})


def markdown(rows: Sequence[Row], about: str) -> str:
    """All tables, one per section, with what was skipped below."""
    parts = ["# Benchmarks", about]
    for section, (title, table_of) in _TABLES.items():
        mine = [row for row in rows if row.section == section]
        if mine:
            parts += [f"## {title}", *table_of(mine), *_remarks(mine)]
    return "\n\n".join(parts) + "\n"


def _table(lines: Sequence[dict[str, object]]) -> str:
    table = pd.DataFrame(lines)
    return table.to_markdown(index=False, disable_numparse=True, missingval="") if lines else ""


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else _short(1000 * seconds)


def _short(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _ratio(above: float | None, below: float | None) -> str:
    return _short(above / below) if above and below else ""


def _remarks(rows: Sequence[Row]) -> list[str]:
    """What was not measured, and results that are not ours."""
    told = [
        f"- {row.who}, {row.case}{f', m = {row.m}, d = {row.d:,}' if row.m else ''}: {row.note}"
        for row in rows
        if row.section != "machine" and row.note not in ("", "same result")
    ]
    return ["\n".join(told)] if told else []


def _machine(rows: Sequence[Row]) -> list[str]:
    return [_table([{"on one core": row.case, "rate": row.note} for row in rows])]


def _rules(rows: Sequence[Row]) -> list[str]:
    """Times per rule and size, ours and the others', and how they grow."""
    found = {(row.case, row.m, row.d, row.who): row for row in rows if row.m}
    peers = [name for name in LIBRARIES if name != OURS and any(row.who == name for row in rows)]
    lines = []
    for case, m, d in dict.fromkeys(key[:3] for key in found):
        ours = found.get((case, m, d, OURS), Row("", ""))
        theirs = {name: found.get((case, m, d, name), Row("", "")).median for name in peers}
        known = [time for time in theirs.values() if time]
        lines.append(
            {"rule": case, "m": str(m), "d": f"{d:,}", **_ours(ours)}
            | {f"{name}, ms": _ms(time) for name, time in theirs.items()}
            | {"fastest peer / ours": _ratio(min(known, default=None), ours.median)}
        )
    lines.sort(key=lambda line: list(dict.fromkeys(key[0] for key in found)).index(line["rule"]))
    parts = [_table(lines)]
    others = [
        f"{who}'s {rule} is another one: {text}"
        for (who, rule), text in DEFINITIONS.items()
        if any((row.who, row.case) == (who, rule) for row in rows)
    ]
    parts += ["; ".join(others) + "."] if others else []
    exponents = growth(rows)
    if exponents:
        libraries = [OURS, *peers]
        parts += [
            "Time grows as m to the power of the first number, d to the power of the second:",
            _table([_exponents(case, libraries, exponents) for case in dict(exponents)]),
        ]
    return parts


def _exponents(
    case: str, libraries: list[str], exponents: dict[str, dict[str, tuple[float, float]]]
) -> dict[str, str]:
    pairs = {name: exponents[case].get(name) for name in libraries}
    told = {name: "{:.2f}, {:.2f}".format(*pair) if pair else "" for name, pair in pairs.items()}
    return {"rule": case, **told}


def _ours(row: Row) -> dict[str, str]:
    return {
        "ms": _ms(row.median),
        "min": _ms(row.minimum),
        "on top, MiB": _short(row.memory),
        "limit, ms": _ms(row.limit),
        "by": row.bound,
        "times the limit": _ratio(row.median, row.limit),
    }


def _distances(rows: Sequence[Row]) -> list[str]:
    found = {(row.m, row.d, row.who): row.median for row in rows}
    lines = [
        {"m": str(row.m), "d": f"{row.d:,}", **_ours(row)}
        | {"numpy's Gram matrix, ms": _ms(gram := found.get((row.m, row.d, "numpy")))}
        | {"numpy / ours": _ratio(gram, row.median)}
        for row in rows
        if row.who == OURS
    ]
    return [_table(lines)]


def _stages(rows: Sequence[Row]) -> list[str]:
    """Stages against the machine's limits, then whole iterations against plain loops."""
    parts = [
        {"stage": row.case, "m": str(row.m), **_ours(row)}
        | {"its products alone, ms": _ms(row.products)}
        for row in rows
        if row.who == OURS and not row.case.endswith(stages.ITERATION)
    ]
    return [_table(parts), _table(list(_iterations(rows)))]


def _iterations(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    found = {(row.case, row.who): row for row in rows}
    for row in rows:
        if row.who != OURS or not row.case.endswith(stages.ITERATION):
            continue
        line = {"": row.case, "m": str(row.m), **_ours(row)}
        del line["by"]
        for who in stages.LOOPS:
            time = found[row.case, who].median
            line |= {f"{who}, ms": _ms(time), f"{who} / ours": _ratio(time, row.median)}
        evaluation = found[row.case.replace(stages.ITERATION, stages.EVALUATION), OURS].median
        hours = panel_hours(row.case.startswith("lr"), row.median * 100 / row.m, evaluation)
        yield {**line, f"hours of a panel, {os.cpu_count()} cores": _short(hours)}


def panel_hours(short: bool, iteration: float, evaluation: float) -> float:
    """Hours of a panel of Table 2, 15 cells of 50 trials of 100 workers, on this machine."""
    iterations = 500 if short else 2000
    seconds = iterations * (iteration + evaluation / EVALUATE_EVERY)
    return 15 * 50 * seconds / 3600 / os.cpu_count()


def _against(rows: Sequence[Row]) -> list[str]:
    """What the checkouts' iterations take, in seconds of the processor."""
    found = {(row.case, row.who): row for row in rows}
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        ours, theirs = found[case, OURS], found[case, against.OTHER]
        told = {f"{against.OTHER}, ms": _ms(theirs.median), "this one, ms": _ms(ours.median)}
        lines.append({"": case, "m": str(ours.m), "d": f"{ours.d:,}", **told})
        lines[-1]["this / other"] = _ratio(ours.median, theirs.median)
    return [_table(lines)]


def _attacks(rows: Sequence[Row]) -> list[str]:
    """All attacks; the search for lambda beside the plain one."""
    plain = {row.case: row.median for row in rows if row.who == attacks.ANEW}
    lines = [
        {"attack": row.case, "m": str(row.m), "d": f"{row.d:,}"}
        | {"ms": _ms(row.median), "min": _ms(row.minimum), "on top, MiB": _short(row.memory)}
        | {f"{attacks.ANEW}, ms": _ms(plain.get(row.case))}
        | {"ratio": _ratio(plain.get(row.case), row.median)}
        for row in rows
        if row.who == OURS
    ]
    return [_table(lines)]


def _defenses(rows: Sequence[Row]) -> list[str]:
    """An iteration with each defense in milliseconds, and as ratio to the one without."""
    found = {(row.case, row.who): row.median for row in rows}
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        plain = found[case, defenses.PLAIN]
        times = {who: found[case, who] for who in defenses.DEFENSES}
        told = {
            who: _ms(time) + ("" if who == defenses.PLAIN else f" ({_ratio(time, plain)})")
            for who, time in times.items()
        }
        lines.append({"ms (times the plain one)": case, **told})
    return [_table(lines)]


def _trial(rows: Sequence[Row]) -> list[str]:
    lines = [
        {"trial": row.case, "seconds": _short(row.median), "min": _short(row.minimum)}
        | {"on top, MiB": _short(row.memory)}
        for row in rows
    ]
    return [_table(lines)]


_TABLES = {
    "machine": ("The machine's own limits", _machine),
    "rules": ("Aggregation rules", _rules),
    DISTANCES: ("Distances between all updates", _distances),
    "stages": ("Stages of an iteration", _stages),
    against.SECTION: ("Iterations of two checkouts", _against),
    "attacks": ("Attacks", _attacks),
    "defenses": ("Defenses", _defenses),
    "trial": ("A whole trial", _trial),
}
