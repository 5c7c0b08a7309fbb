"""Mean shift: groups of points, by the places where most of them are.

As scikit-learn's `MeanShift(bandwidth=width, bin_seeding=True, cluster_all=False)`, which asks a
neighbour search about one place at a time: for a hundred points that takes fifty times as long, and
an attack that asks a rule what it would make of this and that waits for it ten thousand times.
"""

from __future__ import annotations

import numpy as np

_STEPS = 301
_STILL = 1e-3  # of the width: a place that moves less has arrived


def mean_shift(points: np.ndarray, width: float) -> np.ndarray:
    """Return the group of each of the points, float64 (n, k), from 0 on, -1 for none: int (n,).

    Places start at the centers of the cells of a grid, `width` wide, that hold points (at the
    points, if no cell holds two), and go to the mean of the points within `width` until they move
    less than a thousandth of it. Of places closer than `width` the one amid most points is kept. A
    point is of the group of the place closest to it, if that is within `width`.

    Fukunaga and Hostetler, 1975, with a flat kernel.

    >>> import numpy as np
    >>> from fltrust_repro.mean_shift import mean_shift
    >>> mean_shift(np.array([[0.0], [0.1], [0.2], [5.0]]), 0.5).tolist()
    [0, 0, 0, 1]
    """
    places, amid = _arrived(points, width)
    centers: list[np.ndarray] = []
    for place in places[np.lexsort((*places.T[::-1], amid))[::-1]]:
        if all(np.linalg.norm(place - center) > width for center in centers):
            centers.append(place)
    if not centers:
        return np.full(len(points), -1)
    away = _distances(points, np.array(centers))
    return np.where(away.min(axis=1) <= width, away.argmin(axis=1), -1)


def reach(points: np.ndarray, share: float) -> float:
    """Return the mean distance at which a point has `share` of all within reach, itself one.

    scikit-learn's `estimate_bandwidth(points, quantile=share)`.

    >>> import numpy as np
    >>> from fltrust_repro.mean_shift import reach
    >>> reach(np.array([[0.0], [1.0], [3.0], [7.0]]), 0.5)
    2.0
    """
    last = max(int(share * len(points)), 1) - 1
    return float(np.sort(_distances(points, points), axis=1)[:, last].mean())


def _arrived(points: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    # Where places end up, and amid how many points each; of those that meet no point none are left.
    cells = np.unique(np.round(points / width), axis=0)
    places = cells * width if len(cells) < len(points) else points.copy()
    amid, moving = np.zeros(len(places), dtype=int), np.arange(len(places))
    for _ in range(_STEPS):
        before = places[moving]
        within = _distances(before, points) <= width
        amid[moving] = count = within.sum(axis=1)
        after = np.where(
            count[:, None] > 0, within @ points / np.maximum(count, 1)[:, None], before
        )
        places[moving] = after
        moving = moving[np.linalg.norm(after - before, axis=1) > _STILL * width]
        if not moving.size:
            break
    return places[amid > 0], amid[amid > 0]


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(some[:, None] - others).sum(axis=2))
