"""All measurements of speed and memory: one command, one CSV, Markdown and log-log plot.

    python experiments/benchmarks/suite.py [--quick] [--only rules,stages] [--data-dir DIR]

Writes benchmarks.csv, benchmarks.md and benchmarks.png. Everything runs on one thread; times are
medians over repetitions, with the minimum beside them. Other libraries that are not installed
(`pip install -e '.[peers]'`), and cases that would not fit the free memory or take too long, are
named as skipped. `--workers`, `--parameters` and `--library` choose the cases of the rules.

Rules are held against numpy's, whose older OpenBLAS knows fewer processors than scipy's, which our
distances call. `--numpy-kernel Prescott` (SSE3) gives numpy the kernels that it falls back to on a
processor newer than itself, and leaves scipy's and MXNet's their own choice, as setting
OPENBLAS_CORETYPE for the whole command would not (`numpy_kernel.py`). Results name the processor
and each library with its kernels.

`--only stages --against DIR` also runs iterations of this checkout and of the one in DIR in turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy_kernel  # first of all: numpy's library chooses its kernels when it loads

# isort: split
import against
import attacks
import click
import defenses
import measure
import stages
import tables
import trial
from machine import Machine
from machine import measure as measure_machine
from measure import Row
from peers import LIBRARIES, OURS
from rules import Bench, Sizes

from fltrust_repro.errors import BadInput
from fltrust_repro.files import check_writable, write_bytes, write_text

SECTIONS = ("rules", "stages", "attacks", "defenses", "trial")
SIZES = Sizes((20, 100, 500), (7_850, 266_060, 10_000_000))
QUICK = Sizes((20, 50), (1_000, 7_850))


@dataclass(frozen=True)
class Options:
    """What the command was asked for."""

    sizes: Sizes
    libraries: tuple[str, ...]
    patience: float
    non_finite: bool
    quick: bool
    data_dir: Path | None
    other: Path | None


_STARTED = time.monotonic()


def _say(text: str) -> None:
    click.echo(f"{time.monotonic() - _STARTED:5.0f} s  {text}", err=True)


def _rules(machine: Machine, options: Options) -> Iterator[Row]:
    budget = 0.03 if options.quick else 1.5
    bench = Bench(machine, options.sizes, options.patience, budget, options.non_finite, _say)
    return bench.rows(options.libraries)


def measured(sections: list[str], options: Options) -> tuple[str, list[Row]]:
    """Describe the machine and run the sections, after the machine's own rates."""
    _say("machine")
    about, machine, rows = measure.in_fresh_process(measure_machine, 0.1 if options.quick else 1.0)
    common = (options.quick, options.data_dir, _say)
    runs = {
        "rules": lambda: _rules(machine, options),
        "stages": lambda: stages.rows(machine, *common),
        "attacks": lambda: attacks.rows(*common),
        "defenses": lambda: defenses.rows(*common),
        "trial": lambda: trial.rows(*common),
    }
    for name in sections:
        rows += runs[name]()
    if options.other is not None:
        rows += against.rows(options.other, *common)
    return about, rows


def _chosen(_context: click.Context, _option: click.Option, value: str) -> list[str]:
    names = value.split(",")
    strange = [name for name in names if name not in SECTIONS]
    if strange:
        raise click.BadParameter(f"{strange[0]!r}; choose from {', '.join(SECTIONS)}.")
    return names


@click.command()
@click.option("--only", default=",".join(SECTIONS), show_default=True, callback=_chosen)
@click.option("--quick", is_flag=True, help="Small sizes and random images, in under a minute.")
@click.option("--workers", multiple=True, type=click.IntRange(5), help="m; repeatable.")
@click.option("--parameters", multiple=True, type=click.IntRange(1), help="d; repeatable.")
@click.option("--library", multiple=True, type=click.Choice(list(LIBRARIES)), help="Repeatable.")
@click.option("--patience", type=float, help="Seconds of a peer's slowest case; default 10.")
@click.option("--non-finite", is_flag=True, help="Two workers send NaN and infinity; our rules.")
@click.option(
    "--numpy-kernel",
    "numpy_kernel_name",
    help="OpenBLAS kernels of numpy alone, as Prescott or Haswell.",
)
@click.option(
    "--against",
    "other",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Another checkout, whose iterations take turns with this one's.",
)
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default="experiments/results", show_default=True
)
def main(
    only: list[str],
    quick: bool,
    workers: tuple[int, ...],
    parameters: tuple[int, ...],
    library: tuple[str, ...],
    patience: float | None,
    non_finite: bool,
    numpy_kernel_name: str | None,
    other: Path | None,
    data_dir: Path | None,
    out: Path,
) -> None:
    """Measure, print the tables, and write them."""
    try:
        check_writable(out)
    except BadInput as error:
        raise click.UsageError(str(error)) from None
    measure.one_thread()
    if numpy_kernel_name:
        os.environ[numpy_kernel.CHOSEN] = numpy_kernel_name
    default = QUICK if quick else SIZES
    libraries = (OURS,) if non_finite else library or tuple(LIBRARIES)
    options = Options(
        Sizes(workers or default.workers, parameters or default.parameters),
        tuple(name for name in LIBRARIES if name in libraries),  # ours first
        patience or (1.0 if quick else 10.0),
        non_finite,
        quick,
        data_dir,
        other,
    )
    about, rows = measured(only, options)
    text = tables.markdown(rows, about)
    click.echo(text)
    write_text(out / "benchmarks.csv", tables.frame(rows).assign(machine=about).to_csv(index=False))
    write_text(out / "benchmarks.md", text)
    from plots import plot  # here: every process imports this module, and this one is slow

    picture = plot(rows)
    if picture is not None:
        write_bytes(out / "benchmarks.png", picture)


if __name__ == "__main__":
    main()
