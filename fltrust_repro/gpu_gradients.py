"""Exact updates of all workers for LR and the CNN on a GPU, many workers at a time.

One product of a library's per layer and direction takes all of them in; what lies between is in
`gradients.cu`, compiled for the card at hand. Nothing else of MXNet's own computes there.
`gradients.py` and `cnn_gradients.py` do the same on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fltrust_repro import backend
from fltrust_repro.compiled import Array
from fltrust_repro.cuda_source import Launch, kernels_of
from fltrust_repro.gradients import Compiled

if TYPE_CHECKING:
    from mxnet.context import Context
    from mxnet.ndarray import NDArray

SOURCE = Path(__file__).with_name("gradients.cu")
_WORKSPACE = 2**29  # bytes at most; more workers at a time are no faster
_SCORE_CHUNK = 500  # examples


class _Layer(NamedTuple):
    """Where in the model's vector a layer's weight (outputs, inputs) and bias (outputs,) begin."""

    start: int
    outputs: int
    inputs: int


class _Images(NamedTuple):
    """What a convolution takes, or the last one leaves."""

    channels: int
    height: int
    width: int


class Network:
    """Convolutions, relu and max pooling after each, then dense layers with relu between them.

    `convolutions` and `hidden` count filters and units; kernel and pooling window are (height,
    width). `launch` runs the kernels, by default on the GPU that is `ctx`.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, ...],
        ctx: Context,
        convolutions: Sequence[int] = (),
        hidden: Sequence[int] = (),
        kernel: tuple[int, int] = (1, 1),
        pool: tuple[int, int] = (1, 1),
        launch: Launch | None = None,
    ) -> None:
        self._ctx, self._kernel, self._pool = ctx, kernel, pool
        self._launch = launch or kernels_of(SOURCE, ctx)
        self._images = [_Images(*shape)]
        self._layers: list[_Layer] = []
        for filters in convolutions:
            channels, *sides = self._images[-1]
            self._add(filters, channels * kernel[0] * kernel[1])
            left = ((side - k + 1) // p for side, k, p in zip(sides, kernel, pool))
            self._images.append(_Images(filters, *left))
        inputs = int(np.prod(self._images[-1]))
        for outputs in (*hidden, classes):
            self._add(outputs, inputs)
            inputs = outputs
        self._convolutions = len(convolutions)

    def _add(self, outputs: int, inputs: int) -> None:
        last = self._layers[-1] if self._layers else _Layer(0, 0, 0)
        start = last.start + last.outputs * (last.inputs + 1)
        self._layers.append(_Layer(start, outputs, inputs))

    def formula(self) -> Compiled:
        """What `workers.Learner` asks: as on a CPU, but for the examples x, an NDArray there."""
        return Compiled(self._updates, self._scores)

    def _updates(
        self, w: Array, x: NDArray, batches: tuple, rate: float, updates: Array, losses: Array
    ) -> None:
        rows, labels, counts = batches
        real = np.arange(rows.shape[2]) < counts[:, None]
        rows, labels = np.where(real, rows, 0), np.where(real, labels, 0)
        received, out = backend.nd.array(w, ctx=self._ctx), backend.to_ndarray(updates)
        found = []
        for some in self._parts(len(counts), rows.shape[2]):
            part = rows[:, some], labels[:, some], self._upload(counts[some])
            theirs, first_losses = self._local_sgd(received, x, part, rate)
            theirs.copyto(out[some])  # while the next ones are computed
            # Waits: the host runs ahead of the GPU, and would fill its memory.
            found.append(first_losses.asnumpy())
        sums = np.concatenate(found).sum(axis=1, dtype=np.float64)
        np.divide(sums, counts, out=losses, where=counts > 0)
        out.wait_to_read()

    def _scores(self, w: Array, x: NDArray) -> Array:
        parameters = self._packed(backend.nd.array(w, ctx=self._ctx), None, 1)
        logits = []
        for start in range(0, len(x), _SCORE_CHUNK):
            rows = np.arange(start, min(start + _SCORE_CHUNK, len(x)))[None]
            *_, scores = self._forward(parameters, self._gathered(x, rows))
            logits.append(scores.asnumpy()[0])
        return np.concatenate(logits)

    # ---- one round of several workers

    def _local_sgd(
        self, received: NDArray, x: NDArray, part: tuple, rate: float
    ) -> tuple[NDArray, NDArray]:
        """Updates (g, d) of g workers, and their examples' losses (g, e) in the first round."""
        (rows, labels, counts), d = part, received.size
        updates, losses = self._empty(rows.shape[1], d), []
        for r in range(len(rows)):
            parameters = self._packed(received, updates if r else None, rows.shape[1])
            *inputs, logits = self._forward(parameters, self._gathered(x, rows[r]))
            losses.append(self._empty(*rows.shape[1:]))
            self._launch("softmax_residual", self._upload(labels[r]), counts, logits, losses[-1],
                         rows.shape[2], logits.shape[2], losses[-1].size)  # fmt: skip
            gradients = self._backward(parameters, inputs, logits)
            for layer, gradient in zip(reversed(self._layers), gradients):
                told = (d, *layer, int(r == 0), rate, gradient.size)
                self._launch("step", gradient, counts, updates, *told)
        return updates, losses[0]

    def _forward(self, parameters: list[NDArray], images: NDArray) -> Iterator[Any]:
        """What each layer multiplied, a convolution's with its maxima's places; last the logits."""
        dot, workers, examples = backend.nd.batch_dot, images.shape[0], images.shape[2]
        for k in range(self._convolutions):
            columns = self._patches(images, self._images[k])
            z = dot(parameters[k], columns)
            images, places = self._pooled(z, self._images[k], self._images[k + 1], examples)
            yield columns, places
        channels, height, width = self._images[-1]
        length = channels * height * width
        inputs = self._empty(workers, examples, length + 1)
        told = (channels, examples, height * width, inputs.size)
        self._launch("flatten", images, inputs, *told)
        for packed in parameters[self._convolutions : -1]:
            yield inputs
            z = dot(inputs, packed, transpose_b=True)
            inputs = self._empty(workers, examples, z.shape[2] + 1)
            self._launch("relu", z, inputs, z.shape[2], inputs.size)
        yield inputs
        yield dot(inputs, parameters[-1], transpose_b=True)

    def _backward(
        self, parameters: list[NDArray], multiplied: list[Any], d_z: NDArray
    ) -> Iterator[NDArray]:
        """Gradients (g, outputs, inputs + 1) of all layers, the last layer first."""
        dot = backend.nd.batch_dot
        for k in reversed(range(len(self._layers))):
            dense, last = k >= self._convolutions, k == 0
            if dense:
                yield dot(d_z, multiplied[k], transpose_a=True)
                d_inputs = None if last else dot(d_z, parameters[k])
            else:
                columns, _places = multiplied[k]
                yield dot(d_z, columns, transpose_b=True)
                d_inputs = None if last else dot(parameters[k], d_z, transpose_a=True)
            if d_inputs is None:
                return
            if k > self._convolutions:
                inputs, length = multiplied[k], self._layers[k].inputs
                d_z = self._empty(*inputs.shape[:2], length)
                self._launch("relu_gradient", d_inputs, inputs, d_z, length, d_z.size)
            else:
                images = self._images[k]
                d_pooled = (
                    self._unflattened(d_inputs) if dense else self._from_patches(d_inputs, images)
                )
                d_z = self._unpooled(d_pooled, multiplied[k - 1][1], k)

    # ---- the kernels, each with its shapes

    def _packed(self, w: NDArray, updates: NDArray | None, workers: int) -> list[NDArray]:
        packed = []
        for layer in self._layers:
            packed.append(self._empty(workers, layer.outputs, layer.inputs + 1))
            first, n = int(updates is None), packed[-1].size
            moved = w if updates is None else updates
            self._launch("pack", w, moved, packed[-1], w.size, *layer, first, n)
        return packed

    def _gathered(self, x: NDArray, rows: Array) -> NDArray:
        channels, height, width = self._images[0]
        images = self._empty(len(rows), channels, rows.shape[1], height, width)
        told = (channels, rows.shape[1], height * width, images.size)
        gather = "gather" if x.dtype == np.float32 else "gather_pixels"
        self._launch(gather, x, self._upload(rows), images, *told)
        return images

    def _patches(self, images: NDArray, of: _Images) -> NDArray:
        (kh, kw), examples = self._kernel, images.shape[2]
        places = examples * (of.height - kh + 1) * (of.width - kw + 1)
        columns = self._empty(len(images), of.channels * kh * kw + 1, places)
        told = (of.channels, examples, of.height, of.width, kh, kw, columns.size)
        self._launch("patches", images, columns, *told)
        return columns

    def _sides(self, of: _Images) -> tuple[int, int]:
        """Height and width of what a convolution of such images gives."""
        return of.height - self._kernel[0] + 1, of.width - self._kernel[1] + 1

    def _pooled(
        self, z: NDArray, of: _Images, to: _Images, examples: int
    ) -> tuple[NDArray, NDArray]:
        shape = (len(z), to.channels, examples, to.height, to.width)
        pooled, places = self._empty(*shape), self._empty(*shape, dtype="int32")
        self._launch("pool", z, pooled, places, *self._sides(of), *self._pool, pooled.size)
        return pooled, places

    def _unpooled(self, d_pooled: NDArray, places: NDArray, k: int) -> NDArray:
        """From the gradient of what layer k takes to that of the convolution before it."""
        height, width = self._sides(self._images[k - 1])
        workers, filters, examples = places.shape[:3]
        d_z = self._empty(workers, filters, examples * height * width)
        told = (height, width, *self._pool, d_z.size)
        self._launch("pool_gradient", d_pooled, places, d_z, *told)
        return d_z

    def _unflattened(self, d_inputs: NDArray) -> NDArray:
        """From the gradient of what the first dense layer takes to that of the last images."""
        channels, height, width = self._images[-1]
        workers, examples = d_inputs.shape[:2]
        d_images = self._empty(workers, channels, examples, height, width)
        told = (channels, examples, height * width, d_images.size)
        self._launch("flatten_gradient", d_inputs, d_images, *told)
        return d_images

    def _from_patches(self, d_columns: NDArray, of: _Images) -> NDArray:
        """From the gradient of a convolution's patches to that of its images."""
        examples = d_columns.shape[2] // int(np.prod(self._sides(of)))
        d_images = self._empty(len(d_columns), of.channels, examples, of.height, of.width)
        told = (of.channels, examples, of.height, of.width, *self._kernel, d_images.size)
        self._launch("patches_gradient", d_columns, d_images, *told)
        return d_images

    def _empty(self, *shape: int, dtype: str = "float32") -> NDArray:
        return backend.nd.empty(shape, ctx=self._ctx, dtype=dtype)

    def _upload(self, numbers: Array) -> NDArray:
        return backend.nd.array(numbers, ctx=self._ctx, dtype="int32")

    # ---- memory

    def _parts(self, workers: int, examples: int) -> Iterator[slice]:
        """Workers in turn, as many at a time as fit; alike on all cards but the smallest."""
        room = min(_WORKSPACE, backend.workspace(self._ctx))
        some = max(1, room // self._bytes_per_worker(examples))
        return (slice(start, start + some) for start in range(0, workers, some))

    def _bytes_per_worker(self, examples: int) -> int:
        numbers = 0
        for k, layer in enumerate(self._layers):
            here = self._images[k] if k < self._convolutions else None
            places = examples * (int(np.prod(self._sides(here))) if here else 1)
            inputs_and_outputs = 2 * (layer.inputs + 1) + 3 * layer.outputs
            numbers += places * inputs_and_outputs + 3 * layer.outputs * (layer.inputs + 1)
        return numbers * np.dtype(np.float32).itemsize
