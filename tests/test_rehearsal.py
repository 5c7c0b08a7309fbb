"""One step of training tells a GPU that computes as the CPU does from one that rounds factors."""

from __future__ import annotations

import numpy as np
import pytest

from fltrust_repro import backend, rehearsal
from fltrust_repro.models import models
from fltrust_repro.rehearsal import IN_GLUON, ROUNDING, STEPS


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_timed_and_its_numbers_are_the_cpus(name):
    one = rehearsal.step(name, "cpu")
    assert one.first > 0
    assert one.second > 0
    assert one.off <= 3e-6 < ROUNDING
    assert (one.off > 0) == (name == IN_GLUON)  # whose sums have another order


@pytest.mark.parametrize("name", STEPS[:2])
def test_a_step_on_a_gpu_has_the_cpus_numbers(name, device, monkeypatch):
    places = {"cpu": backend.context("cpu"), "gpu": device}
    monkeypatch.setattr(backend, "context", lambda kind, index=0: places[kind])
    assert 0 < rehearsal.step(name, "gpu").off <= ROUNDING


def as_tf32(values: np.ndarray) -> np.ndarray:
    """Keep ten bits after the leading one, as tensor cores do with factors of float32."""
    bits = values.astype(np.float32).view(np.uint32) + np.uint32(2**12)
    return (bits & ~np.uint32(2**13 - 1)).view(np.float32)


@pytest.mark.parametrize("name", ["lr", "cnn"])
def test_a_device_that_rounds_factors_would_be_seen(name):
    learner = rehearsal._learner(models[name], backend.context("cpu"))
    start = backend.host_view(learner.initial)
    right, rounded = (rehearsal._numbers(learner, w) for w in (start, as_tf32(start)))
    assert rehearsal._off(right, right) == 0
    assert rehearsal._off(rounded, right) > ROUNDING


def test_numbers_that_are_not_finite_would_be_seen():
    right = np.ones(3), np.ones(2)
    for wrong in (np.nan, np.inf):
        assert not rehearsal._off((np.ones(3), np.array([1, wrong])), right) <= ROUNDING
