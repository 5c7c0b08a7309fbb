"""Rules of a server with a few trusted examples of its own: FLTrust. A league apart.

In a trial they take `--root-size 100`; called by name they are given the server's own update.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from fltrust_repro.aggregation import rule
from fltrust_repro.distances import lengths_and_slopes
from fltrust_repro.weighing import lengths, weighted_sum


@rule("fltrust")
def fltrust(updates: np.ndarray, root: np.ndarray, notes: Counter[str]) -> np.ndarray:
    """FLTrust: mean of updates of the server's own length, by how far they go the server's way.

    With x_0 = `root` the server's own update and TS_i = max(0, cos(x_i, x_0)), the trust score:

        sum_i TS_i (|x_0| / |x_i|) x_i / sum_i TS_i,

    and zero where nobody is trusted (Cao, Fang, Liu, Gong, NDSS 2021, Section IV; their code adds
    1e-9 to lengths and to the sum). Short updates are lengthened, too. A row that is not finite or
    only zeros is not trusted; a root that is not finite trusts nobody. It needs not be told c, and
    it matters where updates are counted from. Notes: "workers kept", how many have a trust score
    above 0, and "trust", the sum of the scores. Allocates 16 bytes a parameter.

    >>> from fltrust_repro.server_rules import fltrust
    >>> fltrust([[4, 0], [0, 9], [-1, 0], [3, 3]], root=[2, 0]).round(3)
    array([1.757, 0.586], dtype=float32)
    """
    long, own = lengths(updates), float(lengths(root[None])[0])
    trust = trust_scores(updates, long, root, own)
    notes["workers kept"] += np.count_nonzero(trust)
    notes["trust"] += trust.sum()
    weights = np.divide(trust, long, out=np.zeros(len(updates)), where=trust > 0)
    scale = own / trust.sum() if trust.any() else 0.0
    return weighted_sum(updates, scale * weights).astype(np.float32)


def trust_scores(updates: np.ndarray, long: np.ndarray, root: np.ndarray, own: float) -> np.ndarray:
    """TS_i of updates (m, d) whose lengths are `long`, root's being `own`: float64 (m,)."""
    trust = np.zeros(len(updates))
    if 0 < own < np.inf:
        usable = (long > 0) & (long < np.inf)
        np.divide(lengths_and_slopes(updates, root)[1], long * own, out=trust, where=usable)
        np.clip(trust, 0, 1, out=trust)
    return trust
