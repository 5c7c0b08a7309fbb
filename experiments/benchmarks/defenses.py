"""Time of one LR/MNIST iteration with each defense, against the same iteration without.

    python experiments/benchmarks/defenses.py [--iterations 60] [--data-dir DIR]

m = 100, under the partial knowledge attack crafted for the rule, on one core; the evaluation on
the test set is left out. "naive" is ERR with m aggregations one by one, as its text reads, measured
on a few iterations in the same run. Prints medians over iterations, in milliseconds, and ratios.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

import click

from fltrust_repro import training, trial_process
from fltrust_repro.aggregation import Rule, rules
from fltrust_repro.backend import context
from fltrust_repro.settings import Setting

ATTACKS = {"krum": "krum", "trimmed-mean": "trimmed-mean", "median": "trimmed-mean"}
NAIVE_ITERATIONS = 5


def federation(rule: str, defense: str, data_dir: Path | None) -> training.Federation:
    """Make the master and worker devices of one trial."""
    setting = Setting(rule=rule, attack=ATTACKS[rule], knowledge="partial", defense=defense)
    return training.Federation(setting, 0, context("cpu"), data_dir)


def milliseconds(trained: training.Federation, iterations: int) -> float:
    """Median time of an iteration; the first one compiles and is left out."""
    w, times = trained.learner.initial, []
    for iteration in range(1, iterations + 2):
        started = time.perf_counter()
        w, _ = trained.iterate(w, iteration)
        w.wait_to_read()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def without_shortcut(rule: Rule) -> Rule:
    """Return the rule with m aggregations for m workers left out."""
    return dataclasses.replace(rule, leave_one_out=None)


@click.command()
@click.option("--iterations", default=60, show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path))
def main(iterations: int, data_dir: Path | None) -> None:
    """Print the table."""
    click.echo(f"{trial_process.versions()}; {iterations} iterations, one thread")
    click.echo(f"{'ms':14} {'plain':>7} {'err':>7} {'lfr':>7} {'union':>7} {'naive':>8}   ratios")
    for name in ATTACKS:
        names = ("none", "err", "lfr", "union")
        times = [milliseconds(federation(name, defense, data_dir), iterations) for defense in names]
        fast = rules[name]
        rules._entries[name] = without_shortcut(fast)
        times.append(milliseconds(federation(name, "err", data_dir), NAIVE_ITERATIONS))
        rules._entries[name] = fast
        ratios = " ".join(f"{one / times[0]:.1f}" for one in times[1:])
        click.echo(f"{name:14} " + " ".join(f"{one:7.1f}" for one in times) + f"    {ratios}")


if __name__ == "__main__":
    main()
