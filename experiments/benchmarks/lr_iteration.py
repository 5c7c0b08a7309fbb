"""Time of one LR/MNIST iteration under the trimmed mean attack, m = 100, on one core.

    python experiments/benchmarks/lr_iteration.py [--iterations 50] [--data-dir DIR]

In the same run, on the same batches, it times what one would write first: a loop over the workers
with one Gluon forward and backward pass each, then trimmed mean by np.sort, or by NDArray sort.
Prints the median and the minimum over iterations, and the ratios of the medians. Without MNIST at
hand it uses random images of the same size, and says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from fltrust_repro import datasets, trial_process
from fltrust_repro.aggregation import trimmed_mean
from fltrust_repro.attacks import Round, trimmed_mean_attack
from fltrust_repro.backend import NDArray, host_view, mx, nd
from fltrust_repro.errors import BadInput
from fltrust_repro.models import models
from fltrust_repro.partition import Batches, Shards, partition, sample_batches
from fltrust_repro.settings import Setting
from fltrust_repro.training import generator
from fltrust_repro.workers import Learner

SETTING = Setting(rule="trimmed-mean", attack="trimmed-mean", knowledge="partial")


def examples(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's training examples, or random ones of the same shape."""
    rng = np.random.default_rng(0)
    try:
        data = datasets.load("mnist", rng, data_dir)
    except BadInput as error:
        click.echo(f"MNIST is not at hand, random images instead. ({error})")
        return rng.random((60_000, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 60_000)
    return data.train_x, data.train_y


def plain_updates(net: mx.gluon.Block, w: NDArray, x: NDArray, batches: Batches) -> NDArray:
    """The loop one would write first: one worker after the other."""
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    weight, bias = net.weight, net.bias
    cut = weight.data().size
    weight.set_data(w[:cut].reshape(weight.shape))
    bias.set_data(w[cut:])
    images = host_view(x)
    rows = []
    for worker, labels in zip(batches.rows[0], batches.labels[0]):
        with mx.autograd.record():
            loss = loss_of(net(nd.array(images[worker])), nd.array(labels)).mean()
        loss.backward()
        rows.append(nd.concat(weight.grad().reshape(-1), bias.grad(), dim=0))
    return -SETTING.learning_rate * nd.stack(*rows)


class Iteration:
    """The stages of an iteration, each a method that takes what the one before gave."""

    def __init__(self, data_dir: Path | None) -> None:
        x, self.labels = examples(data_dir)
        self.x = nd.from_numpy(np.array(x), zero_copy=True)
        self.shards: Shards = partition(
            self.labels, 10, SETTING.workers, SETTING.non_iid, generator(0, "partition")
        )
        self.learner = Learner(models["lr"], 10, (1, 28, 28), mx.cpu(), 0)
        self.net = mx.gluon.nn.Dense(10, in_units=784)
        self.net.initialize()
        self.net.hybridize()
        self.w = self.learner.initial
        self.rng = generator(0, "batches")
        self.batches = self.sample()
        self.updates = self.ours()

    def sample(self) -> Batches:
        """Draw the workers' batches."""
        self.batches = sample_batches(self.shards, self.labels, SETTING.batch_size, 1, self.rng)
        return self.batches

    def ours(self) -> NDArray:
        """All updates by the compiled formula."""
        self.updates, _ = self.learner.updates(self.w, self.x, self.batches, SETTING.learning_rate)
        return self.updates

    def loop(self) -> NDArray:
        """All updates by the plain loop."""
        updates = plain_updates(self.net, self.w, self.x, self.batches)
        updates.wait_to_read()
        return updates

    def attack(self) -> None:
        """Craft the compromised workers' updates."""
        c = SETTING.compromised
        step = Round(self.updates[:c], c, self.w, SETTING, self.rng)
        host_view(self.updates)[:c] = host_view(trimmed_mean_attack(step))

    def rule(self) -> None:
        """Aggregate and move the global model."""
        self.w = self.w + trimmed_mean(self.updates, SETTING.beta)
        self.w.wait_to_read()

    def numpy_rule(self) -> None:
        """Trimmed mean by np.sort."""
        ordered = np.sort(self.updates.asnumpy(), axis=0)
        ordered[SETTING.beta : -SETTING.beta].mean(axis=0)

    def ndarray_rule(self) -> None:
        """Trimmed mean by NDArray sort."""
        ordered = nd.sort(self.updates, axis=0)
        ordered[SETTING.beta : -SETTING.beta].mean(axis=0).wait_to_read()


def milliseconds(stage: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    stage()
    return 1000 * (time.perf_counter() - started)


@click.command()
@click.option("--iterations", default=50, show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path))
def main(iterations: int, data_dir: Path | None) -> None:
    """Print the table."""
    iteration = Iteration(data_dir)
    stages = {
        "sample batches": iteration.sample,
        "updates": iteration.ours,
        "attack": iteration.attack,
        "trimmed mean": iteration.rule,
        "loop: updates": iteration.loop,
        "loop: np.sort": iteration.numpy_rule,
        "loop: NDArray sort": iteration.ndarray_rule,
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    # Ours first and by themselves: in between, the loop would empty the caches for them.
    for names in (list(stages)[:4], list(stages)[4:]):
        for _ in range(iterations + 1):
            for name in names:
                times[name].append(milliseconds(stages[name]))
        for name in names:
            del times[name][0]  # compiles

    def row(label: str, names: list[str]) -> float:
        sums = [sum(one) for one in zip(*(times[name] for name in names))]
        click.echo(f"{label:44} {statistics.median(sums):8.2f} {min(sums):8.2f}")
        return statistics.median(sums)

    click.echo(f"{trial_process.versions()}; {iterations} iterations, one thread")
    click.echo(f"{'stage, ms':44} {'median':>8} {'min':>8}")
    for name in stages:
        row(name, [name])
    shared = ["sample batches", "attack"]
    ours = row("one iteration", [*shared, "updates", "trimmed mean"])
    numpy = row(
        "one iteration, plain loop with np.sort", [*shared, "loop: updates", "loop: np.sort"]
    )
    array = row(
        "one iteration, plain loop with NDArray sort",
        [*shared, "loop: updates", "loop: NDArray sort"],
    )
    click.echo(f"plain loop with np.sort / ours:      {numpy / ours:.1f}")
    click.echo(f"plain loop with NDArray sort / ours: {array / ours:.1f}")


if __name__ == "__main__":
    main()
