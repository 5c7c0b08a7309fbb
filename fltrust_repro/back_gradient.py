"""Back-gradient optimization of poisoned examples for softmax regression (paper, Section 4.4).

Munoz-Gonzalez et al. (2017): find examples with which training ends in a model of largest loss, by
following the gradient of that loss through the training itself. Their reversal of gradient descent
is approximate; here the trajectory is kept, which for softmax regression is small, so that reverse
mode is exact, and Hessian-vector products are written out:

    p = softmax(x w^T),   gradient = (p - y)^T x / n,   H v = (p * (r - <p, r>))^T x / n,  r = x v^T

where x has a last column of ones for the bias. All poisoned examples are optimised together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BackGradient:
    """Settings of the attack.

    Attributes
    ----------
    examples : int
        How many poisoned examples.
    inner_steps, inner_rate : int, float
        Full-batch gradient descent from w = 0 on clean and poisoned examples.
    outer_steps, outer_rate : int, float
        Steps of each poisoned example along its own unit-norm gradient, clipped to [0, 1]; the
        length of a step falls linearly from `outer_rate` to 0.
    """

    examples: int = 240
    inner_steps: int = 100
    inner_rate: float = 0.5
    outer_steps: int = 100
    outer_rate: float = 1.0


def one_hot(labels: np.ndarray, classes: int, dtype: np.dtype) -> np.ndarray:
    """Labels (n,) as rows (n, L) of zeros with a one."""
    return np.eye(classes, dtype=dtype)[labels]


def with_bias(x: np.ndarray) -> np.ndarray:
    """Append the column of ones that makes the bias a weight."""
    return np.concatenate([x, np.ones((len(x), 1), dtype=x.dtype)], axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of rows (n, L)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Mean loss of model w (L, f) on examples x (n, f) with one-hot labels y (n, L)."""
    logits = x @ w.T
    top = logits.max(axis=1)
    log_total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((log_total - (logits * y).sum(axis=1)).mean())


def descend(
    x: np.ndarray, y: np.ndarray, steps: int, rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient descent of softmax regression from w = 0.

    Returns the final model (L, f), and the model (steps, L, f) and the probabilities
    (steps, n, L) before each step, which is all that reverse mode needs.
    """
    n, classes = y.shape
    w = np.zeros((classes, x.shape[1]), dtype=x.dtype)
    models = np.empty((steps, *w.shape), dtype=x.dtype)
    probabilities = np.empty((steps, n, classes), dtype=x.dtype)
    for t in range(steps):
        models[t], probabilities[t] = w, softmax(x @ w.T)
        w = w - (rate / n) * ((probabilities[t] - y).T @ x)
    return w, models, probabilities


def outer_gradient(
    poisoned: np.ndarray,
    poisoned_y: np.ndarray,
    clean: np.ndarray,
    clean_y: np.ndarray,
    steps: int,
    rate: float,
) -> tuple[np.ndarray, float]:
    """Gradient of the trained model's loss on the clean examples by the poisoned examples.

    Parameters
    ----------
    poisoned, clean : float arrays (q, f) and (n, f), without the column of ones
    poisoned_y, clean_y : one-hot labels (q, L) and (n, L)
    steps, rate : of the inner gradient descent on all q + n examples

    Returns
    -------
    gradient : float array (q, f)
    loss : float, what it is the gradient of
    """
    q = len(poisoned)
    x = with_bias(np.concatenate([poisoned, clean]))
    y = np.concatenate([poisoned_y, clean_y])
    w, models, probabilities = descend(x, y, steps, rate)
    share = rate / len(x)
    own = x[q:]
    v = (softmax(own @ w.T) - clean_y).T @ own / len(own)
    loss = cross_entropy(w, own, clean_y)
    gradient = np.zeros_like(x[:q])
    for t in reversed(range(steps)):
        p, r = probabilities[t], x @ v.T
        s = p * (r - (p * r).sum(axis=1, keepdims=True))
        gradient -= share * ((p[:q] - poisoned_y) @ v + s[:q] @ models[t])
        v = v - share * (s.T @ x)
    return gradient[:, :-1], loss


def start_examples(
    x: np.ndarray, labels: np.ndarray, classes: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Copies of random examples, each with a random other label."""
    chosen = rng.choice(len(x), count, replace=False)
    shift = rng.integers(1, classes, count)
    return x[chosen].copy(), (labels[chosen] + shift) % classes


def optimise(
    setting: BackGradient,
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    rng: np.random.Generator,
    after_step: Callable[[float], None] = lambda loss: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find poisoned examples for a data set.

    Parameters
    ----------
    setting : BackGradient
    x : float array (n, f), clean examples with values in [0, 1]
    labels : int array (n,)
    classes : int
    rng : numpy.random.Generator, for the start
    after_step : function, optional
        Called after each outer step with the loss before it.

    Returns
    -------
    poisoned : float array (q, f)
    poisoned_labels : int array (q,)
    start : float array (q, f), what `poisoned` started from
    """
    start, poisoned_labels = start_examples(x, labels, classes, setting.examples, rng)
    poisoned = start.copy()
    y, poisoned_y = (one_hot(each, classes, x.dtype) for each in (labels, poisoned_labels))
    for step in range(setting.outer_steps):
        gradient, loss = outer_gradient(
            poisoned, poisoned_y, x, y, setting.inner_steps, setting.inner_rate
        )
        lengths = np.linalg.norm(gradient, axis=1, keepdims=True)
        size = setting.outer_rate * (1 - step / setting.outer_steps)
        moved = poisoned + size * gradient / np.where(lengths > 0, lengths, 1)
        poisoned = np.clip(moved, 0, 1)
        after_step(loss)
    return poisoned, poisoned_labels, start
