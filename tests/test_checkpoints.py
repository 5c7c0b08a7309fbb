"""Trials that survive: broken off wherever, they go on and end with the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_training import need

import fltrust_repro as fl
from fltrust_repro import checkpoints as module
from fltrust_repro import machine, trial_process
from fltrust_repro.checkpoints import Checkpoints
from fltrust_repro.errors import Raised
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.training import Snapshot, run_trial
from fltrust_repro.trials import Trial, TrialName

ALWAYS = 1e-9  # minutes: after each iteration
LR = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 24}
CNN = {**LR, "dataset": "breast-cancer", "model": "cnn", "iterations": 14}
RESNET20 = {
    "dataset": "digits", "model": "resnet20", "workers": 5, "compromised": 1, "iterations": 12
}  # fmt: skip
FULL = {"rule": "trimmed-mean", "attack": "trimmed-mean"}
PARTIAL = {"rule": "median", "attack": "trimmed-mean", "knowledge": "partial"}
KRUM = {"rule": "krum", "attack": "krum"}
KINDS = {
    "krum attack": {**LR, **KRUM},
    "partial knowledge": {**LR, **PARTIAL},
    "krum attack, partial": {**LR, **KRUM, "knowledge": "partial"},
    "gaussian": {**LR, "rule": "bulyan", "compromised": 3, "attack": "gaussian"},
    "dealt each iteration": {**LR, **PARTIAL, "dealing": "each-iteration"},
    "dealt shared": {**LR, **FULL, "dealing": "shared"},
    "some selected": {**LR, **PARTIAL, "selected": 8, "poisoned_fraction": 0.5},
    "a defense with ties": {**LR, **KRUM, "defense": "union"},
    "several rounds": {**LR, **FULL, "rounds": 2},
    "cnn": {**CNN, **PARTIAL},
    "cnn, krum, defense": {**CNN, **KRUM, "defense": "err"},
    "batch normalisation": {**RESNET20, **FULL},
    "batch normalisation, rounds": {**RESNET20, **FULL, "rounds": 2, "iterations": 4},
}


class Broken(Exception):
    """What breaks a trial off."""


@pytest.fixture
def beside(tmp_path):
    """Checkpoints after each iteration, beside a file that might be a store."""
    (tmp_path / "trials.sqlite").touch()
    yield Checkpoints(tmp_path / "trials.sqlite", ALWAYS)
    trial_process.prepare(0, lambda: None)


def run(setting: Setting, kept: Checkpoints | None, stop: int | None = None) -> tuple[object, int]:
    """Run a trial, and break it off in its iteration `stop`; also how many iterations it did."""
    done = 0

    def after_iteration() -> None:
        nonlocal done
        done += 1
        if done == stop:
            raise Broken

    trial_process.prepare(0, after_iteration)
    return trial_process.run(setting, 3, "1", "cpu", None, (), kept), done


def numbers(trial: object) -> dict:
    """All that a trial's seed decides."""
    assert isinstance(trial, Trial), trial
    left_out = ("seconds", "finished")
    return {name: value for name, value in trial.row().items() if name not in left_out}


def file_of(kept: Checkpoints) -> Path:
    [file] = kept.folder.iterdir()
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_broken_off_again_and_again_ends_with_the_same_bits(kind, beside):
    setting, rng = Setting.from_dict(KINDS[kind]), random.Random(kind)
    whole, left = run(setting, None)
    while left > 1:
        stop = rng.randint(2, max(2, left // 2))
        broken, done = run(setting, beside, stop)
        assert isinstance(broken, Raised)
        assert done == stop
        left -= stop - 1  # the iteration that broke off is done again
    again, done = run(setting, beside)
    assert done == left
    assert numbers(again) == numbers(whole)
