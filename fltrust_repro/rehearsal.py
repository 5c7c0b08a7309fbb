"""One step of what trials do, on random images: how long it takes, and whether a GPU is right.

`doctor` takes it in a process of its own, on every device that trials would use.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fltrust_repro import backend
from fltrust_repro.models import Model, models
from fltrust_repro.partition import Batches
from fltrust_repro.workers import Learner

if TYPE_CHECKING:
    from mxnet.context import Context

IN_GLUON = "cnn in Gluon"
STEPS = ("lr", "cnn", IN_GLUON)
"""The models that bring a formula, and one computed in Gluon, as all others are."""
ROUNDING = 5e-5
"""How far off numbers may be: sums in another order are off by up to 3e-6, TF32 by 1e-4 or more."""
_SHAPE, _CLASSES, _EXAMPLES, _WORKERS, _BATCH, _RATE = (1, 28, 28), 10, 64, 3, 4, 0.1
_SEED = 0  # with which no unit of the CNN is so near zero that rounding could switch it on or off


class Step(NamedTuple):
    """Seconds of the first call and of the second, and how far its numbers are off the CPU's."""

    first: float
    second: float
    off: float


def step(name: str, device: str, index: int = 0) -> Step:
    """Take one of `STEPS` twice on a device, `cpu` or `gpu` number `index`, and once on the CPU.

    A step is updates of a few workers and an evaluation of each one's model. `off` is the relative
    error, in the Euclidean norm, of updates and losses, the largest; not finite where one is not.
    """
    plain = models["cnn" if name == IN_GLUON else name]
    model = Model(name, plain.build) if name == IN_GLUON else plain
    on_cpu = _learner(plain, backend.context("cpu"))
    start = backend.host_view(on_cpu.initial)
    times = [time.perf_counter()]
    tried = _learner(model, backend.context(device, index))
    for _ in range(2):
        found = _numbers(tried, start)
        times.append(time.perf_counter())
    off = _off(found, _numbers(on_cpu, start))
    return Step(times[1] - times[0], times[2] - times[1], off)


def _learner(model: Model, ctx: Context) -> Learner:
    return Learner(model, _CLASSES, _SHAPE, ctx, _SEED)


def _numbers(learner: Learner, start: np.ndarray) -> tuple[np.ndarray, ...]:
    """The updates of a batch each from the model `start`, and the losses before and after."""
    rng = np.random.default_rng(_SEED)
    images = rng.random((_EXAMPLES, *_SHAPE), dtype=np.float32)
    labels = rng.integers(_CLASSES, size=_EXAMPLES)
    rows = rng.integers(_EXAMPLES, size=(1, _WORKERS, _BATCH))
    batches = Batches(rows, labels[rows], np.full(_WORKERS, _BATCH))
    x = learner.resident(images)
    updates, before = learner.updates(backend.to_ndarray(start), x, batches, _RATE)
    changes = backend.host_view(updates)
    _, after = learner.judge(start + changes, x, labels)
    return changes.astype(np.float64), before, after


def _off(found: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> float:
    errors = [np.linalg.norm(one - its) / np.linalg.norm(its) for one, its in zip(found, right)]
    return float(np.max(errors))
