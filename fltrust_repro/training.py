"""The federated learning process under attack (paper, Section 2.1): one trial, start to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fltrust_repro import datasets
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import Round, attacks
from fltrust_repro.backend import Context, NDArray, array_view, context, nd, to_ndarray
from fltrust_repro.models import models
from fltrust_repro.partition import Shards, partition, sample_batches, shuffle_workers
from fltrust_repro.settings import Setting
from fltrust_repro.workers import Learner

# Raised whenever a change of the code moves results: older trials are then run again.
PROTOCOL = 1
EVALUATE_EVERY = 10

_PURPOSES = ("split", "partition", "order", "initial", "batches", "attack")


@dataclass(frozen=True)
class TrialResult:
    """What a trial found.

    Attributes
    ----------
    error_rate : float
        Share of wrong predictions of the final global model on the whole test set.
    lowest_error_rate : float
        Lowest one seen, every 10 iterations and at the end (Table 3).
    iterations : int
        Iterations done.
    diverged : bool
        Whether a parameter of the global model became NaN or infinite; training ends there.
    seconds : float
        Wall-clock time of the training, data loading left out.
    curve : list of (iteration, error rate, training loss)
        The loss is the benign workers' mean batch loss at the model before that iteration.
    empty_workers : int
        Workers that hold no training example and send zero updates.
    """

    error_rate: float
    lowest_error_rate: float
    iterations: int
    diverged: bool
    seconds: float
    curve: list[tuple[int, float, float]]
    empty_workers: int


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the trial's own generator for one purpose, so that no draw depends on another's."""
    return np.random.default_rng([seed, _PURPOSES.index(purpose)])


# A model that diverges is reported as such; numpy need not say so as well.
@np.errstate(over="ignore", invalid="ignore")
def run_trial(
    setting: Setting,
    seed: int,
    *,
    device: str = "cpu",
    gpu: int = 0,
    data_dir: str | Path | None = None,
    after_iteration: Callable[[], None] = lambda: None,
) -> TrialResult:
    """Train once under the setting's attack.

    Parameters
    ----------
    setting : Setting
    seed : int
        Decides the split, the partition, which workers are compromised, the initial model, the
        batches and the attacker's randomness, each by a generator of its own.
    device : {"cpu", "gpu"}
    gpu : int
        Which GPU.
    data_dir : path, optional
        Where data sets are looked for first.
    after_iteration : function, optional
        Called after each iteration, for progress bars.

    Returns
    -------
    TrialResult

    Raises
    ------
    BadInput
        The model cannot take the data set's examples, or a data file is wrong.
    DataUnavailable
        The data set is not at hand and could not be downloaded.
    """
    devices = _set_up(setting, seed, context(device, gpu), data_dir)
    learner, data = devices.learner, devices.data
    attack, rule = attacks[setting.attack], rules[setting.rule]
    c, beta = setting.compromised, setting.beta
    batch_rng, attack_rng = generator(seed, "batches"), generator(seed, "attack")

    w, diverged, curve = learner.initial, False, []
    started = time.perf_counter()
    for iteration in range(1, setting.iterations + 1):
        # Step I and II: the workers receive the global model and train on their own examples.
        batches = sample_batches(devices.shards, setting.batch_size, setting.rounds, batch_rng)
        updates, losses = learner.updates(
            w, devices.train_x, devices.labels, batches, setting.learning_rate
        )
        if attack.craft is not None:
            known = updates[:c] if setting.knowledge == "partial" else updates
            array_view(updates)[0][:c] = array_view(
                attack.craft(Round(known, c, w, setting, attack_rng))
            )[0]
        # Step III: the master device aggregates.
        w = _moved(w, rule(updates, c=c, beta=beta))
        diverged = not _is_finite(w)
        if diverged or iteration == setting.iterations or iteration % EVALUATE_EVERY == 0:
            error = learner.error_rate(w, devices.test_x, data.test_y)
            curve.append((iteration, error, _mean_loss(losses[c:])))
        after_iteration()
        if diverged:
            break

    return TrialResult(
        error_rate=curve[-1][1],
        lowest_error_rate=min(error for _, error, _ in curve),
        iterations=iteration,
        diverged=diverged,
        seconds=time.perf_counter() - started,
        curve=curve,
        empty_workers=int((devices.shards.sizes == 0).sum()),
    )


class _Devices(NamedTuple):
    """Master and worker devices before training: who holds what, and where it lies."""

    data: datasets.Dataset
    shards: Shards
    labels: np.ndarray  # the workers' labels, poisoned where the attack poisons data
    learner: Learner
    train_x: NDArray
    test_x: NDArray


def _set_up(setting: Setting, seed: int, ctx: Context, data_dir: str | Path | None) -> _Devices:
    data = datasets.load(setting.dataset, generator(seed, "split"), data_dir)
    shards = partition(
        data.train_y,
        data.classes,
        setting.workers,
        setting.non_iid,
        generator(seed, "partition"),
    )
    if setting.worker_order == "shuffled":
        shards = shuffle_workers(shards, generator(seed, "order"))
    poison = attacks[setting.attack].poison
    labels = data.train_y
    if poison is not None:
        labels = poison(labels, shards, setting.compromised, data.classes)
    initial_seed = int(generator(seed, "initial").integers(2**31))
    learner = Learner(
        models[setting.model], data.classes, data.train_x.shape[1:], ctx, initial_seed
    )
    train_x, test_x = _resident(data.train_x, ctx), _resident(data.test_x, ctx)
    return _Devices(data, shards, labels, learner, train_x, test_x)


def _resident(x: np.ndarray, ctx: Context) -> NDArray:
    return nd.from_numpy(x, zero_copy=True) if ctx.device_type == "cpu" else nd.array(x, ctx=ctx)


def _moved(w: NDArray, change: NDArray) -> NDArray:
    return to_ndarray(array_view(w)[0] + array_view(change)[0])


def _is_finite(w: NDArray) -> bool:
    # Also the one point of each iteration where the host waits for the device, without which
    # MXNet's asynchronous engine would pile up memory.
    return bool(np.isfinite(float((array_view(w)[0] * 0).sum())))


def _mean_loss(losses: np.ndarray) -> float:
    known = losses[~np.isnan(losses)]
    return float(known.mean()) if known.size else float("nan")
