"""Exact updates of all workers for LR, compiled for the CPU; `cnn_gradients.py` has the CNN's.

The Gluon models in `models.py` are the definition, against which a test holds these formulas.
Batches go straight into the core's cache: MXNet's operators spend most of a small one on dispatch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fltrust_repro.compiled import Array, aligned, compiled
from fltrust_repro.pixels import gather, numbers

_TOGETHER = 32  # examples whose pixels become numbers, which stay in the core's cache


class Compiled(NamedTuple):
    """What a compiled model offers, on numpy arrays; examples x are float32, or uint8 pixels.

    `updates(w, x, (rows, labels, counts), learning_rate, updates, losses)` fills the last two as
    `workers.Learner.updates` describes them; `scores(w, x)` returns logits (n, classes), and
    `scores_of_all`, where it is faster than one by one, those (k, n, classes) of models (k, d).
    """

    updates: Callable[..., None]
    scores: Callable[[Array, Array], Array]
    scores_of_all: Callable[[Array, Array], Array] | None = None


def softmax(logits: Array) -> Array:
    """Probabilities of the labels: logits (..., L) -> (..., L)."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Loss of each example: logits (..., n, L) and labels (n,) -> (..., n)."""
    top = logits.max(axis=-1)
    log_total = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
    return log_total - logits[..., np.arange(len(labels)), labels]


@compiled
def softmax_residual(logits: Array, labels: Array) -> float:
    """Turn logits (n, L) into d loss / d logits in place; return the mean `cross_entropy`."""
    n, classes = logits.shape
    loss = 0.0
    for i in range(n):
        top = logits[i, 0]
        for k in range(1, classes):
            top = max(top, logits[i, k])
        loss += top - logits[i, labels[i]]
        total = 0.0
        for k in range(classes):
            logits[i, k] = np.exp(logits[i, k] - top)
            total += logits[i, k]
        loss += np.log(total)
        for k in range(classes):
            logits[i, k] /= total * n
        logits[i, labels[i]] -= np.float32(1.0 / n)
    return loss / n


@compiled(fastmath=True)
def _linear(x: Array, weight: Array, bias: Array, out: Array) -> None:
    # Four examples per pass over the weights.
    n, features = x.shape
    whole = n - n % 4
    for i in range(0, whole, 4):
        xa, xb, xc, xd = x[i], x[i + 1], x[i + 2], x[i + 3]
        for k in range(bias.size):
            row = weight[k]
            a = b = c = d = np.float32(0)
            for j in range(features):
                a += xa[j] * row[j]
                b += xb[j] * row[j]
                c += xc[j] * row[j]
                d += xd[j] * row[j]
            out[i, k], out[i + 1, k] = a + bias[k], b + bias[k]
            out[i + 2, k], out[i + 3, k] = c + bias[k], d + bias[k]
    for i in range(whole, n):
        xa = x[i]
        for k in range(bias.size):
            row = weight[k]
            a = np.float32(0)
            for j in range(features):
                a += xa[j] * row[j]
            out[i, k] = a + bias[k]


@compiled(fastmath=True)
def _linear_weight_gradient(residual: Array, x: Array, out: Array) -> None:
    # Four examples per pass over the gradient.
    n, features = x.shape
    whole = n - n % 4
    out[:] = 0
    for i in range(0, whole, 4):
        xa, xb, xc, xd = x[i], x[i + 1], x[i + 2], x[i + 3]
        for k in range(out.shape[0]):
            row = out[k]
            a, b, c, d = residual[i, k], residual[i + 1, k], residual[i + 2, k], residual[i + 3, k]
            for j in range(features):
                row[j] += a * xa[j] + b * xb[j] + c * xc[j] + d * xd[j]
    for i in range(whole, n):
        xa = x[i]
        for k in range(out.shape[0]):
            row, a = out[k], residual[i, k]
            for j in range(features):
                row[j] += a * xa[j]


@compiled
def _lr_gradient(w: Array, batch: Array, labels: Array, gradient: Array) -> float:
    """Gradient of the loss of LR, weight (L, features) then bias (L,), on a batch of examples."""
    n, features = batch.shape
    classes = w.size // (features + 1)
    cut = classes * features
    residual = np.empty((n, classes), dtype=np.float32)
    _linear(batch, w[:cut].reshape(classes, features), w[cut:], residual)
    loss = softmax_residual(residual, labels)
    _linear_weight_gradient(residual, batch, gradient[:cut].reshape(classes, features))
    for k in range(classes):
        gradient[cut + k] = residual[:, k].sum()
    return loss


@compiled
def _lr_updates(
    w: Array, x: Array, batches: tuple, learning_rate: float, updates: Array, losses: Array
) -> None:
    rows, labels, counts = batches
    rate, gradient = np.float32(learning_rate), np.empty(w.size, dtype=np.float32)
    place = aligned(rows.shape[2], x.shape[1])
    for i in range(counts.size):
        update, mine = updates[i], slice(0, counts[i])
        if counts[i] == 0:
            update[:] = 0
            continue
        batch = place[mine]
        gather(x, rows[0, i, mine], batch)
        losses[i] = _lr_gradient(w, batch, labels[0, i, mine], gradient)
        for j in range(w.size):
            update[j] = -rate * gradient[j]
        for r in range(1, len(rows)):
            gather(x, rows[r, i, mine], batch)
            _lr_gradient(w + update, batch, labels[r, i, mine], gradient)
            for j in range(w.size):
                update[j] -= rate * gradient[j]


@compiled(fastmath=True)
def _add_products(sums: tuple, values: tuple, weight: np.float32) -> tuple:
    a, b, c, d = sums
    p, q, r, s = values
    return a + p * weight, b + q * weight, c + r * weight, d + s * weight


@compiled(fastmath=True)
def _lr_scores(x: Array, weight: Array, bias: Array, out: Array) -> None:
    # Eight examples and two classes per pass, read where they lie: a BLAS copies so many examples
    # first, which takes longer than the products. At the end of either, the last one comes again.
    n, classes = out.shape
    zero = np.float32(0)
    zeros = (zero, zero, zero, zero)
    for i in range(0, n, 8):
        xa, xb, xc, xd = x[i], x[min(i + 1, n - 1)], x[min(i + 2, n - 1)], x[min(i + 3, n - 1)]
        xe, xf = x[min(i + 4, n - 1)], x[min(i + 5, n - 1)]
        xg, xh = x[min(i + 6, n - 1)], x[min(i + 7, n - 1)]
        for k in range(0, classes, 2):
            also = min(k + 1, classes - 1)
            row, next_row = weight[k], weight[also]
            sums_a, sums_b, next_a, next_b = zeros, zeros, zeros, zeros
            for j in range(row.size):
                a, b = (xa[j], xb[j], xc[j], xd[j]), (xe[j], xf[j], xg[j], xh[j])
                sums_a, sums_b = _add_products(sums_a, a, row[j]), _add_products(sums_b, b, row[j])
                next_a = _add_products(next_a, a, next_row[j])
                next_b = _add_products(next_b, b, next_row[j])
            for e in range(min(8, n - i)):
                out[i + e, k] = bias[k] + (sums_a[e] if e < 4 else sums_b[e - 4])
                out[i + e, also] = bias[also] + (next_a[e] if e < 4 else next_b[e - 4])


@compiled
def _lr_scores_of_pixels(x: Array, weight: Array, bias: Array, out: Array) -> None:
    place = aligned(_TOGETHER, x.shape[1])
    for start in range(0, len(x), _TOGETHER):
        rows = np.arange(start, min(start + _TOGETHER, len(x)))
        gather(x, rows, place)
        _lr_scores(place[: rows.size], weight, bias, out[start : start + rows.size])


def compiled_lr(classes: int, _shape: tuple[int, ...]) -> Compiled:
    """Multi-class logistic regression."""

    def updates(w: Array, x: Array, *rest: Any) -> None:
        _lr_updates(w, x.reshape(len(x), -1), *rest)

    def scores(w: Array, x: Array) -> Array:
        out = np.empty((len(x), classes), dtype=np.float32)
        weight, bias = w[:-classes].reshape(classes, -1), w[-classes:]
        own = _lr_scores if x.dtype == np.float32 else _lr_scores_of_pixels
        own(x.reshape(len(x), -1), weight, bias, out)
        return out

    def scores_of_all(models: Array, x: Array) -> Array:
        k, d = models.shape
        weights = models[:, : d - classes].reshape(k * classes, -1)
        from scipy.linalg.blas import sgemm  # which takes a while to load

        # scipy brings a newer BLAS than numpy; transposed, it takes both arrays without a copy.
        products = sgemm(1.0, weights.T, numbers(x).reshape(len(x), -1).T, trans_a=True).T
        scores = products.reshape(-1, k, classes).transpose(1, 0, 2)
        return scores + models[:, None, d - classes :]

    return Compiled(updates, scores, scores_of_all)
