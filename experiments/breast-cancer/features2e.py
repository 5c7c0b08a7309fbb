"""Plug-in: other features and layers that the paper's text on Breast Cancer leaves room for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import fltrust_repro as fl

if TYPE_CHECKING:
    from mxnet.gluon import HybridBlock

CNN = {"cnn": 0.1}


def _rescaled(name: str, directories: tuple[Path, ...], rng: np.random.Generator) -> fl.Dataset:
    """The program's data set, each feature of the training examples brought to [0, 1]."""
    whole = fl.datasets["breast-cancer"].load(directories, rng)
    low, range_ = whole.train_x.min(axis=0), np.ptp(whole.train_x, axis=0)
    train_x, test_x = ((x - low) / range_ for x in (whole.train_x, whole.test_x))
    return dataclasses.replace(whole, name=name, train_x=train_x, test_x=test_x)


@fl.dataset("breast-cancer-01", learning_rates=CNN, dealing="shared")
def from_0_to_1(directories: tuple[Path, ...], rng: np.random.Generator) -> fl.Dataset:
    """Features from 0 to 1: (x - min) / (max - min)."""
    return _rescaled("breast-cancer-01", directories, rng)


@fl.dataset("breast-cancer-range", learning_rates=CNN, dealing="shared")
def over_their_range(directories: tuple[Path, ...], rng: np.random.Generator) -> fl.Dataset:
    """Features over their range: (x - mean) / (max - min)."""
    scaled = _rescaled("breast-cancer-range", directories, rng)
    center = scaled.train_x.mean(axis=0)
    train_x, test_x = scaled.train_x - center, scaled.test_x - center
    return dataclasses.replace(scaled, train_x=train_x, test_x=test_x)


@fl.model("cnn-1x1", iterations=2000)
def pointwise(classes: int, shape: tuple[int, ...]) -> HybridBlock:
    """Table 7a with kernels and pools of 1: features have no neighbours."""
    from mxnet.gluon import nn

    block = nn.HybridSequential()
    block.add(
        nn.Conv2D(30, 1, activation="relu", in_channels=shape[0]),
        nn.Conv2D(50, 1, activation="relu", in_channels=30),
        nn.Dense(200, activation="relu"),
        nn.Dense(classes, in_units=200),
    )
    return block


@fl.model("dense", iterations=2000)
def dense(classes: int, shape: tuple[int, ...]) -> HybridBlock:
    """The dense layers of Table 7a alone."""
    from mxnet.gluon import nn

    block = nn.HybridSequential()
    block.add(nn.Dense(200, activation="relu"), nn.Dense(classes, in_units=200))
    return block
