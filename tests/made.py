"""Inputs that many tests make."""

from __future__ import annotations

import numpy as np


def normal(m: int, d: int, seed: int = 0) -> np.ndarray:
    """Updates of independent standard normal numbers: float32 (m, d)."""
    return np.random.default_rng(seed).standard_normal((m, d)).astype(np.float32)
