"""The selection of models with the least diameter, exactly, as minimum-diameter averaging keeps."""

from __future__ import annotations

import numpy as np

from fltrust_repro.compiled import Array, compiled


@compiled
def _can_part(apart: Array, left: Array, budget: int) -> bool:
    # Whether no two of those left are apart once at most `budget` of them are removed: a vertex
    # cover. A model apart from one other only need never be removed: the other is. On cycles any
    # one may be. Else, the one with most others apart from it is removed, or all these others are.
    left = left.copy()
    while True:
        pairs, most, worst, sure = 0, 0, -1, -1
        for i in range(len(left)):
            if left[i]:
                row, degree = apart[i], 0
                for k in range(len(left)):
                    degree += left[k] & row[k]
                pairs += degree
                if degree > most:
                    most, worst = degree, i
                if degree == 1:
                    sure = int(np.argmax(left & row))
        if pairs > 2 * budget * most:
            return False
        if most <= 1:
            return True
        if sure < 0 and most > 2:
            break
        left[sure if sure >= 0 else worst] = False
        budget -= 1
    left[worst] = False
    if _can_part(apart, left, budget - 1):
        return True
    left &= ~apart[worst]
    return most <= budget and _can_part(apart, left, budget - most)


@compiled
def _first_together(apart: Array, budget: int) -> Array:
    # The first in order of all selections that leave out `budget` models and hold no two apart.
    left, kept = np.ones(len(apart), dtype=np.bool_), np.zeros(len(apart), dtype=np.bool_)
    count = len(apart) - budget
    for i in range(len(apart)):
        if not left[i] or count == 0:
            continue
        others = left & ~apart[i]
        removed = np.count_nonzero(left) - np.count_nonzero(others)
        if removed <= budget and _can_part(apart, others, budget - removed):
            left, budget, kept[i] = others, budget - removed, True
            count -= 1
        else:
            left[i] = False
            budget -= 1
    return kept


def smallest_diameter(squared: np.ndarray, c: int) -> np.ndarray:
    """Mark the m - c models whose largest distance is least, the first in order: bool (m,).

    Exact, by bisection over the distances (m, m): whether so many lie within one is whether c
    removals leave no two that are farther apart: a vertex cover, found in at most about 1.47^c
    steps and not the m! / (c! (m - c)!) of a look at every selection.
    """
    m = len(squared)
    distances = np.unique(squared)
    low, high = 0, len(distances) - 1
    while low < high:
        middle = (low + high) // 2
        if _can_part(squared > distances[middle], np.ones(m, dtype=bool), c):
            high = middle
        else:
            low = middle + 1
    return _first_together(squared > distances[low], c)
