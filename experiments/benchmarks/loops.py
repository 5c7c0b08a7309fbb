"""The loops over workers that one would write first: in MXNet, and in PyTorch.

Both take the workers' batches as arrays, (m, batch, channels, height, width), and give the updates
(m, d); the rule is then trimmed mean by np.sort.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from fltrust_repro.settings import Setting

Updates = Callable[[], np.ndarray]


def sorted_trimmed_mean(updates: np.ndarray, beta: int) -> np.ndarray:
    """Trimmed mean by np.sort."""
    return np.sort(updates, axis=0)[beta : len(updates) - beta].mean(axis=0)


def mxnet_updates(
    model: str, classes: int, w: np.ndarray, x: np.ndarray, labels: np.ndarray, rate: float
) -> Updates:
    """One Gluon forward and backward pass after the other."""
    from fltrust_repro.backend import mx, nd
    from fltrust_repro.models import models

    net = models[model].build(classes, x.shape[2:])
    net.initialize()
    net(nd.zeros((1, *x.shape[2:])))
    net.hybridize()
    parameters = [p for p in net.collect_params().values() if p.grad_req != "null"]
    for parameter, part in zip(parameters, _split(w, [p.shape for p in parameters])):
        parameter.set_data(nd.array(part))
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def updates() -> np.ndarray:
        rows = []
        for images, truth in zip(x, labels):
            with mx.autograd.record():
                loss = loss_of(net(nd.array(images)), nd.array(truth)).mean()
            loss.backward()
            rows.append(nd.concat(*[p.grad().reshape(-1) for p in parameters], dim=0))
        return (-rate * nd.stack(*rows)).asnumpy()

    return updates


def torch_updates(
    model: str, classes: int, w: np.ndarray, x: np.ndarray, labels: np.ndarray, rate: float
) -> Updates:
    """One autograd pass after the other."""
    import torch

    torch.set_num_threads(1)
    net = _TORCH_MODELS[model](torch.nn, classes, int(np.prod(x.shape[2:])))
    parameters = list(net.parameters())
    with torch.no_grad():
        for parameter, part in zip(parameters, _split(w, [p.shape for p in parameters])):
            parameter.copy_(torch.from_numpy(part))
    truths = labels.astype(np.int64)

    def updates() -> np.ndarray:
        rows = []
        for images, truth in zip(x, truths):
            scores = net(torch.from_numpy(images))
            loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(truth))
            gradients = torch.autograd.grad(loss, parameters)
            rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        return (-rate * torch.stack(rows)).numpy()

    return updates


def _split(w: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(w, ends[:-1]), shapes)]


def _torch_lr(nn: Any, classes: int, inputs: int) -> Any:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def _torch_cnn(nn: Any, classes: int, _inputs: int) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 30, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(30, 50, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1250, 200), nn.ReLU(), nn.Linear(200, classes),
    )  # fmt: skip


_TORCH_MODELS = {"lr": _torch_lr, "cnn": _torch_cnn}


def reason_to_skip(setting: Setting, loop: Callable) -> str:
    """Tell why a loop is not measured for a setting; empty where it is."""
    if setting.batch_size > 32:
        return "as with batches of 32"
    if loop is mxnet_updates:
        return ""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    model = setting.model
    return "" if model in _TORCH_MODELS else f"{model} is not written in PyTorch here"
