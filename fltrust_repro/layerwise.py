"""A rule that judges each layer of an update by itself: who stands apart in one may do in none.

It asks for `layers`, which parameters belong together.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from fltrust_repro.aggregation import rule
from fltrust_repro.compiled import Array, compiled
from fltrust_repro.errors import BadInput
from fltrust_repro.registry import check_default
from fltrust_repro.weighing import lengths, shortening, weighted_sum

_ROUNDING = 1e-9  # of a deviation
_DIGITS = 1 << 11  # of 31 bits of a magnitude 11 are looked at, then 10, then 10


@compiled
def _smallest_of_largest(bits: Array, count: int, tally: Array) -> np.int32:
    # The count-th largest magnitude of a row of float32, as its bits: that is the order of numbers.
    found, shift = np.int32(0), 31
    for width in (11, 10, 10):
        above, shift = shift, shift - width
        digits = np.int32((1 << width) - 1)
        tally[:] = 0
        for j in range(bits.size):
            magnitude = bits[j] & np.int32(0x7FFFFFFF)
            if above == 31 or magnitude >> above == found >> above:
                tally[(magnitude >> shift) & digits] += 1
        digit = digits
        while tally[digit] < count:
            count -= tally[digit]
            digit -= 1
        found |= digit << shift
    return found


@compiled(fastmath={"reassoc", "nsz", "contract"})
def _layer_statistics(
    updates: Array, rows: Array, count: int, ends: Array, squares: Array, signs: Array
) -> None:
    bits, tally = updates.view(np.int32), np.empty(_DIGITS, dtype=np.int64)
    for i in range(len(rows)):
        least = _smallest_of_largest(bits[rows[i]], count, tally)
        for layer in range(len(ends) - 1):
            row = updates[rows[i], ends[layer] : ends[layer + 1]]
            magnitudes = bits[rows[i], ends[layer] : ends[layer + 1]]
            total, up, down = np.float64(0), 0, 0
            for j in range(row.size):
                if magnitudes[j] & np.int32(0x7FFFFFFF) >= least:
                    total += np.float64(row[j]) * row[j]
                    up += row[j] > 0
                    down += row[j] < 0
            squares[layer, i] = total
            signs[layer, i] = (up - down) / max(up + down, 1)


def layer_statistics(
    updates: np.ndarray, rows: np.ndarray, keep: int, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row's `keep` largest magnitudes, by layer: length, and purity of signs.

    `rows`, int (n,), are those looked at, which are finite; `ends`, int (k + 1,), says where layers
    begin and end. Values as large as the smallest of these are counted too. Returns float64 (k, n)
    both; purity is the share of positive signs, 1/2 where there is no sign.
    """
    squares, signs = np.empty((2, len(ends) - 1, len(rows)))
    _layer_statistics(updates, rows, keep, ends, squares, signs)
    return np.sqrt(squares), (1 + signs) / 2


def ordinary(values: np.ndarray, radius: float) -> np.ndarray:
    """Which values (n,) lie within `radius` standard deviations of their median: bool (n,)."""
    # Both of two values lie one deviation away, whatever the rounding.
    return np.abs(values - np.median(values)) <= radius * np.std(values) * (1 + _ROUNDING)


@rule("lasa")
def lasa(
    updates: np.ndarray,
    layers: tuple[slice, ...],
    notes: Counter[str],
    *,
    sparsity: float = 0.3,
    norm_radius: float = 2.0,
    sign_radius: float = 1.0,
) -> np.ndarray:
    """LASA: in each layer, the mean of those whose length and signs there are ordinary.

    (1) Updates longer than the median length are shortened to it. (2) Of each, the 1 - `sparsity`
    of all parameters of largest magnitude are looked at. (3) In each layer, with v_i the length of
    what is left there of worker i, who is kept if |v_i - med v| / std v <= `norm_radius`, and
    likewise with the purity of signs 1/2 (1 + sum_j sign x_ij / sum_j |sign x_ij|) and
    `sign_radius`; where none is, all are. The layer's mean is that of its shortened updates, whole.

    Xu, Zhang and Hu, "Achieving Byzantine-resilient federated learning via layer-adaptive
    sparsified model aggregation", WACV 2025, Algorithm 1. The radii are theirs for all data but
    CIFAR; those are 1 and 1, the default of their code, in which the mean is, by lists that share
    memory, of what is left after (2). It spares biases in (2); here all parameters are alike, and
    magnitudes equal to the smallest looked at are looked at, too. A row that is not finite is left
    out. Notes: "workers kept", the mean over layers. Allocates 10 bytes a parameter.

    >>> from fltrust_repro.layerwise import lasa
    >>> lasa([[1, 2], [2, 1], [1.5, 1.5], [-9, -9]], sparsity=0.0).round(2)
    array([1.5, 1.5], dtype=float32)
    """
    check_default("rule 'lasa'", "norm_radius", norm_radius, float)
    check_default("rule 'lasa'", "sign_radius", sign_radius, float)
    if not 0 <= sparsity < 1:
        raise BadInput(f"rule 'lasa': sparsity is {sparsity}; give a number from 0 to below 1.")
    out, long = np.full(updates.shape[1], np.nan, dtype=np.float32), lengths(updates)
    rows = np.flatnonzero(np.isfinite(long))
    if not rows.size:
        return out
    factors = shortening(long, float(np.median(long[rows])))
    keep = max(round((1 - sparsity) * len(out)), 1)
    ends = np.array([0, *(layer.stop for layer in layers)])
    norms, purity = layer_statistics(updates, rows, keep, ends)
    sizes = []
    for layer, norm, pure in zip(layers, norms * factors[rows], purity):
        kept = ordinary(norm, norm_radius) & ordinary(pure, sign_radius)
        chosen = rows[kept] if kept.any() else rows
        weights = np.zeros(len(updates))
        weights[chosen] = factors[chosen] / len(chosen)
        out[layer] = weighted_sum(updates, weights, layer)
        sizes.append(len(chosen))
    notes["workers kept"] += np.array(sizes).mean()
    return out
