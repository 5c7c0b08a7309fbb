"""Step II of federated learning: all workers' updates from the global model and their batches.

`Learner` binds a model to a data set's shape and a device. It knows two ways to the same (m, d)
matrix: a loop over the workers for any Gluon model, and a compiled formula (`gradients.py`) for
the models that bring one, on the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fltrust_repro.backend import Context, NDArray, host_view, mx, nd
from fltrust_repro.models import Model
from fltrust_repro.partition import Batches

_TEST_CHUNK = 1000
HybridBlock = mx.gluon.HybridBlock


class _Objective(HybridBlock):
    """Batch-mean cross-entropy of a classifier: one graph for forward and backward."""

    def __init__(self, classifier: HybridBlock) -> None:
        super().__init__()
        self.classifier = classifier

    def hybrid_forward(self, F: Any, x: NDArray, labels: NDArray) -> NDArray:  # noqa: N803
        """Return the loss, shape (1,), of x (n, ...) with labels (n,)."""
        scores = F.log_softmax(self.classifier(x))
        return -F.mean(F.pick(scores, labels, axis=-1))


class Learner:
    """A model whose parameters are one flat vector: what workers train and what is tested.

    Parameters
    ----------
    model : Model
    classes : int
    shape : (channels, height, width) of one example
    ctx : MXNet context
    seed : int
        Seeds the initial parameters (Xavier; paper silent, README "Readings of the paper").

    Attributes
    ----------
    initial : NDArray (d,), the initial global model.
    """

    def __init__(
        self, model: Model, classes: int, shape: tuple[int, int, int], ctx: Context, seed: int
    ) -> None:
        self.ctx = ctx
        self.shape = shape
        mx.random.seed(seed)
        self._net = model.build(classes, shape)
        self._net.initialize(mx.init.Xavier(), ctx=ctx)
        self._net(nd.zeros((1, *shape), ctx=ctx))  # fixes the shapes that were deferred
        self._net.hybridize()
        self._objective = _Objective(self._net)
        self._objective.hybridize()
        everything = self._net.collect_params().values()
        self._weights = [p for p in everything if p.grad_req != "null"]
        self._statistics = [p for p in everything if p.grad_req == "null"]
        self._compiled = None
        if model.compiled is not None and ctx.device_type == "cpu":
            self._compiled = model.compiled(classes, shape)
        self.initial = _flatten([p.data(ctx) for p in self._weights])

    def updates(
        self, w_re: NDArray, x: NDArray, batches: Batches, learning_rate: float
    ) -> tuple[NDArray, np.ndarray]:
        """Local SGD of every worker from the received global model (Section 2.1, Step II).

        Parameters
        ----------
        w_re : NDArray (d,)
        x : NDArray (n, channels, height, width), all training examples
        batches : Batches
            One batch per local round and worker; a worker without examples sends a zero update.
        learning_rate : float
            alpha, on the batch-mean cross-entropy.

        Returns
        -------
        updates : NDArray (m, d), w_i - w_re
        losses : float64 array (m,), each worker's loss at w_re; NaN for one without examples.
        """
        updates = nd.empty((len(batches.counts), w_re.size), ctx=self.ctx)
        losses = np.full(len(batches.counts), np.nan)
        if self._compiled is not None:
            self._compiled.updates(
                host_view(w_re),
                host_view(x),
                batches.rows,
                batches.labels,
                batches.counts,
                learning_rate,
                host_view(updates),
                losses,
            )
        else:
            self._loop(w_re, x, batches, learning_rate, updates, losses)
        return updates, losses

    def _loop(
        self,
        w_re: NDArray,
        x: NDArray,
        batches: Batches,
        learning_rate: float,
        updates: NDArray,
        losses: np.ndarray,
    ) -> None:
        rounds = len(batches.rows)
        received = _flatten([p.data(self.ctx) for p in self._statistics])
        statistics = []
        first_losses = {}
        self._load(self._weights, w_re)
        for i, count in enumerate(batches.counts):
            update = nd.zeros(w_re.size, ctx=self.ctx)
            for r in range(rounds if count else 0):
                if r > 0:
                    self._load(self._weights, w_re + update)
                rows, labels = batches.rows[r, i, :count], batches.labels[r, i, :count]
                loss = self._backward(_take(x, rows, self.ctx), labels)
                update -= learning_rate * _flatten([p.grad(self.ctx) for p in self._weights])
                first_losses.setdefault(i, loss)
            if rounds > 1:
                self._load(self._weights, w_re)
            updates[i] = update
            if count and received is not None:
                statistics.append(_flatten([p.data(self.ctx) for p in self._statistics]))
                self._load(self._statistics, received)
        if statistics:
            # Each is one momentum step from the same start, so their mean is the momentum step
            # of the average batch statistics.
            self._load(self._statistics, nd.stack(*statistics).mean(axis=0))
        if first_losses:
            losses[list(first_losses)] = nd.concat(*first_losses.values(), dim=0).asnumpy()

    def _backward(self, x: NDArray, labels: np.ndarray) -> NDArray:
        with mx.autograd.record():
            loss = self._objective(x, nd.array(labels, ctx=self.ctx))
        loss.backward()
        return loss

    def _load(self, parameters: list[Any], flat: NDArray) -> None:
        start = 0
        for parameter in parameters:
            stop = start + int(np.prod(parameter.shape))
            parameter.set_data(flat[start:stop].reshape(parameter.shape))
            start = stop

    def error_rate(self, w: NDArray, x: NDArray, labels: np.ndarray) -> float:
        """Share of wrong predictions of model w on examples x (n, ...) with labels (n,)."""
        return float((self._scores(w, x).argmax(axis=1) != labels).mean())

    def judge(
        self, models: NDArray, x: NDArray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Error rates and mean cross-entropies of models (k, d) on examples x, float64 (k,) each.

        A model with non-finite logits has infinite loss.
        """
        if self._compiled is not None and self._compiled.scores_of_all is not None:
            scores = self._compiled.scores_of_all(host_view(models), host_view(x))
        else:
            scores = np.stack([self._scores(models[k], x) for k in range(len(models))])
        scores = scores.astype(np.float64)  # (k, n, classes)
        errors = (scores.argmax(axis=2) != labels).mean(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            top = scores.max(axis=2)
            log_total = top + np.log(np.exp(scores - top[:, :, None]).sum(axis=2))
            losses = (log_total - scores[:, np.arange(len(labels)), labels]).mean(axis=1)
        return errors, np.where(np.isfinite(losses), losses, np.inf)

    def _scores(self, w: NDArray, x: NDArray) -> np.ndarray:
        if self._compiled is not None:
            return self._compiled.scores(host_view(w), host_view(x))
        self._load(self._weights, w)
        chunks = range(0, len(x), _TEST_CHUNK)
        return np.concatenate([self._net(x[k : k + _TEST_CHUNK]).asnumpy() for k in chunks])


def _flatten(arrays: list[NDArray]) -> NDArray | None:
    return nd.concat(*[array.reshape(-1) for array in arrays], dim=0) if arrays else None


def _take(x: NDArray, rows: np.ndarray, ctx: Context) -> NDArray:
    if ctx.device_type == "cpu":
        return nd.array(host_view(x)[rows], ctx=ctx)
    return nd.take(x, nd.array(rows, ctx=ctx, dtype="int32"), axis=0)
