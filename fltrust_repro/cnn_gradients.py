"""Exact updates of all workers for the CNN of Table 7a, compiled for the CPU.

Arrays are (channels, examples, height, width), so that a convolution is one matrix product of its
weight with the patches of all examples.
"""

from __future__ import annotations

import numpy as np

from fltrust_repro.compiled import Array, compiled
from fltrust_repro.gradients import Compiled, softmax_residual

_SCORE_CHUNK = 25  # examples
_HELD = 2**25 - 2**16  # bytes; the most that glibc learns from


@compiled
def _patches(x: Array, kh: int, kw: int) -> Array:
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
def _patches_gradient(columns: Array, x_gradient: Array, kh: int, kw: int) -> None:
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
def _bias_relu_pool(z: Array, bias: Array, ph: int) -> tuple[Array, Array]:
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
def _bias_relu_pool_gradient(gradient: Array, place: Array, z: Array) -> None:
    # Writes d loss / d z into z, whose values are no longer needed.
    images = z.reshape(len(place), -1)
    values = gradient.reshape(place.shape)
    images[:] = 0
    for r in range(len(place)):
        for k in range(place.shape[1]):
            if place[r, k] >= 0:
                images[r, place[r, k]] = values[r, k]


@compiled
def _columns_of(matrix: Array, n: int, examples: Array) -> Array:
    """Columns of some of n examples; of all in turn the matrix itself, which saves a copy."""
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
def _swapped(x: Array) -> Array:
    """(a, b, height, width) -> (b, a, height, width), one array after another in memory."""
    first, second, height, width = x.shape
    out = np.empty((second, first, height, width), dtype=np.float32)
    for a in range(first):
        for b in range(second):
            out[b, a] = x[a, b]
    return out


@compiled
def _cnn_forward(w: Array, x: Array, layout: tuple) -> tuple:
    """Logits of the CNN for x (channels, n, height, width), and what the gradient needs again.

    `layout` holds where the eight parameters end in `w`, in Gluon's order, and the filters of both
    convolutions, the hidden units, the kernel and the pooling window's height.
    """
    ends, (f1, f2, hidden, kh, kw, ph) = layout
    _channels, n, height, width = x.shape
    h1, w1 = height - kh + 1, width - kw + 1
    h2, w2 = h1 // ph - kh + 1, w1 // 2 - kw + 1
    columns1 = _patches(x, kh, kw)
    z1 = np.dot(w[: ends[0]].reshape(f1, -1), columns1).reshape(f1, n, h1, w1)
    pool1, place1 = _bias_relu_pool(z1, w[ends[0] : ends[1]], ph)
    columns2 = _patches(pool1, kh, kw)
    z2 = np.dot(w[ends[1] : ends[2]].reshape(f2, -1), columns2).reshape(f2, n, h2, w2)
    pool2, place2 = _bias_relu_pool(z2, w[ends[2] : ends[3]], ph)
    flat = _swapped(pool2).reshape(n, -1)  # as Gluon flattens
    dense1 = w[ends[3] : ends[4]].reshape(hidden, -1)
    units = np.maximum(np.dot(flat, dense1.T) + w[ends[4] : ends[5]], np.float32(0))
    logits = np.dot(units, w[ends[5] : ends[6]].reshape(-1, hidden).T) + w[ends[6] :]
    return logits, units, flat, (columns1, z1, pool1, place1), (columns2, z2, pool2, place2)


@compiled
def _cnn_backward(w: Array, x: Array, labels: Array, layout: tuple) -> tuple:
    """Losses of examples, and for each of the four layers its inputs and d loss / d outputs."""
    ends, (f1, f2, hidden, kh, kw, _ph) = layout
    residual, units, flat, layer1, layer2 = _cnn_forward(w, x, layout)
    columns1, z1, pool1, place1 = layer1
    columns2, z2, pool2, place2 = layer2
    loss = np.empty(x.shape[1])
    for e in range(loss.size):
        loss[e] = softmax_residual(residual[e : e + 1], labels[e : e + 1])
    back = np.dot(residual, w[ends[5] : ends[6]].reshape(-1, hidden))
    d_units = np.where(units > 0, back, np.float32(0))
    d_flat = np.dot(d_units, w[ends[3] : ends[4]].reshape(hidden, -1))
    d_pool2 = _swapped(d_flat.reshape(loss.size, f2, pool2.shape[2], pool2.shape[3]))
    _bias_relu_pool_gradient(d_pool2, place2, z2)
    d_z2 = z2.reshape(f2, -1)
    d_columns2 = np.dot(w[ends[1] : ends[2]].reshape(f2, -1).T, d_z2)
    _patches_gradient(d_columns2, pool1, kh, kw)
    _bias_relu_pool_gradient(pool1, place1, z1)
    convolutions = (columns1, z1.reshape(f1, -1)), (columns2, d_z2)
    return loss, convolutions, ((flat, d_units), (units, residual))


@compiled
def _cnn_steps(
    w: Array, x: Array, labels: Array, held: tuple, rate: np.float32, layout: tuple, out: tuple
) -> None:
    """A step of gradient descent on each worker's batch-mean cross-entropy, by the chain rule.

    All workers are at the same model w, so that examples x with labels pass through it once,
    whoever holds them: worker i those of `members[i, :counts[i]]`, and its step is row i.
    """
    (members, counts), (steps, losses), ends, n = held, out, layout[0], x.shape[1]
    loss, convolutions, dense = _cnn_backward(w, x, labels, layout)
    for i in range(counts.size):
        row, mine = steps[i], members[i, : counts[i]]
        if mine.size == 0:
            row[:] = 0
            continue
        losses[i] = loss[mine].mean()
        # A layer's gradient is linear in that of its outputs, which is far smaller than the row.
        scale = np.float32(-rate / mine.size)
        start = 0
        for k in range(2):
            columns, d_outputs = convolutions[k]
            own = _columns_of(d_outputs, n, mine)
            own *= scale
            weight = row[start : ends[2 * k]].reshape(len(own), -1)
            weight[:] = np.dot(own, _columns_of(columns, n, mine).T)
            ones = np.ones(own.shape[1], dtype=np.float32)  # numba's sums along an axis are slow
            row[ends[2 * k] : ends[2 * k + 1]] = np.dot(own, ones)
            start = ends[2 * k + 1]
        for k in range(2):
            inputs, d_outputs = dense[k]
            own = d_outputs[mine]
            own *= scale
            stop = start + own.shape[1] * inputs.shape[1]
            np.dot(own.T, inputs[mine], row[start:stop].reshape(own.shape[1], -1))
            start = stop + own.shape[1]
            row[stop:start] = np.dot(np.ones(mine.size, dtype=np.float32), own)


@compiled
def _gather_channels_first(x: Array, rows: Array) -> Array:
    batch = np.empty((x.shape[1], rows.size, x.shape[2], x.shape[3]), dtype=np.float32)
    for e in range(rows.size):
        for c in range(x.shape[1]):
            batch[c, e] = x[rows[e], c]
    return batch


@compiled
def _cnn_updates(
    w: Array, x: Array, batches: tuple, rate: np.float32, layout: tuple, out: tuple
) -> None:
    """Local SGD of every worker, one after another."""
    (rows, labels, counts), (updates, losses) = batches, out
    rounds, workers, batch_size = rows.shape
    step, unused = np.empty((1, w.size), dtype=np.float32), np.empty(1)
    everything = np.arange(batch_size).reshape(1, -1)
    for i in range(workers):
        update, size = updates[i : i + 1], counts[i]
        if size == 0:
            update[:] = 0
        for r in range(rounds if size else 0):
            batch, truth = _gather_channels_first(x, rows[r, i, :size]), labels[r, i, :size]
            held = everything, counts[i : i + 1]
            if r == 0:
                _cnn_steps(w, batch, truth, held, rate, layout, (update, losses[i : i + 1]))
            else:
                _cnn_steps(w + update[0], batch, truth, held, rate, layout, (step, unused))
                update += step


@compiled
def _cnn_scores(w: Array, x: Array, layout: tuple, scores: Array) -> None:
    for start in range(0, len(x), _SCORE_CHUNK):
        rows = np.arange(start, min(start + _SCORE_CHUNK, len(x)))
        batch = _gather_channels_first(x, rows)
        scores[start : start + rows.size] = _cnn_forward(w, batch, layout)[0]


def compiled_cnn(
    classes: int, shape: tuple[int, ...], kernel: tuple[int, int], pool: tuple[int, int]
) -> Compiled:
    """The CNN of Table 7a: 30 and 50 filters, 200 hidden units, no padding."""
    channels, height, width = shape
    kh, kw = kernel
    last = [((size - k + 1) // p - k + 1) // p for size, k, p in zip((height, width), kernel, pool)]
    flat = 50 * last[0] * last[1]
    lengths = [30 * channels * kh * kw, 30, 50 * 30 * kh * kw, 50, 200 * flat, 200, classes * 200]
    layout = np.cumsum(lengths), (30, 50, 200, kh, kw, pool[0])
    # A block of this size, once freed, teaches glibc to hold on to what a pass frees. Else it gives
    # that back to the system and asks for it again, page by page, for longer than a pass computes.
    np.empty(_HELD, dtype=np.uint8)

    def updates(w: Array, x: Array, batches: tuple, learning_rate: float, *out: Array) -> None:
        (rows, labels, counts), rate = batches, np.float32(learning_rate)
        # Workers that share their examples share most of the first round's work too.
        names = rows[0].astype(np.int64) * classes + labels[0]
        distinct, members = np.unique(names, return_inverse=True)
        if len(rows) == 1 and 2 * distinct.size <= counts.sum():
            shared, truth = np.divmod(distinct, classes)
            batch, held = _gather_channels_first(x, shared), (members.reshape(names.shape), counts)
            _cnn_steps(w, batch, truth, held, rate, layout, out)
        else:
            _cnn_updates(w, x, batches, rate, layout, out)

    def scores(w: Array, x: Array) -> Array:
        out = np.empty((len(x), classes), dtype=np.float32)
        _cnn_scores(w, x, layout, out)
        return out

    return Compiled(updates, scores)
