"""What a sweep costs beside its trials, and how commands fare with thousands of finished trials.

    python experiments/benchmarks/sweeps.py [--trials 200] [--finished 10000]

First: short trials on two processes against the sum of their own seconds, halved; the start of
the processes is left out. Then: the time of whole commands, Python's start included, on a store of
made-up finished trials of the paper's settings.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click

from fltrust_repro import fidelity, trial_process
from fltrust_repro.checkpoints import Checkpoints
from fltrust_repro.experiments import Cell
from fltrust_repro.processes import LocalProcesses, Machine, Place
from fltrust_repro.progress import Watch
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.sweep import Run, in_turns
from fltrust_repro.training import TrialResult
from fltrust_repro.trials import FIRST_SEED, Trial, protocol_of

JOBS = 2
SHORT = Setting(dataset="digits", model="lr", rule="median", attack="trimmed-mean", iterations=100)


def overhead(folder: Path, trials: int) -> float:
    """Wall-clock time of the trials over the sum of their seconds per process."""
    executor = LocalProcesses(Machine(jobs=JOBS))
    warm = [executor.submit(trial_process.project, SHORT, "cpu", None) for _ in range(JOBS)]
    for call in warm:
        call.result()
    tasks = in_turns([SHORT], range(trials))
    cells = [Cell("median", "full", SHORT, None)]
    with Store(folder / "short.sqlite") as store:
        with Watch(cells, {}, len(tasks), trials * SHORT.iterations) as watch:
            started = time.perf_counter()
            checkpoints = Checkpoints(store.path.resolve(), 0)
            Run(tasks, executor, store, Place(executor.device), watch, checkpoints).to_the_end()
            elapsed = time.perf_counter() - started
        seconds = sum(trial.result.seconds for trial in store.find(SHORT))
    executor.close()
    return elapsed / (seconds / JOBS)


def fill(store: Store, count: int) -> int:
    """Add made-up trials of the paper's settings; return how many each setting has at least."""
    settings = list(dict.fromkeys(s for e in fidelity.all_experiments() for s in e.settings))
    rng = random.Random(0)
    curve = [(10 * k, rng.random(), rng.random()) for k in range(1, 51)]
    result = TrialResult(0.1, 0.1, 500, False, 5.0, curve, 0, {"attacked iterations": 500})
    protocols = {setting: protocol_of(setting) for setting in settings}
    first = FIRST_SEED  # what `report` looks at
    tasks = [(settings[k % len(settings)], first + k // len(settings)) for k in range(count)]
    store.add(
        *(
            Trial(setting, seed, replace(result, error_rate=rng.random()), "cpu", "made up",
                  "2020-01-01T00:00:00+00:00", protocols[setting])
            for setting, seed in tasks
        )
    )  # fmt: skip
    return count // len(settings)


def seconds_of(command: list[str], store: Path, out: Path) -> float:
    """Wall-clock time of one command."""
    where = ["--store", str(store), "--out", str(out)]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "fltrust_repro", *command, *where], check=True, capture_output=True
    )
    return time.perf_counter() - started


@click.command()
@click.option("--trials", default=200, show_default=True, help="Short trials to run.")
@click.option("--finished", default=10_000, show_default=True, help="Made-up finished trials.")
@click.option("--repeats", default=3, show_default=True, help="Of each command; the median counts.")
def main(trials: int, finished: int, repeats: int) -> None:
    """Print one line per measurement."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if trials:
            ratio = overhead(folder, trials)
            click.echo(f"{trials} short trials, {JOBS} processes: {ratio:.2f} times their seconds")
        if not finished:
            return
        with Store(folder / "many.sqlite") as store:
            least = fill(store, finished)
        commands = {
            "status": ["status"],
            "report": ["report"],
            "a resumed table2a": [
                "reproduce",
                "table2a",
                "--trials",
                str(least),
                "--seed",
                str(FIRST_SEED),
            ],
        }
        for what, command in commands.items():
            times = sorted(
                seconds_of(command, folder / "many.sqlite", folder / "out") for _ in range(repeats)
            )
            click.echo(f"{what}, {finished} finished trials: {times[repeats // 2]:.1f} s")


if __name__ == "__main__":
    main()
