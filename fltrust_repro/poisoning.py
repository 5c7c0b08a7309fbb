"""Data poisoning: what compromised workers do to their training data before training starts."""

from __future__ import annotations

import numpy as np

from fltrust_repro.partition import Shards


def flip_labels(labels: np.ndarray, shards: Shards, c: int, classes: int) -> np.ndarray:
    """Flip each label l that the first c workers hold to L - l - 1 (Section 4.1).

    Returns a new label array; `labels` stays as it is.
    """
    held = shards.examples[: shards.starts[c]]
    flipped = labels.copy()
    flipped[held] = classes - 1 - labels[held]
    return flipped
