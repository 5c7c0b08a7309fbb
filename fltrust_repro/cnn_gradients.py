"""Exact updates of all workers for the CNN of Table 7a, compiled for the CPU.

Three facts make it quick. All workers stand at the received model in the first round, so that their
examples pass through it together. Max pooling lets one output in a window through, so that behind
it gradients are sums over windows, not over all outputs. And maps lie in memory as (height, width,
channels), the 30 of the first convolution in 32 lanes, whole vectors of the core: what a kernel of
the second one sees in a row of the map is one run of numbers. The 31st lane is 1 everywhere; its
weight is the next layer's bias, which so needs no code.

Kernels are 3 wide and 3 or 1 high, pooling windows 2 wide and 2 or 1 high. What they would cut off
at the right and lower edges is never computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fltrust_repro.compiled import Array, compiled
from fltrust_repro.gradients import Compiled, softmax_residual

_FILTERS = 30, 50
_HIDDEN = 200
_LANES = 32
_RUN = 3 * _LANES  # of one row of the second convolution's kernel
_CHUNK = 4  # examples, whose patches stay in the core's cache
_TOGETHER = 8  # workers
_HELD = 2**25 - 2**16  # bytes; the most that glibc learns from


@compiled
def _lines(rows: int, length: int) -> Array:
    """An array whose rows start with a cache line, in two of which each vector would lie else."""
    memory = np.empty(rows * length + 16, dtype=np.float32)
    skipped = -(memory.ctypes.data // 4) % 16
    return memory[skipped : skipped + rows * length].reshape(rows, length)


# --- forward


@compiled
def _taps(image: Array, kh: int, out: Array) -> None:
    """What the first convolution's weights see: one of them a row, and a last row for the bias."""
    _, height, width = out.shape
    for c in range(image.shape[0]):
        for i in range(kh):
            for j in range(3):
                target = out[(c * kh + i) * 3 + j]
                for a in range(height):
                    for b in range(width):
                        target[a, b] = image[c, a + i, b + j]
    out[-1] = 1


@compiled
def _patches(maps: Array, kh: int, out: Array) -> None:
    """What the second convolution's filters see: a row for each of their outputs."""
    n, height, width, _ = out.shape
    for e in range(n):
        for a in range(height):
            for b in range(width):
                for i in range(kh):
                    target, source = out[e, a, b, i * _RUN :], maps[e, a + i, b * _LANES :]
                    for k in range(_RUN):
                        target[k] = source[k]


@compiled
def _larger(
    value: np.float32, k: int, best: np.float32, where: np.int32
) -> tuple[np.float32, np.int32]:
    return (value, np.int32(k)) if value > best else (best, where)


@compiled
def _relu_pool(z: Array, ph: int, width: int, values: Array, places: Array) -> None:
    """Max pooling of relu(z), z (height, width, filters), and where each maximum was seen.

    That is the place a * width + b of its patch's corner in the layer's input, whose width is given,
    or -1 for relu's 0. The first of equal values counts, as in Gluon's pooling.
    """
    windows = z.shape[1] // 2
    for k in range(len(values)):
        first, left = k // windows * ph, k % windows * 2
        last, right = first + ph - 1, left + 1
        a, b, c, d = z[first, left], z[first, right], z[last, left], z[last, right]
        upper, lower = first * width + left, last * width + left
        for f in range(z.shape[2]):
            best, where = _larger(a[f], upper, np.float32(0), np.int32(-1))
            best, where = _larger(b[f], upper + 1, best, where)
            best, where = _larger(c[f], lower, best, where)
            best, where = _larger(d[f], lower + 1, best, where)
            values[k, f] = best
            places[k, f] = where


@compiled
def _weights(w: Array, layout: tuple) -> tuple:
    """Weights of the four layers; those of the convolutions with their biases, as maps lie."""
    ends, (taps, kh, _, _, flat) = layout
    f1, f2 = _FILTERS
    first, second = _lines(taps + 1, _LANES), _lines(f2, kh * _RUN)
    first[:], second[:] = 0, 0
    first[:taps, :f1] = w[: ends[0]].reshape(f1, taps).T
    first[taps, :f1] = w[ends[0] : ends[1]]
    first[taps, f1] = 1
    kernels = w[ends[1] : ends[2]].reshape(f2, f1, kh * 3)
    lanes = second.reshape(f2, kh * 3, _LANES)
    for f in range(f2):
        lanes[f, :, :f1] = kernels[f].T
    lanes[:, 0, f1] = w[ends[2] : ends[3]]
    dense1 = w[ends[3] : ends[4]].reshape(_HIDDEN, flat), w[ends[4] : ends[5]]
    return first, second, dense1, (w[ends[5] : ends[6]].reshape(-1, _HIDDEN), w[ends[6] :])


@compiled
def _convolved(first: Array, second: Array, x: Array, rows: Array, layout: tuple) -> tuple:
    """Maps after either convolution's pooling, of examples `rows` of x, and the places in both."""
    _, (taps, kh, ph, map_width, _) = layout
    n, f2 = rows.size, _FILTERS[1]
    h1, w1 = (x.shape[2] - kh + 1) // ph * ph, map_width * 2
    map_height = h1 // ph
    h2, w2 = (map_height - kh + 1) // ph * ph, (map_width - 2) // 2 * 2
    windows = h2 // ph * w2 // 2
    maps = _lines(n, map_height * map_width * _LANES)
    places1 = np.empty((n, map_height * map_width, _LANES), dtype=np.int32)
    flat = np.empty((n, f2 * windows), dtype=np.float32)
    places2 = np.empty((n, windows, f2), dtype=np.int32)
    seen = np.empty((taps + 1, h1, w1), dtype=np.float32)
    z1 = _lines(h1 * w1, _LANES)
    patches, z2 = _lines(_CHUNK * h2 * w2, kh * _RUN), _lines(_CHUNK * h2 * w2, f2)
    pooled = np.empty((windows, f2), dtype=np.float32)
    for start in range(0, n, _CHUNK):
        count = min(_CHUNK, n - start)
        for e in range(start, start + count):
            _taps(x[rows[e]], kh, seen)
            np.dot(seen.reshape(taps + 1, -1).T, first, z1)
            values = maps[e].reshape(-1, _LANES)
            _relu_pool(z1.reshape(h1, w1, _LANES), ph, x.shape[3], values, places1[e])
        some = maps[start : start + count].reshape(count, map_height, map_width * _LANES)
        _patches(some, kh, patches.reshape(_CHUNK, h2, w2, kh * _RUN)[:count])
        outputs = count * h2 * w2
        np.dot(patches[:outputs], second.T, z2[:outputs])
        for e in range(count):
            z = z2[e * h2 * w2 : (e + 1) * h2 * w2].reshape(h2, w2, f2)
            _relu_pool(z, ph, map_width, pooled, places2[start + e])
            flat[start + e].reshape(f2, windows)[:] = pooled.T  # as Gluon flattens
    return maps, places1, flat, places2


@compiled
def _dense(inputs: Array, layer: tuple) -> Array:
    weight, bias = layer
    return np.dot(inputs, weight.T) + bias


# --- backward


@compiled(fastmath={"contract"})
def _second_gradient(
    maps: Array, places: Array, d_pooled: Array, mine: Array, width: int, gradient: Array
) -> None:
    """d loss / d weight (filters, kernel's lanes): a filter's windows add what they let through.

    Four windows at a time, the last ones with zeros, so that sums are loaded and stored less often.
    """
    windows, filters = places.shape[1:]
    at, by = np.empty(windows + 3, dtype=np.int64), np.empty(windows + 3, dtype=np.float32)
    gradient[:] = 0
    for e in mine:
        for f in range(filters):
            live = 0
            for k in range(windows):
                at[live], by[live] = places[e, k, f] * _LANES, d_pooled[e, f * windows + k]
                live += places[e, k, f] >= 0
            at[live : live + 3] = 0
            by[live : live + 3] = 0
            for k in range(0, live, 4):
                p, q, r, s = by[k], by[k + 1], by[k + 2], by[k + 3]
                for i in range(gradient.shape[1] // _RUN):
                    target, row = gradient[f, i * _RUN :], maps[e, i * width * _LANES :]
                    one, two = row[at[k] :], row[at[k + 1] :]
                    three, four = row[at[k + 2] :], row[at[k + 3] :]
                    for j in range(_RUN):
                        target[j] += p * one[j] + q * two[j] + r * three[j] + s * four[j]


@compiled(fastmath={"contract"})
def _maps_gradient(
    second: Array, places: Array, d_pooled: Array, width: int, gradient: Array
) -> None:
    """d loss / d maps: each window adds its filter where that saw the maximum."""
    windows, filters = places.shape[1:]
    gradient[:] = 0
    for e in range(len(places)):
        for f in range(filters):
            for k in range(windows):
                place, by = places[e, k, f], d_pooled[e, f * windows + k]
                for i in range(second.shape[1] // _RUN if place >= 0 else 0):
                    target = gradient[e, (place + i * width) * _LANES :]
                    kernel = second[f, i * _RUN :]
                    for j in range(_RUN):
                        target[j] += by * kernel[j]


@compiled(fastmath={"contract"})
def _first_gradient(
    x: Array, rows: Array, places: Array, d_maps: Array, mine: Array, kh: int, ph: int,
    gradient: Array,
) -> None:  # fmt: skip
    """d loss / d weight (taps and bias, lanes) of the first convolution, flat."""
    width, lanes = x.shape[3], _LANES
    windows, bias = (width - 2) // 2, gradient[-lanes:]
    parts = _lines(4, lanes).ravel()  # of d loss / d maps, for each output in a window
    gradient[:] = 0
    for e in mine:
        image = x[rows[e]]
        for k in range(places.shape[1]):
            a, b = k // windows * ph, k % windows * 2
            place, d = places[e, k], d_maps[e, k * lanes :]
            upper = np.int32(a * width + b)
            lower = np.int32(upper + width if ph == 2 else -3)
            for f in range(lanes):
                bias[f] += d[f] if place[f] >= 0 else np.float32(0)
                parts[f] = d[f] if place[f] == upper else np.float32(0)
                parts[lanes + f] = d[f] if place[f] == upper + np.int32(1) else np.float32(0)
                parts[2 * lanes + f] = d[f] if place[f] == lower else np.float32(0)
                parts[3 * lanes + f] = d[f] if place[f] == lower + np.int32(1) else np.float32(0)
            for c in range(image.shape[0]):
                for i in range(kh):
                    over, under = image[c, a + i, b:], image[c, a + ph - 1 + i, b:]
                    p, q, r, s = over[0], over[1], over[2], over[3]
                    t, u, v, y = under[0], under[1], under[2], under[3]
                    taps = gradient[(c * kh + i) * 3 * lanes :]
                    for f in range(lanes):
                        one, two = parts[f], parts[lanes + f]
                        three, four = parts[2 * lanes + f], parts[3 * lanes + f]
                        taps[f] += one * p + two * q + three * t + four * u
                        taps[lanes + f] += one * q + two * r + three * u + four * v
                        taps[2 * lanes + f] += one * r + two * s + three * v + four * y


@compiled
def _write_convolutions(
    first: Array, second: Array, scale: np.float32, layout: tuple, row: Array
) -> None:
    """Write gradients, laid out as `_weights` does, into a worker's update in Gluon's order."""
    ends, (taps, kh, _, _, _) = layout
    f1, f2 = _FILTERS
    for f in range(f1):
        for k in range(taps):
            row[f * taps + k] = scale * first[k, f]
        row[ends[0] + f] = scale * first[taps, f]
    for f in range(f2):
        kernel = row[ends[1] + f * f1 * kh * 3 :]
        for c in range(f1):
            for k in range(kh * 3):
                kernel[c * kh * 3 + k] = scale * second[f, k * _LANES + c]
        row[ends[2] + f] = scale * second[f, f1]


@compiled
def _write_dense(inputs: Array, d_outputs: Array, row: Array) -> None:
    """Write the gradient of a dense layer's weight and bias."""
    outputs, stop = d_outputs.shape[1], d_outputs.shape[1] * inputs.shape[1]
    np.dot(d_outputs.T, inputs, row[:stop].reshape(outputs, -1))
    row[stop : stop + outputs] = np.dot(np.ones(len(inputs), dtype=np.float32), d_outputs)


@compiled
def _steps(
    w: Array, x: Array, rows: Array, labels: Array, held: tuple, rate: np.float32, layout: tuple,
    out: tuple,
) -> None:  # fmt: skip
    """A step of gradient descent on each worker's batch-mean cross-entropy, by the chain rule.

    All workers are at the same model w, so that the examples `rows` of x with these labels pass
    through it once, whoever holds them: worker i those of `members[i, :counts[i]]`, and its step is
    row i.
    """
    (members, counts), (steps, losses) = held, out
    ends, (_, kh, ph, width, _) = layout
    first, second, dense1, dense2 = _weights(w, layout)
    maps, places1, flat, places2 = _convolved(first, second, x, rows, layout)
    units = np.maximum(_dense(flat, dense1), np.float32(0))
    residual = _dense(units, dense2)
    loss = np.empty(rows.size)
    for e in range(rows.size):
        loss[e] = softmax_residual(residual[e : e + 1], labels[e : e + 1])
    d_units = np.where(units > 0, np.dot(residual, dense2[0]), np.float32(0))
    d_flat = np.dot(d_units, dense1[0])
    d_maps, gradient1, gradient2 = _lines(*maps.shape), _lines(*first.shape), _lines(*second.shape)
    _maps_gradient(second, places2, d_flat, width, d_maps)
    for i in range(counts.size):
        step, mine = steps[i], members[i, : counts[i]]
        if mine.size == 0:
            step[:] = 0
            continue
        losses[i] = loss[mine].mean()
        # A layer's gradient is linear in that of its outputs, which is far smaller than the step.
        scale = np.float32(-rate / mine.size)
        _second_gradient(maps, places2, d_flat, mine, width, gradient2)
        _first_gradient(x, rows, places1, d_maps, mine, kh, ph, gradient1.ravel())
        _write_convolutions(gradient1, gradient2, scale, layout, step)
        _write_dense(flat[mine], scale * d_units[mine], step[ends[3] :])
        _write_dense(units[mine], scale * residual[mine], step[ends[5] :])


@compiled
def _scores(w: Array, x: Array, layout: tuple, scores: Array) -> None:
    first, second, dense1, dense2 = _weights(w, layout)
    for start in range(0, len(x), 100):
        rows = np.arange(start, min(start + 100, len(x)))
        flat = _convolved(first, second, x, rows, layout)[2]
        units = np.maximum(_dense(flat, dense1), np.float32(0))
        scores[start : start + rows.size] = _dense(units, dense2)


def _together(names: Array, counts: Array) -> Iterator[tuple[slice, Array, Array]]:
    """Workers that pass through the model together: which, their examples, and who holds which.

    Examples have names (m, batch), the same with the same label. Workers that share them share most
    of the work; others are together for the sake of larger products.
    """
    distinct, members = np.unique(names, return_inverse=True)
    if 2 * distinct.size <= counts.sum():
        yield slice(None), distinct, members.reshape(names.shape)
        return
    real = np.arange(names.shape[1]) < counts[:, None]
    for start in range(0, len(counts), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        yield some, names[some][real[some]], np.cumsum(real[some]).reshape(-1, names.shape[1]) - 1


def compiled_cnn(
    classes: int, shape: tuple[int, ...], kernel: tuple[int, int], pool: tuple[int, int]
) -> Compiled:
    """The CNN of Table 7a: 30 and 50 filters, 200 hidden units, no padding."""
    channels, height, width = shape
    kh, kw = kernel
    sides = [(size - k + 1) // p for size, k, p in zip((height, width), kernel, pool)]
    last = [(size - k + 1) // p for size, k, p in zip(sides, kernel, pool)]
    taps, flat = channels * kh * kw, 50 * last[0] * last[1]
    lengths = [30 * taps, 30, 50 * 30 * kh * kw, 50, 200 * flat, 200, classes * 200]
    layout = np.cumsum(lengths), (taps, kh, pool[0], sides[1], flat)
    # A block of this size, once freed, teaches glibc to hold on to what a pass frees. Else it gives
    # that back to the system and asks for it again, page by page, for longer than a pass computes.
    np.empty(_HELD, dtype=np.uint8)

    def updates(
        w: Array, x: Array, batches: tuple, learning_rate: float, updates: Array, losses: Array
    ) -> None:
        (rows, labels, counts), rate = batches, np.float32(learning_rate)
        names = rows * classes + labels
        for some, passing, members in _together(names[0], counts):
            given = *np.divmod(passing, classes), (members, counts[some])
            _steps(w, x, *given, rate, layout, (updates[some], losses[some]))
        step, unused = np.empty((1, w.size), np.float32), np.empty(1)
        everything = np.arange(rows.shape[2]).reshape(1, -1)
        for r in range(1, len(rows)):
            for i in np.flatnonzero(counts):
                batch, held = names[r, i, : counts[i]], (everything, counts[i : i + 1])
                here = w + updates[i]
                _steps(here, x, *np.divmod(batch, classes), held, rate, layout, (step, unused))
                updates[i] += step[0]

    def scores(w: Array, x: Array) -> Array:
        out = np.empty((len(x), classes), dtype=np.float32)
        _scores(w, x, layout, out)
        return out

    return Compiled(updates, scores)
