"""Data poisoning: whose labels are changed, and how."""

import numpy as np
import pytest
import reference

from fltrust_repro.attacks import attacks
from fltrust_repro.partition import Shards
from fltrust_repro.poisoning import flip_labels

SHARDS = Shards.of(
    [np.array([4, 0]), np.array([], dtype=np.int64), np.array([2]), np.array([1, 3])]
)
LABELS = np.array([0, 1, 2, 3, 9], dtype=np.int32)


def test_compromised_workers_flip_their_labels_and_nobody_else_does():
    flipped = flip_labels(LABELS, SHARDS, 3, 10)
    assert flipped.tolist() == [9, 1, 7, 3, 0]
    assert flipped.dtype == LABELS.dtype


@pytest.mark.parametrize("classes", [2, 8, 10])
def test_every_label_flips_as_the_paper_says(classes):
    labels = np.arange(classes)
    everything = Shards.of([np.arange(classes)])
    expected = [reference.flip(label, classes) for label in range(classes)]
    assert flip_labels(labels, everything, 1, classes).tolist() == expected


def test_no_compromised_worker_flips_nothing():
    assert flip_labels(LABELS, SHARDS, 0, 10).tolist() == LABELS.tolist()


def test_flipping_twice_is_the_original():
    once = flip_labels(LABELS, SHARDS, 3, 10)
    assert flip_labels(once, SHARDS, 3, 10).tolist() == LABELS.tolist()


def test_the_training_labels_themselves_stay_as_they_are():
    labels = LABELS.copy()
    flip_labels(labels, SHARDS, 4, 10)
    assert labels.tolist() == LABELS.tolist()


def test_label_flipping_is_an_attack_on_data_alone():
    entry = attacks["label-flip"]
    assert entry.craft is None
    assert entry.poison(LABELS, SHARDS, 3, 10).tolist() == [9, 1, 7, 3, 0]
