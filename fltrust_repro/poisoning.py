"""Data poisoning: what compromised workers do to their training data."""

from __future__ import annotations

import numpy as np


def flip_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Flip each label l to L - l - 1, L = `classes` (Section 4.1)."""
    return classes - 1 - labels
