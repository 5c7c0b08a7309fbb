"""What runs in a worker process: one trial after the other, on one core or a share of a GPU.

The parent, or a Dask worker's start, prepares the process once; all else comes with each call.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from fltrust_repro import backend, cuda, machine
from fltrust_repro.attacks import attacks
from fltrust_repro.registry import load_plugin
from fltrust_repro.results import EVALUATE_EVERY
from fltrust_repro.settings import Setting
from fltrust_repro.training import poisoned_examples, run_trial
from fltrust_repro.trials import Trial, protocol_of


@dataclass
class _Process:
    """What a process learns once, when it starts."""

    gpu: int = 0
    after_iteration: Callable[[], None] = lambda: None


_process = _Process()


def prepare(plugins: Iterable[Path], gpu: int, after_iteration: Callable[[], None]) -> None:
    """Make this process ready for trials: its plug-ins, its GPU, its end of the progress bar."""
    _process.gpu, _process.after_iteration = gpu, after_iteration
    for path in plugins:
        load_plugin(path)


def versions(gpu: int | None = None) -> str:
    """Return what a result may depend on beside its setting, in one line.

    The versions, each library's kernels of linear algebra, the CPU, and the GPU if one trains.
    """
    kernels: dict[str, list[str]] = {}
    for blas in machine.libraries():
        kernels.setdefault(blas.owner, []).append(str(blas))
    found = [f"python {platform.python_version()}", platform.machine()]
    for name in ("fltrust_repro", "mxnet", "mxnet-cu112", "numpy", "scipy", "numba"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            text = f"{name} {importlib.metadata.version(name)}"
            own = kernels.pop(name.partition("-")[0], None)
            found.append(f"{text} ({' and '.join(own)})" if own else text)
    found += [f"BLAS {text}" for texts in kernels.values() for text in texts]
    found.append(str(machine.cpu()))
    if gpu is not None:
        found.append(cuda.gpu_name(gpu) or "GPU of unknown name")
    return ", ".join(found)


def run(setting: Setting, seed: int, device: str, data_dir: Path | None) -> Trial:
    """Run one trial."""
    result = run_trial(
        setting,
        seed,
        device=device,
        gpu=_process.gpu,
        data_dir=data_dir,
        after_iteration=_process.after_iteration,
    )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    told = versions(_process.gpu if device == "gpu" else None)
    return Trial(setting, seed, result, device, told, now, protocol_of(setting))


class Projection(NamedTuple):
    """What a trial will take, from a few of its iterations."""

    seconds: float
    gpu_share: float  # of a GPU's memory, as used so far; 0 on the CPU


def project(setting: Setting, device: str, data_dir: Path | None) -> Projection:
    """Estimate what a trial takes from six iterations; evaluation is timed apart."""
    # Poisoned examples take minutes to make and change an iteration's time by little.
    without = {"attack": "none"} if attacks[setting.attack].inject is not None else {}

    def timed(iterations: int) -> float:
        short = Setting.from_dict({**setting.as_dict(), **without, "iterations": iterations})
        return run_trial(short, 0, device=device, gpu=_process.gpu, data_dir=data_dir).seconds

    timed(1)  # compiles, or loads what was compiled
    one, four = timed(1), timed(4)
    iteration = (four - one) / 3
    evaluation = max(one - iteration, 0.0)
    seconds = setting.iterations * (iteration + evaluation / EVALUATE_EVERY)
    return Projection(seconds, backend.gpu_memory_share(_process.gpu) if device == "gpu" else 0.0)


def make_poisoned_set(setting: Setting, seed: int, data_dir: Path | None) -> None:
    """Make the examples that a setting's attack injects; kept on disk, too large to send back."""
    poisoned_examples(setting, seed, data_dir)
