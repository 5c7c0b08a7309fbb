"""Exact updates of all workers for the CNN of Table 7a, compiled for the CPU.

Arrays are (channels, examples, height, width), so that a convolution is one matrix product of its
weight with the patches of all examples.
"""

from __future__ import annotations

import numpy as np

from fltrust_repro.compiled import compiled
from fltrust_repro.gradients import Compiled, softmax_residual

_SCORE_CHUNK = 25
_HELD = 2**25 - 2**16  # bytes; the most that glibc learns from
_SHARED_PASS = 48  # examples; more of the small CNN's layers would leave the core's cache


@compiled
def _patches(x: np.ndarray, kh: int, kw: int) -> np.ndarray:
    channels, n, height, width = x.shape
    oh, ow = height - kh + 1, width - kw + 1
    out = np.empty((channels * kh * kw, n, oh, ow), dtype=np.float32)
    for c in range(channels):
        for i in range(kh):
            for j in range(kw):
                target = out[(c * kh + i) * kw + j]
                for e in range(n):
                    for a in range(oh):
                        for b in range(ow):
                            target[e, a, b] = x[c, e, a + i, b + j]
    return out.reshape(channels * kh * kw, n * oh * ow)


@compiled
def _patches_gradient(columns: np.ndarray, x_gradient: np.ndarray, kh: int, kw: int) -> None:
    channels, n, height, width = x_gradient.shape
    oh, ow = height - kh + 1, width - kw + 1
    source = columns.reshape(channels * kh * kw, n, oh, ow)
    x_gradient[:] = 0
    for c in range(channels):
        for i in range(kh):
            for j in range(kw):
                part = source[(c * kh + i) * kw + j]
                for e in range(n):
                    for a in range(oh):
                        for b in range(ow):
                            x_gradient[c, e, a + i, b + j] += part[e, a, b]


@compiled
def _larger(
    value: np.float32, k: int, best: np.float32, where: np.int32
) -> tuple[np.float32, np.int32]:
    return (value, np.int32(k)) if value > best else (best, where)


@compiled
def _bias_relu_pool(z: np.ndarray, bias: np.ndarray, ph: int) -> tuple[np.ndarray, np.ndarray]:
    """Max pooling of relu(z + bias), and where in z[f, e] each maximum lies, or -1 for relu's 0.

    Windows are two wide and ph = 1 or 2 high; written out like this, a row of them is one loop for
    the core's vector unit. The first of equal values counts, as in Gluon's pooling. The places have
    a row per f and e.
    """
    filters, n, height, width = z.shape
    oh, ow = height // ph, width // 2
    images = z.reshape(filters * n, height, width)
    out = np.empty((filters * n, oh, ow), dtype=np.float32)
    place = np.empty(out.shape, dtype=np.int32)
    for r in range(filters * n):
        floor = -bias[r // n]
        for a in range(oh):
            first, last = a * ph, a * ph + ph - 1
            upper, lower = images[r, first], images[r, last]
            values, places = out[r, a], place[r, a]
            for b in range(ow):
                left, right = 2 * b, 2 * b + 1
                best, where = _larger(upper[left], first * width + left, floor, np.int32(-1))
                best, where = _larger(upper[right], first * width + right, best, where)
                best, where = _larger(lower[left], last * width + left, best, where)
                best, where = _larger(lower[right], last * width + right, best, where)
                values[b] = best - floor
                places[b] = where
    return out.reshape(filters, n, oh, ow), place.reshape(filters * n, oh * ow)


@compiled
def _bias_relu_pool_gradient(gradient: np.ndarray, place: np.ndarray, z: np.ndarray) -> None:
    # Writes d loss / d z into z, whose values are no longer needed.
    images = z.reshape(len(place), -1)
    values = gradient.reshape(place.shape)
    images[:] = 0
    for r in range(len(place)):
        for k in range(place.shape[1]):
            if place[r, k] >= 0:
                images[r, place[r, k]] = values[r, k]


@compiled
def _columns_of(matrix: np.ndarray, n: int, examples: np.ndarray) -> np.ndarray:
    """Of a matrix whose columns belong to n examples in turn, the columns of some of these.

    Of all of them in turn it is the matrix itself, which saves most workers a copy.
    """
    if examples.size == n and (examples == np.arange(n)).all():
        return matrix
    rows, per = matrix.shape[0], matrix.shape[1] // n
    out = np.empty((rows, examples.size * per), dtype=np.float32)
    for r in range(rows):
        for e in range(examples.size):
            start = examples[e] * per
            out[r, e * per : (e + 1) * per] = matrix[r, start : start + per]
    return out


@compiled
def _ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.float32)


@compiled
def _row_sums(matrix: np.ndarray) -> np.ndarray:
    return np.dot(matrix, _ones(matrix.shape[1]))  # numba's own sums along an axis are slow


@compiled
def _examples_first(x: np.ndarray) -> np.ndarray:
    """(channels, n, height, width) -> (n, channels * height * width), as Gluon flattens."""
    channels, n, height, width = x.shape
    out = np.empty((n, channels, height * width), dtype=np.float32)
    for c in range(channels):
        for e in range(n):
            out[e, c] = x[c, e].ravel()
    return out.reshape(n, channels * height * width)


@compiled
def _channels_first(x: np.ndarray, out: np.ndarray) -> None:
    channels, n, height, width = out.shape
    source = x.reshape(n, channels, height, width)
    for c in range(channels):
        for e in range(n):
            out[c, e] = source[e, c]


@compiled
def _cnn_forward(w: np.ndarray, x: np.ndarray, ends: np.ndarray, sizes: tuple) -> tuple:
    """Logits of the CNN for x (channels, n, height, width), and what the gradient needs again.

    `ends` are where the eight parameters end in `w`, in Gluon's order; `sizes` are the filters of
    both convolutions, the hidden units, the kernel and the pooling window's height.
    """
    _channels, n, height, width = x.shape
    f1, f2, hidden, kh, kw, ph = sizes
    h1, w1 = height - kh + 1, width - kw + 1
    h2, w2 = h1 // ph - kh + 1, w1 // 2 - kw + 1
    columns1 = _patches(x, kh, kw)
    z1 = np.dot(w[: ends[0]].reshape(f1, -1), columns1).reshape(f1, n, h1, w1)
    pool1, place1 = _bias_relu_pool(z1, w[ends[0] : ends[1]], ph)
    columns2 = _patches(pool1, kh, kw)
    z2 = np.dot(w[ends[1] : ends[2]].reshape(f2, -1), columns2).reshape(f2, n, h2, w2)
    pool2, place2 = _bias_relu_pool(z2, w[ends[2] : ends[3]], ph)
    flat = _examples_first(pool2)
    dense1 = w[ends[3] : ends[4]].reshape(hidden, -1)
    units = np.maximum(np.dot(flat, dense1.T) + w[ends[4] : ends[5]], np.float32(0))
    logits = np.dot(units, w[ends[5] : ends[6]].reshape(-1, hidden).T) + w[ends[6] :]
    return logits, units, flat, (columns1, z1, pool1, place1), (columns2, z2, pool2, place2)


@compiled
def _cnn_steps(
    w: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    members: np.ndarray,
    counts: np.ndarray,
    rate: np.float32,
    ends: np.ndarray,
    sizes: tuple,
    steps: np.ndarray,
    losses: np.ndarray,
) -> None:
    """A step of gradient descent on each worker's batch-mean cross-entropy, by the chain rule.

    All workers are at the same model w, so that examples x with labels pass through it once,
    whoever holds them; worker i's are `members[i, :counts[i]]`, its step is row i.
    """
    f1, f2, hidden, kh, kw, _ph = sizes
    n = x.shape[1]
    residual, units, flat, layer1, layer2 = _cnn_forward(w, x, ends, sizes)
    columns1, z1, pool1, place1 = layer1
    columns2, z2, pool2, place2 = layer2
    loss = np.empty(n)
    for e in range(n):
        loss[e] = softmax_residual(residual[e : e + 1], labels[e : e + 1])

    back = np.dot(residual, w[ends[5] : ends[6]].reshape(-1, hidden))
    d_units = np.where(units > 0, back, np.float32(0))
    _channels_first(np.dot(d_units, w[ends[3] : ends[4]].reshape(hidden, -1)), pool2)
    _bias_relu_pool_gradient(pool2, place2, z2)
    d_z2 = z2.reshape(f2, -1)
    d_columns2 = np.dot(w[ends[1] : ends[2]].reshape(f2, -1).T, d_z2)
    _patches_gradient(d_columns2, pool1, kh, kw)
    _bias_relu_pool_gradient(pool1, place1, z1)
    d_z1 = z1.reshape(f1, -1)

    for i in range(counts.size):
        row, mine = steps[i], members[i, : counts[i]]
        if mine.size == 0:
            row[:] = 0
            continue
        losses[i] = loss[mine].mean()
        # All parts of the gradient are linear in these, which are far smaller than the row.
        scale = np.float32(-rate / mine.size)
        own_d_z1, own_d_z2 = _columns_of(d_z1, n, mine), _columns_of(d_z2, n, mine)
        own_d_units, own_residual = d_units[mine], residual[mine]
        for small in (own_d_z1, own_d_z2, own_d_units, own_residual):
            small *= scale
        row[: ends[0]].reshape(f1, -1)[:] = np.dot(own_d_z1, _columns_of(columns1, n, mine).T)
        row[ends[0] : ends[1]] = _row_sums(own_d_z1)
        row[ends[1] : ends[2]].reshape(f2, -1)[:] = np.dot(
            own_d_z2, _columns_of(columns2, n, mine).T
        )
        row[ends[2] : ends[3]] = _row_sums(own_d_z2)
        np.dot(own_d_units.T, flat[mine], row[ends[3] : ends[4]].reshape(hidden, -1))
        row[ends[4] : ends[5]] = np.dot(_ones(mine.size), own_d_units)
        row[ends[5] : ends[6]].reshape(-1, hidden)[:] = np.dot(own_residual.T, units[mine])
        row[ends[6] :] = np.dot(_ones(mine.size), own_residual)


@compiled
def _gather_channels_first(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    batch = np.empty((x.shape[1], rows.size, x.shape[2], x.shape[3]), dtype=np.float32)
    for e in range(rows.size):
        for c in range(x.shape[1]):
            batch[c, e] = x[rows[e], c]
    return batch


@compiled
def _cnn_updates(
    w: np.ndarray,
    x: np.ndarray,
    batches: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray,
    learning_rate: float,
    updates: np.ndarray,
    losses: np.ndarray,
    ends: np.ndarray,
    sizes: tuple,
) -> None:
    """Local SGD of every worker; those that hold few examples share a pass of the first round."""
    rounds, workers, batch_size = batches.shape
    rate = np.float32(learning_rate)
    step, unused = np.empty((1, w.size), dtype=np.float32), np.empty(1)
    everything = np.arange(batch_size).reshape(1, -1)
    first = 0
    while first < workers:
        last, together = first + 1, counts[first]
        while rounds == 1 and last < workers and together + counts[last] <= _SHARED_PASS:
            together += counts[last]
            last += 1
        rows, truth = np.empty(together, dtype=np.int64), np.empty(together, dtype=labels.dtype)
        members = np.zeros((last - first, batch_size), dtype=np.int64)
        start = 0
        for i in range(first, last):
            stop = start + counts[i]
            rows[start:stop] = batches[0, i, : counts[i]]
            truth[start:stop] = labels[0, i, : counts[i]]
            members[i - first, : counts[i]] = np.arange(start, stop)
            start = stop
        mine = updates[first:last]
        _shared_pass(
            w, x, rows, truth, members, counts[first:last], rate, mine, losses[first:last], ends,
            sizes,
        )  # fmt: skip
        for r in range(1, rounds if together else 0):
            batch = _gather_channels_first(x, batches[r, first, :together])
            truth, local = labels[r, first, :together], w + mine[0]
            one = counts[first : first + 1]
            _cnn_steps(local, batch, truth, everything, one, rate, ends, sizes, step, unused)
            mine[0] += step[0]
        first = last


@compiled
def _shared_pass(
    w: np.ndarray,
    x: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    members: np.ndarray,
    counts: np.ndarray,
    rate: np.float32,
    updates: np.ndarray,
    losses: np.ndarray,
    ends: np.ndarray,
    sizes: tuple,
) -> None:
    if rows.size == 0:
        updates[:] = 0
    else:
        batch = _gather_channels_first(x, rows)
        _cnn_steps(w, batch, labels, members, counts, rate, ends, sizes, updates, losses)


@compiled
def _cnn_scores(
    w: np.ndarray, x: np.ndarray, ends: np.ndarray, sizes: tuple, scores: np.ndarray, chunk: int
) -> None:
    for start in range(0, len(x), chunk):
        rows = np.arange(start, min(start + chunk, len(x)))
        batch = _gather_channels_first(x, rows)
        scores[start : start + rows.size] = _cnn_forward(w, batch, ends, sizes)[0]


def compiled_cnn(
    classes: int, shape: tuple[int, int, int], kernel: tuple[int, int], pool: tuple[int, int]
) -> Compiled:
    """The CNN of Table 7a: 30 and 50 filters, 200 hidden units, no padding."""
    channels, height, width = shape
    kh, kw = kernel
    last = [((size - k + 1) // p - k + 1) // p for size, k, p in zip((height, width), kernel, pool)]
    flat = 50 * last[0] * last[1]
    lengths = [30 * channels * kh * kw, 30, 50 * 30 * kh * kw, 50, 200 * flat, 200, classes * 200]
    ends = np.cumsum(lengths)
    sizes = (30, 50, 200, kh, kw, pool[0])
    # A block of this size, once freed, teaches glibc to hold on to what a pass frees. Else it gives
    # that back to the system and asks for it again, page by page, for longer than a pass computes.
    np.empty(_HELD, dtype=np.uint8)

    def updates(
        w: np.ndarray,
        x: np.ndarray,
        batches: np.ndarray,
        labels: np.ndarray,
        counts: np.ndarray,
        learning_rate: float,
        *out: np.ndarray,
    ) -> None:
        if len(batches) == 1:
            # Workers that share their examples share most of the work too.
            names = batches[0].astype(np.int64) * classes + labels[0]
            distinct, members = np.unique(names, return_inverse=True)
            if 2 * distinct.size <= counts.sum():
                rows, truth = np.divmod(distinct, classes)
                members = members.reshape(names.shape)
                rate = np.float32(learning_rate)
                _shared_pass(w, x, rows, truth, members, counts, rate, *out, ends, sizes)
                return
        _cnn_updates(w, x, batches, labels, counts, learning_rate, *out, ends, sizes)

    def scores(w: np.ndarray, x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), classes), dtype=np.float32)
        _cnn_scores(w, x, ends, sizes, out, _SCORE_CHUNK)
        return out

    return Compiled(updates, scores)
