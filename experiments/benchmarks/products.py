"""The matrix products that the models' layers consist of, at the least.

A layer is (outputs, inputs, places, windows): its weight, outputs x inputs, times a matrix inputs x
places. A convolution has the inputs of a patch, and as many places as the whole batch has patches
that anything depends on. Max pooling lets one of them through in each window, and the gradient
comes back to so many places only; other layers have as many windows as places.
"""

from __future__ import annotations

Layer = tuple[int, int, int, int]
Product = tuple[int, int, int]  # rows, inner, columns


def _lr(batch: int) -> list[Layer]:
    return [(10, 784, batch, batch)]


def _cnn(batch: int) -> list[Layer]:
    # The last row and column of 11 x 11 outputs lie in no window of 2 x 2.
    return [
        (30, 9, batch * 26 * 26, batch * 13 * 13),
        (50, 30 * 9, batch * 10 * 10, batch * 5 * 5),
        (200, 1250, batch, batch),
        (10, 200, batch, batch),
    ]


def _resnet20(batch: int) -> list[Layer]:
    layers, inputs = [(16, 9, *(batch * 64 * 64,) * 2)], 16
    for channels, side in ((16, 64), (32, 32), (64, 16)):
        places = (batch * side * side,) * 2
        if inputs != channels:
            layers.append((channels, inputs, *places))  # the shortcut
        layers.append((channels, 9 * inputs, *places))
        layers += [(channels, 9 * channels, *places)] * 5
        inputs = channels
    return [*layers, (8, 64, batch, batch)]


# On 28x28 images of ten classes; ResNet20 on 64x64 images of eight.
LAYERS = {"lr": _lr, "cnn": _cnn, "resnet20": _resnet20}


def of_scores(layers: list[Layer]) -> list[Product]:
    """Products of a forward pass."""
    return [(outputs, inputs, places) for outputs, inputs, places, _ in layers]


def of_gradient(layers: list[Layer]) -> list[Product]:
    """Products of a forward and backward pass: the scores, and by the chain rule both gradients."""
    products = of_scores(layers)
    for k, (outputs, inputs, _, windows) in enumerate(layers):
        products.append((outputs, windows, inputs))
        if k > 0:  # nobody asks for the images' gradient
            products.append((inputs, outputs, windows))
    return products


def flops(products: list[Product]) -> float:
    """Operations, two for each multiplication with its addition."""
    return sum(2.0 * rows * inner * columns for rows, inner, columns in products)
