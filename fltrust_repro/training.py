"""The federated learning process under attack (paper, Section 2.1): one trial, start to end."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fltrust_repro import backend, datasets, downloads, poisoning
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import Round, attacks, direction_agreement
from fltrust_repro.backend import (
    Context,
    NDArray,
    array_view,
    context,
    fetch,
    nd,
    take_rows,
    to_ndarray,
)
from fltrust_repro.defenses import VALIDATION_EXAMPLES, Suspicion, defenses
from fltrust_repro.errors import BadInput
from fltrust_repro.models import models
from fltrust_repro.partition import (
    Shards,
    append_examples,
    partition,
    sample_batches,
    share_groups,
    shuffle_workers,
)
from fltrust_repro.results import EVALUATE_EVERY, TrialResult
from fltrust_repro.settings import Setting
from fltrust_repro.threads import one_thread
from fltrust_repro.workers import Learner

_PURPOSES = (
    "split",
    "partition",
    "order",
    "initial",
    "batches",
    "attack",
    "selected",
    "poisoned",
    "validation",
    "ties",
    "back-gradient",
    "distribution",
)

MOST_NUMBERS = 2**31 - 1


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the trial's own generator for one purpose, so that no draw depends on another's."""
    return np.random.default_rng([seed, _PURPOSES.index(purpose)])


@one_thread()
# A model that diverges is reported as such; numpy need not say so as well.
@np.errstate(over="ignore", invalid="ignore")
@backend.memory_told()
def run_trial(
    setting: Setting,
    seed: int,
    *,
    device: str = "cpu",
    gpu: int = 0,
    data_dir: str | Path | None = None,
    after_iteration: Callable[[], None] = lambda: None,
) -> TrialResult:
    """Train once under the setting's attack and defense.

    Parameters
    ----------
    setting : Setting
    seed : int
        Decides the split, the partition, which workers are compromised, the initial model, the
        batches, the attacker's randomness and all else that is random, each by a generator of
        its own.
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
    MemoryError
        The GPU's memory ran out.
    """
    federation = Federation(setting, seed, context(device, gpu), data_dir)
    w, diverged, curve = federation.learner.initial, False, []
    started = time.perf_counter()
    for iteration in range(1, setting.iterations + 1):
        w, losses = federation.iterate(w, iteration)
        # The one point of an iteration where the host waits for a GPU. It has to wait somewhere:
        # MXNet's asynchronous engine would pile up memory.
        zero, losses = fetch(_zero_if_finite(w), losses)
        diverged = not np.isfinite(zero[0])
        if diverged or iteration == setting.iterations or iteration % EVALUATE_EVERY == 0:
            curve.append((iteration, federation.error_rate(w), _mean_loss(losses)))
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
        empty_workers=federation.empty_workers,
        notes=federation.finished_notes(),
    )


class Federation:
    """Master and worker devices of one trial, and what they do in an iteration."""

    def __init__(
        self, setting: Setting, seed: int, ctx: Context, data_dir: str | Path | None
    ) -> None:
        self._setting = setting
        data = datasets.load(setting.dataset, generator(seed, "split"), data_dir)
        self._deal = _dealer(setting, data, seed)
        if attacks[setting.attack].inject is not None:
            extra = _injected(setting, seed, data, data_dir)
            holders = poisoning.holders(setting, len(extra.x), generator(seed, "distribution"))
            self._deal = _with_examples(self._deal, holders, len(data.train_y))
            data = dataclasses.replace(
                data,
                train_x=np.concatenate([data.train_x, extra.x]),
                train_y=np.concatenate([data.train_y, extra.labels]),
            )
        self._data = data
        self._shards = self._deal()
        self.empty_workers = int((self._shards.sizes == 0).sum())
        initial_seed = int(generator(seed, "initial").integers(2**31))
        model, shape, initial = (
            models[setting.model],
            data.train_x.shape[1:],
            setting.readings.initial,
        )
        self.learner = Learner(model, data.classes, shape, ctx, initial_seed, initial)
        _check_size(setting.selected, self.learner.initial.size)
        self._train_x, self._test_x = _resident(data.train_x, ctx), _resident(data.test_x, ctx)
        self._rngs = {name: generator(seed, name) for name in _PURPOSES}
        self._attacked = _attacked_iterations(setting, self._rngs["poisoned"])
        self._notes: Counter[str] = Counter()
        if setting.defense != "none":
            chosen = self._rngs["validation"].permutation(len(data.test_y))[:VALIDATION_EXAMPLES]
            self._validation = (
                _resident(np.ascontiguousarray(data.test_x[chosen]), ctx),
                data.test_y[chosen],
            )

    def error_rate(self, w: NDArray) -> float:
        """Of model w on the whole test set."""
        return self.learner.error_rate(w, self._test_x, self._data.test_y)

    def iterate(self, w: NDArray, iteration: int) -> tuple[NDArray, Any]:
        """One iteration (2.1): the next global model, and the benign workers' losses at w.

        The losses as `array_view` shows them, on the device.
        """
        setting, attack = self._setting, attacks[self._setting.attack]
        shards, c = self._taking_part()
        # Neither where no compromised worker was selected nor where no other one was.
        possible = setting.attack != "none" and 0 < c < len(shards)
        attacked = possible and self._attacked[iteration - 1]
        self._notes["attacked iterations"] += int(attacked)
        # Steps I and II: the workers receive the global model and train on their own examples.
        batches = sample_batches(
            shards, self._data.train_y, setting.batch_size, setting.rounds, self._rngs["batches"]
        )
        if attacked and attack.poison is not None:
            own, classes = batches.labels[:, :c], self._data.classes
            flipped = attack.poison(own.copy(), classes)
            own[:] = poisoning.checked_labels(attack.name, flipped, own.shape, classes)
        updates, losses = self.learner.updates(w, self._train_x, batches, setting.learning_rate)
        if attacked and attack.craft is not None:
            self._craft(updates, c, w)
        # Step III: the master device aggregates.
        kept = self._defended(updates, w)
        change = rules[setting.rule](kept, c=setting.c_left, beta=setting.at_master.beta)
        return _moved(w, change), losses[c:]

    def _taking_part(self) -> tuple[Shards, int]:
        """The workers selected in this iteration, and how many of them are compromised."""
        setting = self._setting
        if setting.readings.dealing == "each-iteration":
            self._shards = self._deal()
        if setting.selected == setting.workers:
            return self._shards, setting.compromised
        drawn = self._rngs["selected"].choice(setting.workers, setting.selected, replace=False)
        drawn.sort()  # the compromised ones, numbered from 0, stay first
        compromised = int((drawn < setting.compromised).sum())
        return Shards.of([self._shards[worker] for worker in drawn]), compromised

    def _craft(self, updates: NDArray, c: int, w: NDArray) -> None:
        """Overwrite the c compromised workers' updates."""
        setting = self._setting
        own_only = setting.knowledge == "partial"
        if own_only:
            self._notes["direction agreement"] += direction_agreement(updates, c, setting)
        known = updates[:c] if own_only else updates
        step = Round(known, c, w, setting, self._rngs["attack"], self._notes)
        array_view(updates)[0][:c] = array_view(attacks[setting.attack].craft(step))[0]

    def _defended(self, updates: NDArray, w: NDArray) -> NDArray:
        """The updates that the defense leaves (Section 5)."""
        setting = self._setting
        if setting.defense == "none":
            return updates
        _, c, beta = setting.at_master
        shown = updates, w
        if defenses.digest(setting.defense) is not None:
            shown = updates.copy(), w.copy()  # a plug-in may write to what it is given
        case = Suspicion(*shown, rules[setting.rule], c, beta, self._judge, self._rngs["ties"])
        removed = defenses[setting.defense].removed(case)
        return take_rows(updates, np.delete(np.arange(len(updates)), removed))

    def _judge(self, models: Any) -> tuple[np.ndarray, np.ndarray]:
        """What a defense asks: error rates and losses of models (k, d) on the validation set."""
        d = self.learner.initial.size
        if np.ndim(models) != 2 or models.shape[1] != d:
            raise BadInput(
                f"defense {self._setting.defense!r} has models of shape {np.shape(models)} judged; "
                f"they must be (k, {d})."
            )
        if not isinstance(models, NDArray) or models.dtype != np.float32:
            models = nd.array(models, ctx=self.learner.ctx, dtype="float32")
        return self.learner.judge(models, *self._validation)

    def finished_notes(self) -> dict[str, float]:
        """What was counted; the direction agreement as a mean over the attacked iterations."""
        notes = {str(name): _number(name, value) for name, value in self._notes.items()}
        if "direction agreement" in notes:
            notes["direction agreement"] /= notes["attacked iterations"]
        return notes


def _dealer(setting: Setting, data: datasets.Dataset, seed: int) -> Callable[[], Shards]:
    """How examples come to the workers; each call deals them anew."""
    deal = share_groups if setting.readings.dealing == "shared" else partition
    rng = generator(seed, "partition")

    def dealt() -> Shards:
        shards = deal(data.train_y, data.classes, setting.workers, setting.non_iid, rng)
        if setting.readings.worker_order == "shuffled":
            shards = shuffle_workers(shards, generator(seed, "order"))
        return shards

    return dealt


def _with_examples(deal: Callable[[], Shards], holders: np.ndarray, first: int) -> Callable:
    return lambda: append_examples(deal(), holders, first)


@one_thread()
def poisoned_examples(
    setting: Setting,
    seed: int,
    data_dir: str | Path | None,
    after_step: Callable[[float], None] = lambda loss: None,
) -> poisoning.PoisonedSet:
    """Return the examples that an attack injects into a trial; made at the first call, and kept."""
    data = datasets.load(setting.dataset, generator(seed, "split"), data_dir)
    return _injected(setting, seed, data, data_dir, after_step)


def _injected(
    setting: Setting,
    seed: int,
    data: datasets.Dataset,
    data_dir: str | Path | None,
    after_step: Callable[[float], None] = lambda loss: None,
) -> poisoning.PoisonedSet:
    made = attacks[setting.attack].inject(
        data,
        setting.poisoned_share,
        generator(seed, "back-gradient"),
        downloads.search_path(data_dir),
        after_step,
    )
    return poisoning.checked_set(setting.attack, made, data)


def _attacked_iterations(setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """Whether each iteration is attacked: a share of them, drawn at random (4.2)."""
    attacked = np.zeros(setting.iterations, dtype=bool)
    count = round(setting.poisoned_fraction * setting.iterations)
    attacked[rng.permutation(setting.iterations)[:count]] = True
    return attacked


def _check_size(m: int, d: int) -> None:
    if m * d > MOST_NUMBERS:
        raise BadInput(
            f"m = {m:,} workers and a model of d = {d:,} parameters make {m * d:,} numbers, and "
            f"an array of MXNet holds {MOST_NUMBERS:,}; take fewer workers or a smaller model."
        )


def _resident(x: np.ndarray, ctx: Context) -> NDArray:
    return nd.array(x, ctx=ctx) if backend.is_gpu(ctx) else nd.from_numpy(x, zero_copy=True)


def _moved(w: NDArray, change: NDArray) -> NDArray:
    return to_ndarray(array_view(w)[0] + array_view(change)[0])


def _zero_if_finite(w: NDArray) -> Any:
    """Return 0 if all parameters are finite, else NaN, shape (1,), where w is."""
    return (array_view(w)[0] * 0).sum(axis=0, keepdims=True)


def _number(name: object, noted: Any) -> float:
    """A note as a plain number, whatever kind of number or array of one it is."""
    value = fetch(noted)[0].item() if np.ndim(noted) else getattr(noted, "item", lambda: noted)()
    if not isinstance(value, (int, float)):
        raise BadInput(f"the attack notes {name!r} as {value!r}; notes are numbers.")
    return int(value) if isinstance(value, int) else float(value)


def _mean_loss(losses: np.ndarray) -> float:
    known = losses[~np.isnan(losses)].astype(np.float64)
    return float(known.mean()) if known.size else float("nan")
