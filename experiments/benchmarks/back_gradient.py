"""The back-gradient attack (Section 4.4): what it does to centralized learning, and what it costs.

    python experiments/benchmarks/back_gradient.py [--seed 0] [--data-dir DIR]

First the testing error rate of LR on 6,000 examples of MNIST, trained as in the experiments (500
iterations, batch 32, learning rate 0.1), with 240 poisoned examples, with the examples that these
started from, with as many labels flipped at random, and with clean data; mean over four trainings.
Then the time of an outer step and its memory, as poisoned examples, classes and inner steps grow,
on random images; without MNIST at hand, this part alone.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from pathlib import Path

import click
import numpy as np

from fltrust_repro import datasets, machine
from fltrust_repro.backend import mx, one_thread
from fltrust_repro.errors import BadInput
from fltrust_repro.models import models
from fltrust_repro.partition import Shards, sample_batches
from fltrust_repro.poisoning import BackGradient, optimise, outer_gradient
from fltrust_repro.training import generator
from fltrust_repro.workers import Learner

SHARE = 0.04
TRAININGS = 4


def centralized_error(data: datasets.Dataset, x: np.ndarray, labels: np.ndarray) -> float:
    """Testing error rate of LR trained on x with labels; mean over a few seeds."""
    everything = Shards.of([np.arange(len(x))])
    images = x.reshape(-1, *data.train_x.shape[1:])
    errors = []
    for seed in range(TRAININGS):
        learner = Learner(models["lr"], data.classes, data.train_x.shape[1:], mx.cpu(), seed)
        train_x, test_x = learner.resident(images), learner.resident(data.test_x)
        w, rng = learner.initial, np.random.default_rng(seed)
        for _ in range(500):
            batches = sample_batches(everything, labels, 32, 1, rng)
            updates, _ = learner.updates(w, train_x, batches, 0.1)
            w = w + updates[0]
        errors.append(learner.error_rate(w, test_x, data.test_y))
    return statistics.fmean(errors)


def what_it_does(seed: int, data_dir: Path | None) -> None:
    """Print error rates with and without poisoned examples."""
    data = datasets.load("mnist-6000", generator(seed, "split"), data_dir).in_float32()
    x, labels = data.train_x.reshape(len(data.train_x), -1), data.train_y.astype(np.int64)
    count = round(SHARE * len(x))
    started = time.perf_counter()
    poisoned, wrong, start = optimise(
        BackGradient(count), x, labels, data.classes, generator(seed, "back-gradient")
    )
    minutes = (time.perf_counter() - started) / 60
    rng = np.random.default_rng(seed)
    flipped = labels.copy()
    some = rng.choice(len(x), count, replace=False)
    flipped[some] = (labels[some] + rng.integers(1, data.classes, count)) % data.classes
    cases = {
        "clean": (x, labels),
        f"{count} random labels flipped": (x, flipped),
        f"{count} unoptimised starts": (np.concatenate([x, start]), np.append(labels, wrong)),
        f"{count} poisoned examples": (np.concatenate([x, poisoned]), np.append(labels, wrong)),
    }
    click.echo(f"{count} examples optimised in {minutes:.1f} minutes on one core; error rates:")
    for name, case in cases.items():
        click.echo(f"  {name:28} {centralized_error(data, *case):.3f}")


def cost(examples: int, classes: int, steps: int, clean: int = 6_000, features: int = 784) -> str:
    """Time of an outer gradient in seconds, and the most memory it holds, in MiB."""
    rng = np.random.default_rng(0)
    x = rng.random((examples, features), dtype=np.float32) / 4  # about as bright as digits
    others = rng.random((clean, features), dtype=np.float32) / 4
    one_hot = np.eye(classes, dtype=np.float32)
    y, others_y = (
        one_hot[rng.integers(0, classes, examples)],
        one_hot[rng.integers(0, classes, clean)],
    )
    times = []
    for _ in range(3):
        started = time.perf_counter()
        outer_gradient(x, y, others, others_y, steps, 0.5)
        times.append(time.perf_counter() - started)
    tracemalloc.start()
    outer_gradient(x, y, others, others_y, steps, 0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return f"{examples:9} {classes:8} {steps:12} {min(times):10.2f} {peak / 2**20:9.0f}"


@click.command()
@click.option("--seed", default=0, show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path))
@one_thread()
def main(seed: int, data_dir: Path | None) -> None:
    """Print both tables."""
    click.echo(f"{machine.versions()}; one thread")
    try:
        what_it_does(seed, data_dir)
    except BadInput as error:
        click.echo(f"MNIST is not at hand. ({error})")
    click.echo(f"\n{'examples':>9} {'classes':>8} {'inner steps':>12} {'s / step':>10} {'MiB':>9}")
    for examples, classes, steps in (
        (240, 10, 100), (60, 10, 100), (960, 10, 100), (240, 2, 100), (240, 40, 100),
        (240, 10, 50), (240, 10, 200),
    ):  # fmt: skip
        click.echo(cost(examples, classes, steps))


if __name__ == "__main__":
    main()
