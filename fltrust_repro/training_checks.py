"""What a model or a data set breaks and keeps, by twenty iterations of training."""

from __future__ import annotations

import numpy as np

from fltrust_repro import datasets, downloads
from fltrust_repro.backend import context
from fltrust_repro.models import Model
from fltrust_repro.probes import FAILS, NOTE, OK, Entry, Finding, Findings, tried
from fltrust_repro.settings import Setting
from fltrust_repro.training import TrialResult, run_trial
from fltrust_repro.workers import Learner

ITERATIONS, WORKERS = 20, 10
_SHAPES = {"digits": (1, 8, 8), "MNIST": (1, 28, 28), "CH-MNIST": (1, 64, 64)}


def check_model(entry: Entry) -> Findings:
    """Yield what was found of a model: the shapes that it takes, and whether it learns digits."""
    one: Model = entry()
    sizes, problems = {}, {}
    for name, shape in _SHAPES.items():
        built = tried(Learner, one, 10, shape, context("cpu"), 0)
        if built.problem:
            problems[name] = built.problem
        else:
            sizes[name] = built.answer.initial.size
    if not sizes:
        yield Finding(FAILS, f"takes images of no size tried: {problems['MNIST']}")
        return
    told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    yield Finding(OK, f"a score for each class; parameters: {told}")
    for name, problem in problems.items():
        yield Finding(NOTE, f"images as {name}'s: {problem}")
    if "digits" in sizes:
        yield from _learns(entry, "digits", entry.name, 10)


def check_dataset(entry: Entry) -> Findings:
    """Yield what was found of a data set: its contract, its split, and whether LR learns it."""
    folders = downloads.search_path(entry.data_dir)
    drawn = [
        tried(lambda seed=seed: entry().load(folders, np.random.default_rng(seed)))
        for seed in (0, 0, 1)
    ]
    for one in drawn:
        if one.problem:
            yield Finding(NOTE if one.missing else FAILS, one.problem)
            return
    data, again, other = (one.answer for one in drawn)
    n, shape = len(data.train_y), data.train_x.shape[1:]
    sizes = f"{n:,} training and {len(data.test_y):,} test examples of {shape}"
    yield Finding(OK, f"{sizes}, {data.classes} classes, {data.train_x.dtype}")
    parts = [[getattr(one, part) for part in datasets.PARTS] for one in (data, again, other)]
    if not _same([*parts[0], data.users], [*parts[1], again.users]):
        yield Finding(FAILS, "the same seed gives another split: draw it by rng only")
    elif _same(parts[0], parts[2]):
        yield Finding(NOTE, "each seed gives the same split")
    else:
        yield Finding(OK, "the seed decides the split, and nothing else does")
    for where, labels in (("training", data.train_y), ("test", data.test_y)):
        if missing := sorted(set(range(data.classes)) - set(labels.tolist())):
            yield Finding(NOTE, f"no {where} example is of class {missing[0]}")
    natural = data.users is not None and entry().dealing == "natural"
    workers = len(np.unique(data.users)) if natural else WORKERS
    yield from _learns(entry, entry.name, "lr", data.classes, workers)


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other))


def _learns(
    entry: Entry, dataset: str, model: str, classes: int, workers: int = WORKERS
) -> Findings:
    def trained() -> TrialResult:
        setting = Setting(
            dataset=dataset, model=model, rule="mean", workers=workers,
            compromised=min(2, (workers - 1) // 2), iterations=ITERATIONS,
        )  # fmt: skip
        return run_trial(setting, 0, data_dir=entry.data_dir)

    first, second = (tried(entry.trial, trained) for _ in range(2))
    what = f"{model} on {dataset}, {ITERATIONS} iterations"
    if first.problem:
        yield Finding(FAILS, f"{what}: {first.problem}")
        return
    result: TrialResult = first.answer
    chance, error = 1 - 1 / classes, f"error rate {result.error_rate:.2f}"
    if second.problem or second.answer.curve != result.curve:
        yield Finding(FAILS, f"{what}: the same seed twice gives different error rates or losses")
    elif result.diverged:
        yield Finding(NOTE, f"{what}: diverges; try a smaller learning rate")
    elif result.error_rate > 0.9 * chance:
        guess = f"a guess has {chance:.2f}; try another learning rate"
        yield Finding(NOTE, f"{what}: learns hardly anything, {error}, {guess}")
    else:
        yield Finding(OK, f"{what}: {error}, {result.seconds:.1f} s")
