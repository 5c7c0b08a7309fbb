"""Stages of an iteration (Section 2.1) for LR, CNN and ResNet20, and the plain loops beside them.

Trimmed mean under its attack with partial knowledge; the evaluation on the test set, every tenth
iteration in a trial, stands apart. ResNet20 gets random images of 64x64 and few workers; what an
iteration takes with 100 is scaled from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import images
import loops
import numpy as np
from machine import Machine, Work, products_seconds
from measure import Row, figures, in_fresh_process, peak, seconds, timed
from products import LAYERS, flops, of_gradient, of_scores
from rules import work as work_of_rule

from fltrust_repro import datasets
from fltrust_repro.aggregation import trimmed_mean
from fltrust_repro.attacks import trimmed_mean_attack
from fltrust_repro.backend import context, host_view, to_ndarray
from fltrust_repro.models import models
from fltrust_repro.partition import partition, sample_batches
from fltrust_repro.pixels import gathered
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Round
from fltrust_repro.training import generator
from fltrust_repro.workers import Learner

SECTION = "stages"
ITERATION, EVALUATION = "one iteration", "evaluation"
LOOPS = {
    "plain MXNet loop": loops.mxnet_updates,
    "plain PyTorch loop": loops.torch_updates,
}
_STAGES = ("sample batches", "updates", "attack", "trimmed mean")


def settings(quick: bool, data_dir: Path | None) -> dict[str, Setting]:
    """The settings whose iterations are measured, by the name that the tables give them."""
    attacked = {"rule": "trimmed-mean", "attack": "trimmed-mean", "knowledge": "partial"}
    mnist = {"dataset": images.at_hand("mnist", quick, data_dir), **attacked}
    few = {"workers": 10, "compromised": 2} if quick else {}
    found = {
        "lr": images.lr_setting(quick, data_dir, **attacked),
        "cnn": Setting(model="cnn", learning_rate=0.01, **mnist, **few),
    }
    if not quick:  # as for Fashion-MNIST
        found["cnn, batch 64"] = replace(found["cnn"], batch_size=64)
    tiles = {"dataset": "random-64", "workers": 5, "compromised": 1, **attacked}
    if quick:
        tiles |= {"dataset": "random-64-few", "batch_size": 4}
    return {**found, "resnet20": Setting(model="resnet20", **tiles)}


class Iteration:
    """The stages of an iteration, each a method that takes what the one before gave."""

    def __init__(self, setting: Setting, data_dir: Path | None) -> None:
        self.setting = setting
        self.data = data = datasets.load(setting.dataset, generator(0, "split"), data_dir)
        self.shards = partition(
            data.train_y, data.classes, setting.workers, setting.non_iid, generator(0, "partition")
        )
        shape = data.train_x.shape[1:]
        self.learner = Learner(models[setting.model], data.classes, shape, context("cpu"), 0)
        self.x, self.test_x = map(self.learner.resident, (data.train_x, data.test_x))
        self.w = self.learner.initial
        self.rng = generator(0, "batches")
        self.parameters, self.master = setting.parameters(), setting.at_master

    def sample(self) -> None:
        """Draw the workers' batches."""
        size = self.setting.batch_size
        self.batches = sample_batches(self.shards, self.data.train_y, size, 1, self.rng)

    def train(self) -> None:
        """All workers' updates."""
        rate = self.setting.learning_rate
        self.updates, _ = self.learner.updates(self.w, self.x, self.batches, rate)
        self.updates.wait_to_read()

    def attack(self) -> None:
        """Craft the compromised workers' updates."""
        c, attacker = self.setting.compromised, (self.rng, self.master, self.parameters)
        step = Round(self.updates[:c], c, self.w, "partial", *attacker)
        host_view(self.updates)[:c] = trimmed_mean_attack(step)

    def aggregate(self) -> None:
        """Aggregate and move the global model."""
        change = trimmed_mean(self.updates, self.setting.beta)
        self.w = to_ndarray(host_view(self.w) + host_view(change))

    def evaluate(self) -> None:
        """Error rate on the whole test set."""
        self.learner.error_rate(self.w, self.test_x, self.data.test_y)

    def stages(self) -> dict[str, Callable[[], None]]:
        """All of them by name, in their order."""
        return dict(zip(_STAGES, (self.sample, self.train, self.attack, self.aggregate)))

    def work(self) -> dict[str, Work]:
        """What each stage has to do at least, by its formula."""
        m, c, d, batch = (
            self.setting.workers, self.setting.compromised, self.w.size, self.setting.batch_size,
        )  # fmt: skip
        layers = LAYERS[self.setting.model]
        by_mxnet = models[self.setting.model].compiled is None
        train = Work(
            1.0 * m * (batch * self.x[0].nbytes + 4 * d),
            m * flops(of_gradient(layers(batch))),
            by_mxnet=by_mxnet,
        )
        return {
            "sample batches": Work(24.0 * m * batch),  # a uniform number, a row and a label each
            "updates": train,
            "attack": Work(4.0 * 2 * c * d),
            "trimmed mean": work_of_rule("trimmed-mean", m, d),
            EVALUATION: Work(
                self.test_x.nbytes, flops(of_scores(layers(len(self.test_x)))), by_mxnet=by_mxnet
            ),
        }

    def plain(self) -> tuple:
        """Return what the plain loops take: of the first iteration, and with whole batches."""
        self.w = self.learner.initial
        self.sample()
        self.train()
        rows = self.batches.rows[0]
        images = gathered(self.x, rows.ravel()).reshape(*rows.shape, *self.x.shape[1:])
        arrays = host_view(self.w).copy(), images, self.batches.labels[0]
        return (self.setting.model, self.data.classes, *arrays, self.setting.learning_rate)


def _measure(
    name: str, setting: Setting, machine: Machine, budget: float, data_dir: Path | None
) -> tuple[list[Row], tuple, np.ndarray]:
    """Rows of the stages and of the iteration; the loops' arguments, and the updates from these."""
    iteration = Iteration(setting, data_dir)
    stages, work = iteration.stages(), iteration.work()
    for call in stages.values():
        call()  # compiles
    memory = {}
    for stage, call in stages.items():
        with peak() as most:
            call()
        memory[stage] = most.memory
    passes = []
    while not passes or (sum(map(sum, passes)) < budget and len(passes) < 50):
        passes.append([seconds(call) for call in stages.values()])
    row = partial(Row, SECTION, m=setting.workers, d=iteration.w.size)
    rows = [
        row(
            f"{name}: {stage}", memory=memory[stage], **machine.limit(work[stage]), **figures(times)
        )
        for stage, times in zip(stages, zip(*passes))
    ]
    if not work["updates"].by_mxnet:
        products = of_gradient(LAYERS[setting.model](setting.batch_size))
        rows[1] = replace(rows[1], products=setting.workers * products_seconds(products))
    whole = row(
        f"{name}: {ITERATION}",
        memory=max((one for one in memory.values() if one is not None), default=None),
        limit=sum(part.limit for part in rows),
        **figures([sum(times) for times in passes]),
    )
    iteration.evaluate()  # compiles
    with peak() as most:
        known = timed(iteration.evaluate, budget / 5)
    known |= {"memory": most.memory, **machine.limit(work[EVALUATION])}
    evaluation = row(f"{name}: {EVALUATION}", **known)
    arguments = iteration.plain()
    return [*rows, evaluation, whole], arguments, host_view(iteration.updates).copy()


def _loop(
    make: Callable, arguments: tuple, expected: np.ndarray, beta: int, budget: float
) -> tuple[dict[str, float], str]:
    """Times of a plain loop with np.sort, and whether its updates are ours."""
    updates = make(*arguments)
    # By their lengths: where two outputs in a pooling window are all but equal, sums in another
    # order let another one through.
    apart = np.linalg.norm(updates() - expected, axis=1)
    same = (apart <= 1e-3 * np.linalg.norm(expected, axis=1)).all()
    whole = timed(lambda: loops.sorted_trimmed_mean(updates(), beta), budget)
    return whole, "same result" if same else "other updates"


def rows(
    machine: Machine, quick: bool, data_dir: Path | None, say: Callable[[str], None]
) -> Iterator[Row]:
    """Measure all models, each in a process of its own, then the plain loops in others."""
    budget = 0.2 if quick else 10.0
    for name, setting in settings(quick, data_dir).items():
        say(f"stages: {name}")
        own, arguments, expected = in_fresh_process(
            _measure, name, setting, machine, budget, data_dir
        )
        yield from own
        for who, make in LOOPS.items():
            row = Row(SECTION, own[-1].case, who, setting.workers, own[-1].d)
            reason = loops.reason_to_skip(setting, make)
            if reason:
                yield replace(row, note=f"skipped: {reason}")
                continue
            say(f"stages: {name}, {who}")
            found, note = in_fresh_process(
                _loop, make, arguments, expected, setting.beta, budget / 2
            )
            yield replace(row, note=note, **found)
