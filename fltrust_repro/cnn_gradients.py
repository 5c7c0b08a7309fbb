"""Exact updates of all workers for the CNN of Table 7a, compiled for the CPU.

In the first local round all workers stand at the received model, so that their examples pass
through it together; `convolutions.py` has the first two layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fltrust_repro.compiled import Array, aligned, compiled
from fltrust_repro.convolutions import (
    LANES,
    RUN,
    first_convolution,
    first_gradient,
    let_through,
    maps_gradient,
    second_convolution,
    second_gradient,
)
from fltrust_repro.gradients import Compiled, softmax_residual
from fltrust_repro.pixels import gathered

_FILTERS = 30, 50
_HIDDEN = 200
_TOGETHER = 64  # examples: with more, their maps leave the core's cache
_HELD = 2**25 - 2**16  # bytes; the most that glibc learns from


class Sizes(NamedTuple):
    """Of the network for one kind of examples: numbers that compiled functions take."""

    ends: Array  # of the eight parameters in a flat model, in Gluon's order
    taps: int  # weights of a filter of the first convolution
    kh: int  # height of kernels
    ph: int  # height of pooling windows


@compiled
def _weights(w: Array, sizes: Sizes) -> tuple:
    """Weights of the four layers; those of the convolutions, with biases, as they take them."""
    ends, taps = sizes.ends, sizes.taps
    f1, f2 = _FILTERS
    first, second = aligned(taps + 1, LANES), aligned(f2, sizes.kh * RUN)
    first[:], second[:] = 0, 0
    first[:taps, :f1] = w[: ends[0]].reshape(f1, taps).T
    first[taps, :f1] = w[ends[0] : ends[1]]
    first[taps, f1] = 1
    kernels, lanes = w[ends[1] : ends[2]].reshape(f2, f1, -1), second.reshape(f2, -1, LANES)
    for f in range(f2):
        lanes[f, :, :f1] = kernels[f].T
    lanes[:, 0, f1] = w[ends[2] : ends[3]]
    hidden = w[ends[3] : ends[4]].reshape(_HIDDEN, -1), w[ends[4] : ends[5]]
    return first, second, hidden, (w[ends[5] : ends[6]].reshape(-1, _HIDDEN), w[ends[6] :])


@compiled
def _write_convolutions(
    first: Array, second: Array, scale: np.float32, sizes: Sizes, row: Array
) -> None:
    """Write their gradients, laid out as `_weights` does, into a flat model: its inverse."""
    (ends, taps, kh, _), (f1, f2) = sizes, _FILTERS
    for f in range(f1):
        for k in range(taps):
            row[f * taps + k] = scale * first[k, f]
        row[ends[0] + f] = scale * first[taps, f]
    for f in range(f2):
        kernel = row[ends[1] + f * f1 * kh * 3 :]
        for c in range(f1):
            for k in range(kh * 3):
                kernel[c * kh * 3 + k] = scale * second[f, k * LANES + c]
        row[ends[2] + f] = scale * second[f, f1]


@compiled
def _dense(inputs: Array, layer: tuple) -> Array:
    weight, bias = layer
    return np.dot(inputs, weight.T) + bias


@compiled
def _write_dense(inputs: Array, d_outputs: Array, row: Array) -> None:
    """Write the gradient of a dense layer's weight and bias into the front of `row`."""
    outputs, stop = d_outputs.shape[1], d_outputs.shape[1] * inputs.shape[1]
    np.dot(d_outputs.T, inputs, row[:stop].reshape(outputs, -1))
    row[stop : stop + outputs] = np.dot(np.ones(len(inputs), dtype=np.float32), d_outputs)


@compiled
def _forward(weights: tuple, x: Array, sizes: Sizes) -> tuple:
    """Logits of examples x, and what each layer made of them."""
    first, second, hidden, last = weights
    maps, places1 = first_convolution(first, x, sizes.ph)
    flat, places2 = second_convolution(second, maps, sizes.ph)
    units = np.maximum(_dense(flat, hidden), np.float32(0))
    return _dense(units, last), units, (flat, places2), (maps, places1)


@compiled
def _steps(
    w: Array, passing: tuple, held: tuple, rate: np.float32, sizes: Sizes, out: tuple
) -> None:
    """A step of gradient descent on each worker's batch-mean cross-entropy, by the chain rule.

    All workers are at the same model w, so that the passing examples with their labels pass
    through it once, whoever holds them: worker i holds those of `members[i, :counts[i]]`, and its
    step is row i.
    """
    (x, labels), (members, counts), (steps, losses) = passing, held, out
    weights, ends = _weights(w, sizes), sizes.ends
    first, second, hidden, last = weights
    residual, units, (flat, places2), (maps, places1) = _forward(weights, x, sizes)
    loss = np.empty(len(x))
    for e in range(len(x)):
        loss[e] = softmax_residual(residual[e : e + 1], labels[e : e + 1])
    d_units = np.where(units > 0, np.dot(residual, last[0]), np.float32(0))
    d_outputs = let_through(places2, np.dot(d_units, hidden[0]))
    d_maps = aligned(len(maps), maps[0].size).reshape(maps.shape)
    maps_gradient(second, d_outputs, d_maps)
    d_first, d_second = aligned(*first.shape), aligned(*second.shape)
    for i in range(counts.size):
        step, mine = steps[i], members[i, : counts[i]]
        if mine.size == 0:
            step[:] = 0
            continue
        losses[i] = loss[mine].mean()
        first_gradient(x, places1, d_maps, mine, sizes.ph, d_first.ravel())
        second_gradient(maps, d_outputs, mine, d_second)
        scale = np.float32(-rate / mine.size)
        _write_convolutions(d_first, d_second, scale, sizes, step)
        # A layer's gradient is linear in that of its outputs, which is far smaller than the step.
        _write_dense(flat[mine], scale * d_units[mine], step[ends[3] :])
        _write_dense(units[mine], scale * residual[mine], step[ends[5] :])


@compiled
def _scores(w: Array, x: Array, sizes: Sizes, scores: Array) -> None:
    weights = _weights(w, sizes)
    for start in range(0, len(x), _TOGETHER):
        rows = np.arange(start, min(start + _TOGETHER, len(x)))
        scores[start : start + rows.size] = _forward(weights, gathered(x, rows), sizes)[0]


def _together(names: Array, counts: Array) -> Iterator[tuple[slice, Array, Array]]:
    """Workers that pass through the model together: which, their examples, and who holds which.

    An example with a label is a name, in `names` (m, batch). Workers that share theirs share most
    of the work; others are together for the sake of larger products.
    """
    distinct, members = np.unique(names, return_inverse=True)
    if 2 * distinct.size <= counts.sum():
        yield slice(None), distinct, members.reshape(names.shape)
        return
    real, batch_size = np.arange(names.shape[1]) < counts[:, None], names.shape[1]
    workers = max(_TOGETHER // batch_size, 1)
    for start in range(0, len(counts), workers):
        some = slice(start, start + workers)
        yield some, names[some][real[some]], np.cumsum(real[some]).reshape(-1, batch_size) - 1


def compiled_cnn(
    classes: int, shape: tuple[int, ...], kernel: tuple[int, int], pool: tuple[int, int]
) -> Compiled:
    """The CNN of Table 7a: 30 and 50 filters, 200 hidden units, no padding."""
    (channels, height, width), (kh, kw) = shape, kernel
    last = [((size - k + 1) // p - k + 1) // p for size, k, p in zip((height, width), kernel, pool)]
    (f1, f2), flat = _FILTERS, _FILTERS[1] * last[0] * last[1]
    lengths = [f1 * channels * kh * kw, f1, f2 * f1 * kh * kw, f2, _HIDDEN * flat, _HIDDEN]
    sizes = Sizes(np.cumsum([*lengths, classes * _HIDDEN]), channels * kh * kw, kh, pool[0])
    # A block of this size, once freed, teaches glibc to hold on to what a pass frees. Else it gives
    # that back to the system and asks for it again, page by page, for longer than a pass computes.
    np.empty(_HELD, dtype=np.uint8)

    def updates(
        w: Array, x: Array, batches: tuple, learning_rate: float, updates: Array, losses: Array
    ) -> None:
        def passing(names: Array) -> tuple[Array, Array]:
            rows, labels = np.divmod(names, classes)
            return gathered(x, rows), labels

        (rows, labels, counts), rate = batches, np.float32(learning_rate)
        names = rows * classes + labels
        for some, distinct, members in _together(names[0], counts):
            held, out = (members, counts[some]), (updates[some], losses[some])
            _steps(w, passing(distinct), held, rate, sizes, out)
        step, unused = np.empty((1, w.size), dtype=np.float32), np.empty(1)
        everything = np.arange(rows.shape[2]).reshape(1, -1)
        for r in range(1, len(rows)):
            for i in np.flatnonzero(counts):
                local = w + updates[i], passing(names[r, i, : counts[i]])
                held = everything, counts[i : i + 1]
                _steps(*local, held, rate, sizes, (step, unused))
                updates[i] += step[0]

    def scores(w: Array, x: Array) -> Array:
        out = np.empty((len(x), classes), dtype=np.float32)
        _scores(w, x, sizes, out)
        return out

    return Compiled(updates, scores)
