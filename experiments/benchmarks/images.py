"""Data sets for measurements: MNIST where it is at hand, else random images of the same size.

An iteration takes the same time on both; only error rates mean nothing on random images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fltrust_repro import datasets
from fltrust_repro.errors import BadInput
from fltrust_repro.settings import Setting


def _random(name: str, shape: tuple[int, ...], classes: int, train: int, test: int) -> None:
    @datasets.dataset(name)
    def load(directories: tuple[Path, ...], rng: np.random.Generator) -> datasets.Dataset:
        """Random images, for measurements of time."""
        rng = np.random.default_rng(0)
        x = rng.random((train + test, *shape), dtype=np.float32)
        y = rng.integers(0, classes, train + test).astype(np.int32)
        return datasets.Dataset(x[:train], y[:train], x[train:], y[train:], classes)


_random("random-28", (1, 28, 28), 10, 60_000, 10_000)
_random("random-64", (1, 64, 64), 8, 4_000, 1_000)  # as many as CH-MNIST's
_random("random-64-few", (1, 64, 64), 8, 200, 40)


def at_hand(name: str, quick: bool, data_dir: Path | None) -> str:
    """Return a data set's name if it can be had, else that of random images of its size."""
    if not quick:
        try:
            datasets.load(name, np.random.default_rng(0), data_dir)
            return name
        except BadInput:
            pass
    return "random-28"


def lr_setting(quick: bool, data_dir: Path | None, **fields: object) -> Setting:
    """LR on MNIST as in the paper, with other fields at will."""
    name = at_hand("mnist", quick, data_dir)
    return Setting(dataset=name, model="lr", learning_rate=0.1, **fields)
