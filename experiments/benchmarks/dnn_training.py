"""Real training of the DNNs of panels b, c and d: the loss falls, and what a panel costs.

    python experiments/benchmarks/dnn_training.py [--data-dir DIR] [--iterations 20]

For each data set at hand it trains for a few iterations without attack under trimmed mean and
prints the benign workers' mean loss at the start and at the end, the time of an iteration with 100
workers, and the hours that the panel's 15 cells x 50 trials x 2,000 iterations would take on the
cores of this machine. ResNet20 is run with few workers and its time scaled to 100. For panel d it
takes a sample of real 64x64 tiles (`ch-mnist/sample24_64_64_L.npz`) or, without it, random images
of that size: they show the time, and no error rate that means anything.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from tabulate import tabulate

from fltrust_repro import processes, trial_process
from fltrust_repro.datasets import Dataset, dataset
from fltrust_repro.errors import BadInput
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

CELLS, TRIALS, ITERATIONS, WORKERS = 15, 50, 2000, 100

CASES = (
    ("b", Setting(dataset="mnist", model="cnn", rule="trimmed-mean")),
    ("c", Setting(dataset="fashion-mnist", model="cnn", rule="trimmed-mean")),
    ("-", Setting(dataset="ch-mnist-8", model="resnet20", rule="trimmed-mean")),
)


@dataset("tiles-64")
def tiles(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Real 64x64 histology tiles if a sample is at hand, else random images of that size."""
    for folder in directories:
        file = folder / "ch-mnist" / "sample24_64_64_L.npz"
        if file.is_file():
            arrays = [np.asarray(value) for value in np.load(file).values()]
            images = next(a for a in arrays if a.ndim >= 2 and a.size == len(a) * 4096)
            labels = next(a for a in arrays if a.ndim == 1 and len(a) == len(images))
            x = images.reshape(-1, 1, 64, 64).astype(np.float32) / 255
            y = (labels - labels.min()).astype(np.int32)
            break
    else:
        x = rng.random((24, 1, 64, 64), dtype=np.float32)
        y = np.arange(24, dtype=np.int32) % 8
    copies = 12
    return Dataset("tiles-64", np.tile(x, (copies, 1, 1, 1)), np.tile(y, copies), x, y, 8)


@click.command()
@click.option("--iterations", default=20, show_default=True)
@click.option("--resnet-workers", default=4, show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path))
def main(iterations: int, resnet_workers: int, data_dir: Path | None) -> None:
    """Print the table."""
    cases = [*CASES, ("d", Setting(dataset="tiles-64", model="resnet20", rule="trimmed-mean"))]
    cores = processes.usable_cores()
    rows = []
    for panel, setting in cases:
        workers = resnet_workers if setting.model == "resnet20" else WORKERS
        changes = {"workers": workers, "compromised": workers // 5, "beta": workers // 5}
        setting = Setting.from_dict({**setting.as_dict(), **changes, "iterations": iterations})
        try:
            once = Setting.from_dict({**setting.as_dict(), "iterations": 1})
            start = run_trial(once, 0, data_dir=data_dir)  # compiles too
            result = run_trial(setting, 0, data_dir=data_dir)
        except BadInput as error:
            click.echo(f"{setting.dataset}: left out. {error}", err=True)
            continue
        first, last = start.curve[0][2], result.curve[-1][2]
        seconds = result.seconds / iterations * WORKERS / workers
        hours = CELLS * TRIALS * ITERATIONS * seconds / 3600 / cores
        case = [panel, setting.dataset, setting.model, setting.learning_rate, iterations, workers]
        rows.append([*case, first, last, result.error_rate, seconds, hours])
    names = ["panel", "data", "model", "learning rate", "iterations", "workers", "first loss"]
    names += ["last loss", "error rate", "s / iteration, m = 100", f"panel hours, {cores} cores"]
    click.echo(f"{trial_process.versions()}; one thread per trial")
    click.echo(tabulate(rows, names, floatfmt=".3f"))


if __name__ == "__main__":
    main()
