"""The CNN's updates and the rules by PyTorch on the same card: `measure.py` runs it, CSV comes out.

In a process of its own, since PyTorch and MXNet each bring CUDA libraries of their own version; any
Python that has PyTorch will do, and needs nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

WORKERS, BATCH, RATE, D = 100, 32, 0.01, 266_060


def milliseconds(call: Callable[[], object], budget: float = 3.0) -> tuple[float, int]:
    """Median time of a call, after two that may compile, and how often it was measured."""
    times: list[float] = []
    while len(times) < 7 or (sum(times) < budget and len(times) < 52):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times[2:]), 3), len(times) - 2


def updates() -> dict[str, Callable[[], object]]:
    """All workers' updates, copied to the host: the plain loop, and `torch.func`'s all at once."""
    nn, where = torch.nn, "cuda"
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 30, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(30, 50, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1250, 200), nn.ReLU(), nn.Linear(200, 10),
    ).to(where)  # fmt: skip
    x = torch.rand(WORKERS, BATCH, 1, 28, 28, device=where)
    y = torch.randint(10, (WORKERS, BATCH), device=where)
    loss_of, values = nn.functional.cross_entropy, dict(net.named_parameters())
    fixed = {name: value.detach() for name, value in values.items()}
    host = torch.empty(WORKERS, D, pin_memory=True)

    def loop() -> None:
        rows = []
        for images, labels in zip(x, y):
            gradients = torch.autograd.grad(loss_of(net(images), labels), list(values.values()))
            rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        host.copy_(-RATE * torch.stack(rows))

    def one(values: dict, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss_of(torch.func.functional_call(net, values, (images,)), labels)

    together = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))

    def vmapped() -> None:
        gradients = together(fixed, x, y).values()
        host.copy_(-RATE * torch.cat([g.reshape(WORKERS, -1) for g in gradients], dim=1))

    return {"PyTorch loop": loop, "PyTorch vmap": vmapped}


def rules() -> dict[str, Callable[[], object]]:
    """What rules do with updates that lie on the card; nothing is copied."""
    there = torch.randn(WORKERS, D, device="cuda")
    return {
        "trimmed-mean": lambda: torch.sort(there, dim=0).values[20:80].mean(0),
        "median": lambda: torch.sort(there, dim=0).values[49:51].mean(0),
        "krum": lambda: torch.cdist(there, there),  # its distances
    }


def main() -> None:
    """Print a row per measurement."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for who, call in updates().items():
        median, repeats = milliseconds(call)
        print(
            f'"cnn: updates of {WORKERS} workers, on the host",{who} on the GPU,{median},{repeats}'
        )
    for rule, call in rules().items():
        median, repeats = milliseconds(call)
        print(f"rule {rule},PyTorch on the GPU,{median},{repeats}")


if __name__ == "__main__":
    main()
