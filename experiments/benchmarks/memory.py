"""Memory that each rule takes on top of the updates: peak of the process while it aggregates.

    python experiments/benchmarks/memory.py [--workers 100] [--parameters 10000000] [--non-finite]

One fresh process per rule makes random updates (m x d float32, 4 GB by default), notes how much
memory it has, aggregates, and asks the kernel for its peak since. c = m / 5, beta = c. Code is
compiled and the libraries' buffers are made beforehand, on few columns. With --non-finite one
worker sends NaN and one infinity, which takes other paths through the rules. Prints Markdown, then
CSV. Linux only: it reads /proc/self/status.
"""

from __future__ import annotations

import csv
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
from tabulate import tabulate

from fltrust_repro.aggregation import rules
from fltrust_repro.backend import NDArray, to_ndarray

RULES = ("mean", "trimmed-mean", "median", "krum", "bulyan")
MIB = 2**20


def status(field: str) -> int:
    """Return a memory field of this process, VmRSS (now) or VmHWM (peak), in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", text).group(1))


def forget_peak() -> None:
    """Let the peak be what the process has now."""
    Path("/proc/self/clear_refs").write_text("5")


def updates_of(m: int, d: int, non_finite: bool) -> NDArray:
    """Make random updates in place, without a second copy at any time."""
    matrix = np.empty((m, d), dtype=np.float32)
    rng = np.random.default_rng(0)
    for row in matrix:
        rng.standard_normal(out=row, dtype=np.float32)
    if non_finite:
        matrix[0, 0], matrix[1] = np.nan, np.inf
    return to_ndarray(matrix)


def measure(name: str, m: int, d: int, non_finite: bool) -> dict[str, object]:
    """Aggregate once in this process; a row of the table."""
    rule, c = rules[name], m // 5
    rule(updates_of(m, 10_000, non_finite), c=c, beta=c).wait_to_read()
    updates = updates_of(m, d, non_finite)
    forget_peak()
    before, started = status("VmRSS"), time.perf_counter()
    rule(updates, c=c, beta=c).wait_to_read()
    seconds = time.perf_counter() - started
    extra = status("VmHWM") - before
    return {
        "rule": name,
        "m": m,
        "d": d,
        "updates, MiB": round(4 * m * d / MIB),
        "result, MiB": round(4 * d / MIB, 1),
        "on top, MiB": round(extra / MIB, 1),
        "seconds": round(seconds, 2),
    }


@click.command()
@click.option("--workers", default=100, show_default=True, help="m, at least 5.")
@click.option("--parameters", default=10_000_000, show_default=True, help="d.")
@click.option("--non-finite", is_flag=True, help="Two workers send NaN and infinity.")
def main(workers: int, parameters: int, non_finite: bool) -> None:
    """Print the table."""
    rows = []
    for name in RULES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            task = process.submit(measure, name, workers, parameters, non_finite)
            rows.append(task.result())
    click.echo(tabulate(rows, headers="keys", tablefmt="pipe"), nl=False)
    click.echo("\n")
    table = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)


if __name__ == "__main__":
    main()
