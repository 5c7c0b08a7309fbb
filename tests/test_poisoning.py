"""Data poisoning: how labels are changed."""

import numpy as np
import pytest
import reference

from fltrust_repro.attacks import attacks
from fltrust_repro.poisoning import flip_labels


@pytest.mark.parametrize("classes", [2, 8, 10])
def test_every_label_flips_as_the_paper_says(classes):
    labels = np.arange(classes, dtype=np.int32).reshape(1, -1)
    flipped = flip_labels(labels, classes)
    assert flipped.tolist() == [[reference.flip(label, classes) for label in range(classes)]]
    assert flipped.dtype == labels.dtype
    assert labels.tolist() == [list(range(classes))]
    assert flip_labels(flipped, classes).tolist() == labels.tolist()


def test_label_flipping_is_an_attack_on_data_alone():
    entry = attacks["label-flip"]
    assert entry.craft is None
    assert entry.poison(np.array([0, 1, 9]), 10).tolist() == [9, 8, 0]
