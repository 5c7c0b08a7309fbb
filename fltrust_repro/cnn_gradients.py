"""Exact updates of all workers for the CNN of Table 7a, compiled for the CPU.

Arrays are (channels, examples, height, width), so that a convolution is one matrix product of its
weight with the patches of all examples.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fltrust_repro.gradients import Compiled, softmax_residual

_SCORE_CHUNK = 50
_SHARED_PASS = 48  # examples; more of the small CNN's layers would leave the core's cache


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
def _bias_relu_pool(
    z: np.ndarray, bias: np.ndarray, ph: int, pw: int
) -> tuple[np.ndarray, np.ndarray]:
    """Max pooling of relu(z + bias), and where in z[f, e] each maximum lies, or -1 for relu's 0.

    The first of equal values counts, as in Gluon's pooling.
    """
    filters, n, height, width = z.shape
    oh, ow = height // ph, width // pw
    out = np.empty((filters, n, oh, ow), dtype=np.float32)
    place = np.empty(out.shape, dtype=np.int32)
    for f in range(filters):
        for e in range(n):
            image = z[f, e].ravel()
            for a in range(oh):
                for b in range(ow):
                    best, where = -bias[f], np.int32(-1)
                    for i in range(ph):
                        start = (a * ph + i) * width + b * pw
                        for k in range(start, start + pw):
                            higher = image[k] > best
                            best = image[k] if higher else best
                            where = np.int32(k) if higher else where
                    out[f, e, a, b] = best + bias[f]
                    place[f, e, a, b] = where
    return out, place


@njit(cache=True)
def _bias_relu_pool_gradient(
    gradient: np.ndarray, place: np.ndarray, starts: np.ndarray, z: np.ndarray, bias: np.ndarray
) -> None:
    # Writes d loss / d z into z, whose values are no longer needed, and each worker's d / d bias.
    z[:] = 0
    for f in range(gradient.shape[0]):
        for i in range(len(starts) - 1):
            total = 0.0
            for e in range(starts[i], starts[i + 1]):
                image, values, where = z[f, e].ravel(), gradient[f, e].ravel(), place[f, e].ravel()
                for k in range(where.size):
                    if where[k] >= 0:
                        image[where[k]] = values[k]
                        total += values[k]
            bias[i, f] = total


@njit(cache=True)
def _columns(matrix: np.ndarray, start: int, stop: int) -> np.ndarray:
    if stop - start == matrix.shape[1]:
        return matrix
    return np.ascontiguousarray(matrix[:, start:stop])


@njit(cache=True)
def _examples_first(x: np.ndarray) -> np.ndarray:
    """(channels, n, height, width) -> (n, channels * height * width), as Gluon flattens."""
    channels, n, height, width = x.shape
    out = np.empty((n, channels, height * width), dtype=np.float32)
    for c in range(channels):
        for e in range(n):
            out[e, c] = x[c, e].ravel()
    return out.reshape(n, channels * height * width)


@njit(cache=True)
def _channels_first(x: np.ndarray, out: np.ndarray) -> None:
    channels, n, height, width = out.shape
    source = x.reshape(n, channels, height, width)
    for c in range(channels):
        for e in range(n):
            out[c, e] = source[e, c]


@njit(cache=True)
def _cnn_forward(w: np.ndarray, x: np.ndarray, ends: np.ndarray, sizes: tuple) -> tuple:
    """Logits of the CNN for x (channels, n, height, width), and what the gradient needs again.

    `ends` are where the eight parameters end in `w`, in Gluon's order; `sizes` are the filters of
    both convolutions, the hidden units, the kernel and the pooling window.
    """
    _channels, n, height, width = x.shape
    f1, f2, hidden, kh, kw, ph, pw = sizes
    h1, w1 = height - kh + 1, width - kw + 1
    h2, w2 = h1 // ph - kh + 1, w1 // pw - kw + 1
    columns1 = _patches(x, kh, kw)
    z1 = np.dot(w[: ends[0]].reshape(f1, -1), columns1).reshape(f1, n, h1, w1)
    pool1, place1 = _bias_relu_pool(z1, w[ends[0] : ends[1]], ph, pw)
    columns2 = _patches(pool1, kh, kw)
    z2 = np.dot(w[ends[1] : ends[2]].reshape(f2, -1), columns2).reshape(f2, n, h2, w2)
    pool2, place2 = _bias_relu_pool(z2, w[ends[2] : ends[3]], ph, pw)
    flat = _examples_first(pool2)
    dense1 = w[ends[3] : ends[4]].reshape(hidden, -1)
    units = np.maximum(np.dot(flat, dense1.T) + w[ends[4] : ends[5]], np.float32(0))
    logits = np.dot(units, w[ends[5] : ends[6]].reshape(-1, hidden).T) + w[ends[6] :]
    return logits, units, flat, (columns1, z1, pool1, place1), (columns2, z2, pool2, place2)


@njit(cache=True)
def _cnn_gradients(
    w: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    sizes: tuple,
    gradients: np.ndarray,
    losses: np.ndarray,
) -> None:
    """Gradient of each worker's batch-mean cross-entropy, by the chain rule from the last layer.

    All workers are at the same model w, so they share one pass; worker i's examples are
    starts[i]..starts[i + 1] - 1 of x, its gradient is row i.
    """
    f1, f2, hidden, kh, kw, _ph, _pw = sizes
    residual, units, flat, layer1, layer2 = _cnn_forward(w, x, ends, sizes)
    columns1, z1, pool1, place1 = layer1
    columns2, z2, pool2, place2 = layer2
    for i in range(len(losses)):
        mine = slice(starts[i], starts[i + 1])
        if starts[i] < starts[i + 1]:
            losses[i] = softmax_residual(residual[mine], labels[mine])

    back = np.dot(residual, w[ends[5] : ends[6]].reshape(-1, hidden))
    d_units = np.where(units > 0, back, np.float32(0))
    _channels_first(np.dot(d_units, w[ends[3] : ends[4]].reshape(hidden, -1)), pool2)
    _bias_relu_pool_gradient(pool2, place2, starts, z2, gradients[:, ends[2] : ends[3]])
    d_z2 = z2.reshape(f2, -1)
    d_columns2 = np.dot(w[ends[1] : ends[2]].reshape(f2, -1).T, d_z2)
    _patches_gradient(d_columns2, pool1, kh, kw)
    _bias_relu_pool_gradient(pool1, place1, starts, z1, gradients[:, ends[0] : ends[1]])
    d_z1 = z1.reshape(f1, -1)

    n = x.shape[1]
    per1, per2 = columns1.shape[1] // n, columns2.shape[1] // n
    for i in range(len(losses)):
        start, stop, row = starts[i], starts[i + 1], gradients[i]
        if start == stop:
            row[:] = 0
            continue
        row[: ends[0]].reshape(f1, -1)[:] = np.dot(
            _columns(d_z1, start * per1, stop * per1),
            _columns(columns1, start * per1, stop * per1).T,
        )
        row[ends[1] : ends[2]].reshape(f2, -1)[:] = np.dot(
            _columns(d_z2, start * per2, stop * per2),
            _columns(columns2, start * per2, stop * per2).T,
        )
        mine = slice(start, stop)
        np.dot(d_units[mine].T, flat[mine], row[ends[3] : ends[4]].reshape(hidden, -1))
        row[ends[4] : ends[5]] = d_units[mine].sum(axis=0)
        row[ends[5] : ends[6]].reshape(-1, hidden)[:] = np.dot(residual[mine].T, units[mine])
        row[ends[6] :] = residual[mine].sum(axis=0)


@njit(cache=True)
def _gather_channels_first(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    batch = np.empty((x.shape[1], rows.size, x.shape[2], x.shape[3]), dtype=np.float32)
    for e in range(rows.size):
        for c in range(x.shape[1]):
            batch[c, e] = x[rows[e], c]
    return batch


@njit(cache=True)
def _cnn_updates(
    w: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    batches: np.ndarray,
    counts: np.ndarray,
    learning_rate: float,
    updates: np.ndarray,
    losses: np.ndarray,
    ends: np.ndarray,
    sizes: tuple,
) -> None:
    rounds, workers = batches.shape[0], counts.size
    gradient = np.empty((1, w.size), dtype=np.float32)
    unused = np.empty(1)
    first = 0
    while first < workers:
        last = first + 1
        together = counts[first]
        while rounds == 1 and last < workers and together + counts[last] <= _SHARED_PASS:
            together += counts[last]
            last += 1
        starts = np.zeros(last - first + 1, dtype=np.int64)
        starts[1:] = np.cumsum(counts[first:last])
        rows = np.empty(together, dtype=np.int64)
        for i in range(first, last):
            rows[starts[i - first] : starts[i - first + 1]] = batches[0, i, : counts[i]]
        mine = updates[first:last]
        if together == 0:
            mine[:] = 0
        else:
            batch = _gather_channels_first(x, rows)
            own = losses[first:last]
            _cnn_gradients(w, batch, labels[rows], starts, ends, sizes, mine, own)
            mine *= -np.float32(learning_rate)
        for r in range(1, rounds if together else 0):
            rows = batches[r, first, : counts[first]]
            batch, local = _gather_channels_first(x, rows), w + mine[0]
            _cnn_gradients(local, batch, labels[rows], starts, ends, sizes, gradient, unused)
            mine[0] -= np.float32(learning_rate) * gradient[0]
        first = last


@njit(cache=True)
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
    (kh, kw), (ph, pw) = kernel, pool
    last = [((size - k + 1) // p - k + 1) // p for size, k, p in zip((height, width), kernel, pool)]
    flat = 50 * last[0] * last[1]
    lengths = [30 * channels * kh * kw, 30, 50 * 30 * kh * kw, 50, 200 * flat, 200, classes * 200]
    ends = np.cumsum(lengths)
    sizes = (30, 50, 200, kh, kw, ph, pw)

    def updates(*arguments: np.ndarray) -> None:
        _cnn_updates(*arguments, ends, sizes)

    def scores(w: np.ndarray, x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), classes), dtype=np.float32)
        _cnn_scores(w, x, ends, sizes, out, _SCORE_CHUNK)
        return out

    return Compiled(updates, scores)
