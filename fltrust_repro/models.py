"""The paper's classifiers (Section 4.1) and others' as plain Gluon blocks, and how to add one.

    @model("mlp", iterations=1000)
    def mlp(classes: int, shape: Shape) -> HybridBlock:
        '''One line that `list` shows.'''

The block maps examples (n, *shape) to float32 logits (n, classes), checked before a trial begins. A
model may bring formulas for all workers' updates, compiled for a CPU (`gradients.py`) and for a GPU
(`gpu_gradients.py`); others run in a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fltrust_repro import backend
from fltrust_repro.cnn_gradients import compiled_cnn
from fltrust_repro.errors import BadInput
from fltrust_repro.gpu_gradients import Network
from fltrust_repro.gradients import Compiled, compiled_lr
from fltrust_repro.registry import Registry, check_default, check_named

if TYPE_CHECKING:
    from mxnet.context import Context
    from mxnet.gluon import HybridBlock

Shape = tuple[int, ...]  # (channels, height, width) of an example
Build = Callable[[int, Shape], "HybridBlock"]
Compiling = Callable[[int, Shape], Compiled]
OnGpu = Callable[[int, Shape, "Context"], Compiled]


@dataclass(frozen=True)
class Model:
    """A classifier: how it is built, formulas for its updates, its default of iterations."""

    name: str
    build: Build
    compiled: Compiling | None = None
    on_gpu: OnGpu | None = None
    iterations: int = 2000

    def __post_init__(self) -> None:
        check_default(f"model {self.name!r}", "iterations", self.iterations, int)

    def check_built(self, block: object) -> None:
        """Raise `BadInput` where `build` returned something else than a block."""
        if not isinstance(block, backend.mx.gluon.HybridBlock):
            wrong = f"model {self.name!r} is a {type(block).__name__}"
            raise BadInput(f"{wrong}; its function must return a Gluon HybridBlock.")

    def check_logits(self, logits: object, n: int, classes: int) -> None:
        """Raise `BadInput` where the block gives other than n examples' logits of the classes."""
        if not isinstance(logits, backend.NDArray):
            problem = f"gives a {type(logits).__name__}, not one NDArray"
        elif logits.ndim != 2 or len(logits) != n:
            problem = f"gives shape {logits.shape} for {n} examples, not ({n}, {classes})"
        elif logits.shape[1] != classes:
            problem = f"gives {logits.shape[1]} outputs, the data set has {classes} classes"
        elif logits.dtype != np.float32:
            problem = f"computes in {np.dtype(logits.dtype).name}, not float32"
        else:
            return
        raise BadInput(f"model {self.name!r} {problem}; correct the block that it builds.")


models: Registry[Model] = Registry("model")


def with_gpu_formula() -> list[str]:
    """Name the models that train on any GPU; others need one that MXNet's build has code for."""
    return [name for name, entry in models.items() if entry.on_gpu is not None]


def model(
    name: str,
    iterations: int = 2000,
    compiled: Compiling | None = None,
    on_gpu: OnGpu | None = None,
) -> Callable[[Build], Build]:
    """Register a function `(classes, shape) -> HybridBlock`; see `Model` for the rest."""
    check_named("model", name)

    def register(build: Build) -> Build:
        models.add(name, Model(name, build, compiled, on_gpu, iterations))
        return build

    return register


@model("lr", iterations=500, compiled=compiled_lr, on_gpu=lambda *given: Network(*given).formula())
def logistic_regression(classes: int, shape: Shape) -> HybridBlock:
    """Multi-class logistic regression (d = 7,850 for MNIST)."""
    return backend.mx.gluon.nn.Dense(classes, in_units=int(np.prod(shape)))


def cnn_windows(shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and pooling window of the CNN: 3x3 and 2x2, or 1x3 and 1x2 for a row of features."""
    return ((1, 3), (1, 2)) if shape[1] == 1 else ((3, 3), (2, 2))


def _cnn_on_gpu(classes: int, shape: Shape, ctx: Context) -> Compiled:
    return Network(classes, shape, ctx, (30, 50), (200,), *cnn_windows(shape)).formula()


@model(
    "cnn",
    compiled=lambda classes, shape: compiled_cnn(classes, shape, *cnn_windows(shape)),
    on_gpu=_cnn_on_gpu,
)
def cnn(classes: int, shape: Shape) -> HybridBlock:
    """Two convolutions and two dense layers of Table 7a (d = 266,060 for MNIST)."""
    kernel, pool = cnn_windows(shape)
    smallest = [p * (k + p - 1) + k - 1 for k, p in zip(kernel, pool)]
    if any(size < least for size, least in zip(shape[1:], smallest)):
        given = f"images of at least 10 x 10 pixels, these are {shape[1]} x {shape[2]}"
        raise BadInput(f"the CNN of Table 7a needs {given}; use --model lr or resnet20.")
    nn = backend.mx.gluon.nn
    block = nn.HybridSequential()
    block.add(
        nn.Conv2D(30, kernel, activation="relu", in_channels=shape[0]),
        nn.MaxPool2D(pool, pool),
        nn.Conv2D(50, kernel, activation="relu", in_channels=30),
        nn.MaxPool2D(pool, pool),
        nn.Dense(200, activation="relu"),
        nn.Dense(classes, in_units=200),
    )
    return block


@model("resnet20")
def resnet20(classes: int, shape: Shape) -> HybridBlock:
    """ResNet20 of He et al. (2016) from Gluon's model zoo, first convolution for small images."""
    zoo = backend.mx.gluon.model_zoo.vision
    depths, channels = [3, 3, 3], [16, 16, 32, 64]
    return zoo.ResNetV1(zoo.BasicBlockV1, depths, channels, classes=classes, thumbnail=True)


@model("bucketing-cnn", iterations=600)
def bucketing_cnn(classes: int, shape: Shape) -> HybridBlock:
    """CNN of the bucketing paper's code, with dropout (d = 1,199,882; Karimireddy et al., 2022).

    PyTorch's example for MNIST as it was then: no activation after the second convolution, pixels
    normalised by MNIST's mean and deviation, and PyTorch's initial model, whatever `initial` says.
    """
    if any(size < 6 for size in shape[1:]):
        given = f"images of at least 6 x 6 pixels, these are {shape[1]} x {shape[2]}"
        raise BadInput(f"model 'bucketing-cnn' needs {given}; use --model lr.")
    nn, init = backend.mx.gluon.nn, backend.mx.init
    flat = 64 * ((shape[1] - 4) // 2) * ((shape[2] - 4) // 2)

    def drawn(inputs: int) -> dict[str, Any]:
        uniform = init.Uniform(inputs**-0.5)
        return {"weight_initializer": uniform, "bias_initializer": uniform}

    block = nn.HybridSequential()
    block.add(
        nn.HybridLambda(lambda F, x: (x - 0.1307) / 0.3081),  # noqa: N803
        nn.Conv2D(32, 3, activation="relu", in_channels=shape[0], **drawn(9 * shape[0])),
        nn.Conv2D(64, 3, in_channels=32, **drawn(9 * 32)),
        nn.MaxPool2D(2, 2),
        nn.Dropout(0.25, axes=(2, 3)),  # whole maps
        nn.Dense(128, activation="relu", in_units=flat, **drawn(flat)),
        nn.Dropout(0.5),
        nn.Dense(classes, in_units=128, **drawn(128)),
    )
    return block
