"""Step II of federated learning: all workers' updates from the global model and their batches.

`Learner` binds a model to a data set's shape and a device, and it alone knows the device: models
and updates come and go as arrays of the host. Two ways lead to the same (m, d) matrix: a loop over
the workers for any Gluon model, and a model's own formula (`gradients.py`, `gpu_gradients.py`).

In the loop a GPU's memory holds the data set, the (m, d) updates, and the activations of one
worker's batch at a time, or of a chunk of test examples. A batch is never cut, whose statistics
batch normalisation takes; where it does not fit, the trial fails and says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from fltrust_repro import backend, machine
from fltrust_repro.backend import host_view
from fltrust_repro.errors import BadInput
from fltrust_repro.gradients import cross_entropy
from fltrust_repro.models import Model, with_gpu_formula
from fltrust_repro.partition import Batches
from fltrust_repro.pixels import WHITE, gathered
from fltrust_repro.readers import frozen

if TYPE_CHECKING:
    from mxnet.context import Context
    from mxnet.gluon import HybridBlock
    from mxnet.ndarray import NDArray

    Examples = Union[NDArray, np.ndarray]  # there on a GPU, here on the CPU

_TEST_CHUNK, _LEAST_CHUNK = 1000, 32  # examples; as many as in a batch fit, since training does


@cache
def _objective() -> type[HybridBlock]:
    class Objective(backend.mx.gluon.HybridBlock):
        """Batch-mean cross-entropy of a classifier: one graph for forward and backward."""

        def __init__(self, classifier: HybridBlock) -> None:
            super().__init__()
            self.classifier = classifier

        def hybrid_forward(self, F: Any, x: NDArray, labels: NDArray) -> NDArray:  # noqa: N803
            """Return the loss, shape (1,), of x (n, ...) with labels (n,)."""
            scores = F.log_softmax(self.classifier(x))
            return -F.mean(F.pick(scores, labels, axis=-1))

    return Objective


def with_momentum(
    updates: np.ndarray, workers: np.ndarray, share: float, momenta: dict[str, np.ndarray]
) -> None:
    """Put each worker's momentum in place of its update: m_i <- (1 - b) x_i + b m_i, b = `share`.

    Worker momentum of Karimireddy, He, Jaggi (ICML 2021) for updates (m, d); with one local round
    of SGD it is that of gradients. As in their code, m_i is at first the first update, which so
    counts for 1 / (1 - b) others; but there m_i <- x_i + b m_i, up to 1 / (1 - b) times as long,
    and only benign workers keep one. `momenta` is what is kept by identity, d numbers for each
    worker that has taken part.
    """
    for update, worker in zip(updates, workers.tolist()):
        momentum = momenta.get(str(worker))
        if momentum is None:
            momenta[str(worker)] = update.copy()
            continue
        momentum *= np.float32(share)
        momentum += np.float32(1 - share) * update
        update[:] = momentum


class Learner:
    """A model whose parameters are one flat vector: what workers train and what is tested.

    It computes where `ctx` says. `seed` draws the initial global model, which `initial` keeps as an
    NDArray (d,), by an initializer of MXNet and its magnitude: "xavier-3" (Gluon's default),
    "uniform-0.07"; biases are 0 (paper silent, README "Readings of the paper"). `layers` says which
    of the d parameters are one weight's or bias's.
    """

    def __init__(
        self,
        model: Model,
        classes: int,
        shape: tuple[int, ...],
        ctx: Context,
        seed: int,
        initial: str = "xavier-3",
    ) -> None:
        mx, self._ctx, at = backend.mx, ctx, ctx
        self._formula, self._chunk, self._pinned = None, _TEST_CHUNK, None
        if backend.is_gpu(ctx):
            if model.on_gpu is not None:
                self._formula = model.on_gpu(classes, shape, ctx)
                at = mx.cpu()  # where the block has nothing to do but to draw the initial model
            elif told := machine.no_code(ctx.device_id, with_gpu_formula()):
                raise BadInput(f"{told}.")
        elif model.compiled is not None:
            self._formula = model.compiled(classes, shape)
        mx.random.seed(seed)
        self._net = model.build(classes, shape)
        model.check_built(self._net)
        kind, magnitude = initial.split("-")
        by_name = {"xavier": partial(mx.init.Xavier, "uniform", "avg"), "uniform": mx.init.Uniform}
        self._net.initialize(by_name[kind](float(magnitude)), ctx=at)
        two = mx.nd.zeros((2, *shape), ctx=at)
        model.check_logits(self._net(two), 2, classes)  # fixes the shapes that were deferred, too
        self._net.hybridize()
        self._objective = _objective()(self._net)
        self._objective.hybridize()
        everything = self._net.collect_params().values()
        self._weights = [p for p in everything if p.grad_req != "null"]
        self._statistics = [p for p in everything if p.grad_req == "null"]
        if backend.is_gpu(at):
            fitting = backend.workspace(at) // _bytes_per_example(self._net, shape)
            self._chunk = min(max(fitting, _LEAST_CHUNK), _TEST_CHUNK)
        self.initial = _flatten([p.data(at) for p in self._weights]).as_in_context(mx.cpu())
        ends = np.cumsum([0, *(int(np.prod(p.shape)) for p in self._weights)]).tolist()
        self.layers = tuple(slice(*ends[i : i + 2]) for i in range(len(self._weights)))

    def resident(self, x: np.ndarray) -> Examples:
        """Return examples (n, channels, height, width), float32 or uint8, where it takes them.

        They keep their type: on a GPU in its memory, on the CPU where they are, read-only.
        """
        if backend.is_gpu(self._ctx):
            return backend.nd.array(x, ctx=self._ctx, dtype=x.dtype)
        return frozen(np.ascontiguousarray(x).view())

    @property
    def statistics(self) -> np.ndarray:
        """Running statistics of batch normalisation, float32 (s,): what iterations leave behind."""
        arrays = [p.data(self._ctx) for p in self._statistics]
        return _flatten(arrays).asnumpy() if arrays else np.empty(0, np.float32)

    @statistics.setter
    def statistics(self, flat: np.ndarray) -> None:
        if flat.shape != self.statistics.shape:
            raise ValueError(f"statistics of shape {flat.shape}")
        self._load(self._statistics, backend.nd.array(flat, ctx=self._ctx))

    def updates(
        self, w_re: NDArray, x: Examples, batches: Batches, learning_rate: float
    ) -> tuple[NDArray, np.ndarray]:
        """Local SGD of every worker from the received global model w_re, (d,) (2.1, Step II).

        On batches of `x`, all training examples, `resident`; `learning_rate` is alpha, on the
        batch-mean cross-entropy. Returns the updates w_i - w_re, NDArray (m, d), and each worker's
        loss at w_re, (m,); a worker without examples sends zeros, its loss is NaN. On a GPU the
        next call may write where these updates lie.
        """
        if self._formula is None:
            updates, losses = self._loop(w_re.as_in_context(self._ctx), x, batches, learning_rate)
            if backend.is_gpu(self._ctx):
                updates = updates.copyto(self._place_for(*updates.shape))
            # The one point of an iteration where the host waits for a GPU. It has to wait
            # somewhere: MXNet's asynchronous engine would pile up memory.
            return updates, losses.asnumpy()
        m = len(batches.counts)
        updates, losses = self._place_for(m, w_re.size), np.full(m, np.nan)
        given = host_view(w_re), x, tuple(batches), learning_rate
        self._formula.updates(*given, host_view(updates), losses)
        return updates, losses

    def _place_for(self, m: int, d: int) -> NDArray:
        """Memory of the host for updates.

        By numpy, which asks the system for large pages: with small ones, getting the memory of a
        CNN's updates takes as long as a fifth of their computation. What a GPU copies to quickly
        takes longer still to get, and is kept.
        """
        if not backend.is_gpu(self._ctx):
            return backend.to_ndarray(np.empty((m, d), dtype=np.float32))
        if self._pinned is None or self._pinned.shape != (m, d):
            self._pinned = backend.pinned((m, d), self._ctx.device_id)
        return self._pinned

    def _loop(
        self, w_re: NDArray, x: Examples, batches: Batches, learning_rate: float
    ) -> tuple[NDArray, NDArray]:
        """Updates (m, d) and losses (m,), worker by worker, on the device; waits for none."""
        m, rounds, nd = len(batches.counts), len(batches.rows), backend.nd
        batch_of = _batches_on(self._ctx, x, batches)
        received = self._statistics and _flatten([p.data(self._ctx) for p in self._statistics])
        statistics = []
        updates = nd.empty((m, w_re.size), ctx=self._ctx)
        losses = [nd.full(1, np.nan, ctx=self._ctx)] * m
        # What a layer draws, such as dropout, follows from the batches: new in each iteration, and
        # the same in a trial that goes on from where it was interrupted.
        backend.mx.random.seed(zlib.crc32(batches.rows.tobytes()))
        self._load(self._weights, w_re)
        for i, count in enumerate(batches.counts):
            update = 0.0
            for r in range(rounds if count else 0):
                if r > 0:
                    self._load(self._weights, w_re + update)
                batch = batch_of(r, i)
                with backend.mx.autograd.record():
                    loss = self._objective(*batch)
                loss.backward()
                gradient = _flatten([p.grad(self._ctx) for p in self._weights])
                update = update - learning_rate * gradient
                losses[i] = loss if r == 0 else losses[i]
            if rounds > 1:
                self._load(self._weights, w_re)
            updates[i] = update
            if count and self._statistics:
                statistics.append(_flatten([p.data(self._ctx) for p in self._statistics]))
                self._load(self._statistics, received)
        if statistics:
            # Each is one momentum step from the same start, so their mean is the momentum step
            # of the average batch statistics.
            self._load(self._statistics, nd.stack(*statistics).mean(axis=0))
        return updates, nd.concat(*losses, dim=0)

    def _load(self, parameters: list[Any], flat: NDArray) -> None:
        start = 0
        for parameter in parameters:
            stop = start + int(np.prod(parameter.shape))
            parameter.set_data(flat[start:stop].reshape(parameter.shape))
            start = stop

    def error_rate(self, w: NDArray, x: Examples, labels: np.ndarray) -> float:
        """Share of wrong predictions of model w on examples x, `resident`, with labels (n,)."""
        return float((self.scores(w, x).argmax(axis=1) != labels).mean())

    def scores(self, w: NDArray, x: Examples) -> np.ndarray:
        """Logits (n, classes) of model w on examples x, `resident`."""
        [scores] = self._scores(host_view(w)[None], x)
        return scores

    def judge(
        self, models: np.ndarray, x: Examples, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Error rates and mean losses of models (k, d), float64 (k,); inf for logits not finite."""
        scores = self._scores(models, x).astype(np.float64)
        errors = (scores.argmax(axis=2) != labels).mean(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            losses = cross_entropy(scores, labels).mean(axis=1)
        return errors, np.where(np.isfinite(losses), losses, np.inf)

    def _scores(self, models: np.ndarray, x: Examples) -> np.ndarray:
        """Logits (k, n, classes) of models (k, d)."""
        if self._formula is not None:
            if len(models) > 1 and self._formula.scores_of_all is not None:
                return self._formula.scores_of_all(models, x)
            return np.stack([self._formula.scores(w, x) for w in models])
        scores = []
        for w in backend.nd.array(models, ctx=self._ctx):
            for start in range(0, len(x), self._chunk):
                # Anew for each chunk: nothing is computed of one while another still needs the
                # parameters, so that memory holds the activations of one alone.
                self._load(self._weights, w)
                scores.append(self._net(self._slice(x, start)))
                if isinstance(x, np.ndarray):  # or chunks made ahead of MXNet would pile up
                    scores[-1].wait_to_read()
        return backend.nd.concat(*scores, dim=0).asnumpy().reshape(len(models), len(x), -1)

    def _slice(self, x: Examples, start: int) -> NDArray:
        """Return a chunk of examples as float32, on the device."""
        stop = min(start + self._chunk, len(x))
        if isinstance(x, np.ndarray):
            return backend.nd.array(gathered(x, np.arange(start, stop)), ctx=self._ctx)
        return _numbers(x[start:stop])


def _flatten(arrays: list[NDArray]) -> NDArray:
    return backend.nd.concat(*[array.reshape(-1) for array in arrays], dim=0)


def _bytes_per_example(net: HybridBlock, shape: tuple[int, ...]) -> int:
    """Memory of all layers' outputs for one example."""
    layers = net(backend.mx.sym.var("data")).get_internals()
    _, one, _ = layers.infer_shape(data=(1, *shape))
    _, two, _ = layers.infer_shape(data=(2, *shape))
    sizes = (np.prod(more) - np.prod(less) for more, less in zip(two, one))  # parameters: 0
    return int(sum(sizes)) * np.dtype(np.float32).itemsize


def _numbers(x: NDArray) -> NDArray:
    """Examples on a device as float32; its own division gives the numbers of `gathered`."""
    return x.astype("float32") / WHITE if x.dtype == np.uint8 else x


def _batches_on(
    ctx: Context, x: Examples, batches: Batches
) -> Callable[[int, int], tuple[NDArray, NDArray]]:
    """Return a function (round, worker) -> examples and labels of a batch, on the device."""
    counts, nd = batches.counts.tolist(), backend.nd
    if isinstance(x, np.ndarray):

        def on_host(r: int, i: int) -> tuple[NDArray, NDArray]:
            rows, labels = batches.rows[r, i, : counts[i]], batches.labels[r, i, : counts[i]]
            return nd.array(gathered(x, rows), ctx=ctx), nd.array(labels, ctx=ctx)

        return on_host

    # One upload for all workers; in float32, the default, row numbers beyond 2^24 would be wrong.
    numbers = nd.array(np.stack([batches.rows, batches.labels]), ctx=ctx, dtype="int32")
    # One place for all batches: MXNet fills it again when the last one's gradient is computed, and
    # so never holds the activations of several workers, though the host runs ahead of the device.
    place = nd.empty((batches.rows.shape[2], *x.shape[1:]), ctx=ctx)

    def on_device(r: int, i: int) -> tuple[NDArray, NDArray]:
        rows, labels = numbers[0][r][i][: counts[i]], numbers[1][r][i][: counts[i]]
        return _numbers(nd.take(x, rows, axis=0)).copyto(place[: counts[i]]), labels

    return on_device
