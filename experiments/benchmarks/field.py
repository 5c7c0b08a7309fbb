"""Rules since 2017 beside other libraries', in one run, on one thread.

    python experiments/benchmarks/field.py --python byzfl=PYTHON --python byzpy=PYTHON ...

Not all libraries can be installed beside each other: `--python` names the Python that has one
(byzfl, byzpy, krum, flower); without it the library is left out. All take turns, size by size, each
in a process of its own. Writes field.csv and field.md: milliseconds, and how they stand to Krum's
and to the fastest peer's. Names that end in + are pre-aggregations alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pandas as pd
from field_peers import LIBRARIES
from machine import described

from fltrust_repro.backend import WORKER_ENVIRONMENT
from fltrust_repro.files import write_text

OURS = "fltrust_repro"
HERE = Path(__file__).parent
NOTES = """Where a peer's rule is another one than ours: Krum and Multi-Krum of ByzFL and byzpy take
m - c - 1 neighbours; ByzFL's geometric median takes 3 steps, where the others go on until they
converge (krum to a tolerance of 1e-6, we to 1e-8); byzpy's centered clipping is given one step; CAF
takes the exact top eigenvector here, a few power iterations there; the others' MDA tries every
subset of m - c workers, and is left out beyond 20. ByzFL's clipping and ARC shorten what they are
given, and get a copy each time. The judge of Zeno and FedGreed is not in their times.
"""


def measured(library: str, python: str, m: int, d: int, budget: float, patience: float) -> Iterator:
    """Rows of one library at one size; cases that were not reached in time are missing."""
    path = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path} if library == OURS else {}
    command = [python, str(HERE / "field_peers.py"), library, str(m), str(d), str(budget)]
    environment = {**os.environ, **WORKER_ENVIRONMENT, **own}
    try:
        done = subprocess.run(
            command, env=environment, text=True, capture_output=True, timeout=patience, check=False
        )
        told, error = done.stdout, done.stderr.strip()
    except subprocess.TimeoutExpired as late:
        told, error = (late.stdout or b"").decode(), f"stopped after {patience:.0f} s"
    for line in told.splitlines():
        if line.startswith("{"):
            yield {"who": library, "m": m, "d": d, **json.loads(line)}
    if error:
        yield {"who": library, "m": m, "d": d, "case": "", "note": error.splitlines()[-1][:120]}


def markdown(found: pd.DataFrame, machine: str) -> str:
    """A table a size: ours in ms and as multiples of Krum, the fastest peer's and its ratio."""
    lines = ["# Rules since 2017, beside other libraries'", "", machine, "", NOTES]
    for (m, d), size in found[found["median"].notna()].groupby(["m", "d"]):
        table = size.pivot(index="case", columns="who", values="median")
        peers = table.drop(columns=OURS)
        head = "| rule | ms | times Krum | fastest peer | its ms | ratio |"
        lines += [f"## {m} x {d:,}", "", head, "|---|---|---|---|---|---|"]
        for case, mine in table[OURS].dropna().items():
            beside = peers.loc[case].dropna()
            ratio = mine / table.loc["krum", OURS]
            told = f"| {case} | {1000 * mine:.3g} | {ratio:.2g} |"
            if len(beside):
                least, who = beside.min(), beside.idxmin()
                told += f" {who} | {1000 * least:.3g} | {least / mine:.2g} |"
            else:
                told += " | | |"
            lines.append(told)
        lines.append("")
    return "\n".join(lines)


def _pythons(_context: click.Context, _option: click.Option, given: tuple[str, ...]) -> dict:
    pairs = [text.partition("=") for text in given]
    for name, _, python in pairs:
        if name not in LIBRARIES or not Path(python).is_file():
            raise click.BadParameter(f"{name}={python}; give one of {', '.join(LIBRARIES)}=PYTHON.")
    return {OURS: sys.executable, **{name: python for name, _, python in pairs}}


@click.command()
@click.option("--python", "pythons", multiple=True, callback=_pythons, help="LIBRARY=PYTHON.")
@click.option("--workers", multiple=True, default=(100,), show_default=True, help="m; repeatable.")
@click.option("--parameters", multiple=True, default=(7_850, 266_060), show_default=True, help="d.")
@click.option("--budget", default=1.5, show_default=True, help="Seconds of a case.")
@click.option("--patience", default=300.0, show_default=True, help="Seconds of a library's cases.")
@click.option("--out", default="experiments/results", type=click.Path(path_type=Path))
def main(pythons: dict[str, str], workers: tuple[int, ...], parameters: tuple[int, ...],
         budget: float, patience: float, out: Path) -> None:  # fmt: skip
    """Measure, print the tables, and write them."""
    rows: list[dict] = []
    for m in workers:
        for d in parameters:
            for library, python in pythons.items():
                click.echo(f"{library}, {m} x {d:,}", err=True)
                rows += measured(library, python, m, d, budget, patience)
    found = pd.DataFrame(rows).reindex(
        columns=["case", "who", "m", "d", "median", "minimum", "repeats", "note"]
    )
    text = markdown(found, described())
    click.echo(text)
    write_text(out / "field.csv", found.to_csv(index=False))
    write_text(out / "field.md", text)


if __name__ == "__main__":
    main()
