"""The federated learning process under attack (paper, Section 2.1): one trial, start to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fltrust_repro import backend, datasets, poisoning
from fltrust_repro.attacks import attacks, direction_agreement, undone
from fltrust_repro.backend import host_view, to_ndarray
from fltrust_repro.course import Course, Moving, Snapshot
from fltrust_repro.doors import LAST_SEED, whole_number
from fltrust_repro.errors import BadInput, shown
from fltrust_repro.master import MasterDevice
from fltrust_repro.models import models
from fltrust_repro.notes import Notes, plain
from fltrust_repro.partition import Batches, Shards, deal, sample_batches
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Round
from fltrust_repro.workers import Learner, with_momentum

if TYPE_CHECKING:
    from mxnet.context import Context
    from mxnet.ndarray import NDArray

# Raised whenever a change of the code moves results by more than another type of CPU does, on which
# sums are rounded otherwise and a prediction flips here and there: older trials are then run again.
# `tests/golden.json` shows what moves.
PROTOCOL = 1
EVALUATE_EVERY = 10  # iterations
NO_EFFECT = 0.01  # of the change undone
MOST_NUMBERS = 2**31 - 1  # in an array of MXNet's

_PURPOSES = (
    "split", "partition", "order", "initial", "batches", "attack", "selected", "poisoned",
    "validation", "ties", "back-gradient", "distribution", "rule", "root", "numbers", "asked",
)  # fmt: skip


@dataclass(frozen=True)
class TrialResult:
    """What a trial found.

    Its notes: "attacked iterations"; what an attack counts, such as "lambda not found", in how many
    of them; in how many of the evaluated iterations, which are "compared with the mean", the rule's
    result "differs from the mean" of the updates given to it, by more than rounding; in those of
    them whose updates were crafted, "compared with no attack", what share of the model's change was
    "undone" thereby, as a mean, and in how many that had "no effect"; with partial
    knowledge "direction agreement", the share of parameters whose changing direction the attacker's
    own updates tell right (4.2), as a mean over the attacked iterations; with a backdoor the
    "attack success rate": how many test examples of other classes, once they have the trigger, the
    final model takes for the target.
    """

    error_rate: float  # share of wrong predictions on the whole test set, final global model
    lowest_error_rate: float  # of those in the curve (Table 3)
    iterations: int  # done
    diverged: bool  # whether a parameter became NaN or infinite, which ends training
    seconds: float  # of training, by the clock, data loading left out
    # Every 10 iterations and at the end: iteration, error rate, benign mean loss before it
    curve: Sequence[tuple[int, float, float]]
    empty_workers: int  # without a training example (of the first deal): they send zero updates
    notes: dict[str, float] = field(default_factory=dict)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the trial's own generator for one purpose, so that no draw depends on another's."""
    return np.random.default_rng([seed, _PURPOSES.index(purpose)])


def is_evaluated(iteration: int, setting: Setting) -> bool:
    """Whether the global model after an iteration is evaluated: every tenth, and the last."""
    return iteration == setting.iterations or iteration % EVALUATE_EVERY == 0


@backend.one_thread()
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
    keep: Callable[[Callable[[], Snapshot]], None] = lambda take: None,
    begun: Snapshot | None = None,
) -> TrialResult:
    """Train once under the setting's attack and defense; `device` may be "gpu", number `gpu`.

    `seed` decides all that is random, except what a user's code draws from `np.random` or keeps in
    variables: that goes on from call to call, where `fl.run` executes plug-ins anew. Data sets are
    looked for in `data_dir` first; `after_iteration` is called after each iteration. `keep` is
    called then, too, with a function that takes a `Snapshot`: a trial of the same setting and seed
    that is `begun` with it ends with the same numbers, and its seconds are the sum.
    Raises `BadInput` or `DataUnavailable` where the model cannot take the data set's examples, or
    these are not at hand or damaged, and `MemoryError` where the GPU's memory ran out.
    """
    if not isinstance(setting, Setting):
        raise BadInput(f"the setting is {shown(setting)}; give a Setting.")
    seed = whole_number("seed", seed, 0, LAST_SEED)
    federation = Federation(setting, seed, backend.context(device, gpu), data_dir)
    course, diverged = federation.begin(begun), False
    w, curve, started = course.w, course.curve, time.perf_counter() - course.seconds
    for iteration in range(course.iterations + 1, setting.iterations + 1):
        w, losses = federation.iterate(w, iteration)
        diverged = not np.isfinite(host_view(w)).all()
        if diverged or is_evaluated(iteration, setting):
            known = losses[~np.isnan(losses)].astype(np.float64)
            loss = float(known.mean()) if known.size else float("nan")
            curve.append((iteration, federation.error_rate(w), loss))
        after_iteration()
        if diverged:
            break
        course = Course(w, iteration, curve, time.perf_counter() - started)
        keep(partial(federation.snapshot, course))
    errors, seconds = [error for _, error, _ in curve], time.perf_counter() - started
    done, empty, notes = curve[-1][0], federation.empty_workers, federation.finished_notes(w)
    return TrialResult(errors[-1], min(errors), done, diverged, seconds, curve, empty, notes)


class Sent(NamedTuple):
    """What the workers send in an iteration, those c first that attack in it."""

    updates: NDArray  # (m, d)
    losses: np.ndarray  # the benign workers' at the model that they received
    c: int
    before: np.ndarray | None  # (d,) what would be made without the attack, if compared


class Federation:
    """Master and worker devices of one trial, and what they do in an iteration."""

    def __init__(
        self, setting: Setting, seed: int, ctx: Context, data_dir: str | Path | None
    ) -> None:
        self._setting, self._seed, self._attack = setting, seed, attacks[setting.attack]
        self._parameters = setting.parameters()
        self._rngs = {name: generator(seed, name) for name in _PURPOSES}
        numbers = self._rngs.pop("numbers").permutation(setting.workers)  # drawn once
        self._notes: Any = Notes()  # which counts in fractions, too
        data = datasets.load(setting.dataset, self._rngs["split"], data_dir)
        initial = int(self._rngs["initial"].integers(2**31)), setting.readings.initial
        shape = data.train_x.shape[1:]
        self.learner = Learner(models[setting.model], data.classes, shape, ctx, *initial)
        self._check_size()
        self.master = MasterDevice(setting, self.learner, data, self._rngs, self._notes, numbers)
        self._memory: dict[str, Any] = {}  # the attack's
        self._momenta: dict[str, np.ndarray] = {}  # by identity
        memories = {"rule's": self.master.state.memory, "attack's": self._memory}
        self._moving = Moving(self._rngs, self._notes, {**memories, "workers'": self._momenta})
        self._dealt_y, self._holders = data.train_y, np.empty(0, dtype=int)
        if self._attack.inject is not None:
            made = poisoned_examples(setting, seed, data_dir, data=data)
            who = setting.distribution, setting.compromised, self._rngs["distribution"]
            self._holders = poisoning.holders(len(made.x), *who)
            data = poisoning.with_examples(data, made)
        if self._attack.backdoor is not None:
            data = self._attack.backdoor.added_to(data)
        self._data = data
        self._dealt = self._deal()
        self.empty_workers = int((self._dealt[True].sizes == 0).sum())
        self._train_x, self._test_x = map(self.learner.resident, (data.train_x, data.test_x))
        # A share of the iterations is attacked, drawn at random (4.2).
        count = round(setting.poisoned_fraction * setting.iterations)
        drawn = self._rngs["poisoned"].permutation(setting.iterations)[:count] + 1
        self._attacked = set(drawn.tolist())

    def _check_size(self) -> None:
        m = self._setting.selected + ("root" in self._setting.root_data)
        d = self.learner.initial.size
        if m * d > MOST_NUMBERS:
            raise BadInput(
                f"m = {m:,} workers and a model of d = {d:,} parameters make {m * d:,} numbers, "
                f"and an array of MXNet holds {MOST_NUMBERS:,}; take fewer, or a smaller model."
            )

    def begin(self, kept: Snapshot | None) -> Course:
        """Go on from a snapshot; from the start without one, or where it is of another trial."""
        initial, statistics = self.learner.initial, self.learner.statistics
        if kept is not None:
            try:
                self.learner.statistics = kept.arrays["statistics"]
                return self._moving.restore(kept, initial.shape)
            except (KeyError, TypeError, ValueError, OverflowError):
                self.learner.statistics = statistics
        return Course(initial)

    def snapshot(self, course: Course) -> Snapshot:
        """Take down all that the rest of the trial depends on."""
        return self._moving.snapshot(course, self.learner.statistics)

    def iterate(self, w: NDArray, iteration: int) -> tuple[NDArray, np.ndarray]:
        """One iteration (2.1): the next global model (d,), and the benign workers' losses at w."""
        compared = is_evaluated(iteration, self._setting)
        sent = self.sent(w, iteration, compared)
        return self.moved(w, sent, compared), sent.losses

    def moved(self, w: NDArray, sent: Sent, compared: bool) -> NDArray:
        """Step III: the master device aggregates, and moves model w to the next."""
        change = self.master.aggregate(sent.updates, compared)
        if sent.before is not None and np.isfinite(share := undone(sent.before, change)):
            effect = {"undone": share, "no effect": int(abs(share) < NO_EFFECT)}
            self._notes.update({"compared with no attack": 1, **effect})
        return to_ndarray(host_view(w) + change)

    def sent(self, w: NDArray, iteration: int, compared: bool) -> Sent:
        """Steps I and II: what the workers send; `compared` if told what it changes."""
        setting, attack = self._setting, self._attack
        # Step I: the master device sends the global model to the workers that take part.
        workers, shards = self._taking_part(iteration in self._attacked)
        c, m = np.count_nonzero(workers < setting.compromised), len(workers)
        # Neither where no compromised worker was selected nor where no other was.
        possible = setting.attack != "none" and 0 < c < m
        attacked = possible and iteration in self._attacked
        self._notes["attacked iterations"] += int(attacked)
        # Step II: the workers train on their own examples; the compromised ones attack.
        batches = self._batches(shards, self._rngs["batches"])
        if attacked and attack.poison is not None:
            batches.labels[:, :c] = self._poisoned(batches, c, w)
        if attacked and attack.backdoor is not None:
            attack.backdoor.plant(batches, c, len(self._dealt_y), self._rngs["attack"])
        updates, losses = self._trained(w, workers, batches)
        before = None
        if attacked and attack.craft is not None:
            if compared:
                before = self.master.seen().answer(host_view(updates))
            host_view(updates)[:c] = attack.crafted(self._seen(updates, c, w))
        return Sent(updates, losses[c:m], c if attacked else 0, before)

    def error_rate(self, w: NDArray) -> float:
        """Of model w on the whole test set."""
        return self.learner.error_rate(w, self._test_x, self._data.test_y)

    def finished_notes(self, w: NDArray) -> dict[str, float]:
        """What was counted, rates as such, and what a backdoor makes the final model w see."""
        notes = plain(self._notes)
        if self._attack.backdoor is not None:
            notes["attack success rate"] = self._success_rate(self._attack.backdoor, w)
        return notes

    def _success_rate(self, backdoor: poisoning.Backdoor, w: NDArray) -> float:
        """Share of other classes' test examples that w takes for the target with the trigger."""
        others = self._data.test_x[self._data.test_y != backdoor.target]
        scores = self.learner.scores(w, self.learner.resident(backdoor.triggered(others)))
        # A model that diverged gives NaN, of which argmax is class 0.
        taken = np.isfinite(scores).all(axis=1) & (scores.argmax(axis=1) == backdoor.target)
        return float(taken.sum() / max(len(taken), 1))

    def _deal(self) -> dict[bool, Shards]:
        """Deal the examples to the workers (4.1), and if attacked the poisoned ones to holders."""
        setting, readings = self._setting, self._setting.readings
        examples = self._dealt_y, self._data.classes, self._data.users
        who = setting.workers, setting.compromised, setting.non_iid
        shards = deal(readings.dealing, *examples, *who, self._rngs["partition"])
        if readings.worker_order == "shuffled" and readings.dealing != "sorted":
            shards = shards.shuffled(generator(self._seed, "order"))
        own = shards.without(self.master.root)
        return {False: own, True: own.with_examples(self._holders, len(self._dealt_y))}

    def _taking_part(self, attacked: bool) -> tuple[np.ndarray, Shards]:
        """The workers selected in this iteration, ascending, and what they hold."""
        setting = self._setting
        if setting.readings.dealing == "each-iteration":
            self._dealt = self._deal()
        shards = self._dealt[attacked]
        if setting.selected == setting.workers:
            return np.arange(setting.workers), shards
        rng = self._rngs["selected"]
        # In order, so that the compromised ones, numbered from 0, stay first.
        drawn = np.sort(rng.choice(setting.workers, setting.selected, replace=False))
        return drawn, Shards.of([shards[worker] for worker in drawn])

    def _batches(self, shards: Shards, rng: np.random.Generator) -> Batches:
        setting, labels = self._setting, self._data.train_y
        replaced = setting.readings.batches == "with-replacement"
        return sample_batches(shards, labels, setting.batch_size, setting.rounds, rng, replaced)

    def _trained(
        self, w: NDArray, workers: np.ndarray, batches: Batches
    ) -> tuple[NDArray, np.ndarray]:
        """Updates (m, d) and losses of workers; the master device is told what it has to know.

        It trains as one more worker, where anybody asks for its own update.
        """
        setting, everybody = self._setting, workers
        if self.master.trains:
            own = self._batches(Shards.of([self.master.root]), self._rngs["root"])
            batches, everybody = batches.and_of(own), np.append(workers, setting.workers)
        updates, losses = self.learner.updates(w, self._train_x, batches, setting.learning_rate)
        if setting.readings.gradient == "sum":
            # Relative to a whole batch, whose learning rate is then the same.
            weights = (batches.counts / setting.batch_size).astype(np.float32)
            host_view(updates)[:] *= weights[:, None]
        if setting.momentum > 0:
            with_momentum(host_view(updates), everybody, setting.momentum, self._momenta)
        if not self.master.trains:
            self.master.begin_iteration(w, workers)
            return updates, losses
        self.master.begin_iteration(w, workers, host_view(updates)[-1].copy())
        return updates[:-1], losses

    def _poisoned(self, batches: Batches, c: int, w: NDArray) -> np.ndarray:
        """What the compromised workers take for their examples' labels."""
        attack, (own, classes) = self._attack, (batches.labels[:, :c], self._data.classes)

        def scores() -> np.ndarray:
            x = self.learner.resident(self._data.train_x[batches.rows[:, :c].ravel()])
            return self.learner.scores(w, x).reshape(*own.shape, classes)

        given = attack.relabel(own.copy(), classes, self._rngs["attack"], scores)
        return poisoning.checked_labels(attack.name, given, own.shape, classes)

    def _seen(self, updates: NDArray, c: int, w: NDArray) -> Round:
        """What the attacker of c workers is given."""
        knowledge, rng = self._setting.knowledge or "full", self._rngs["attack"]
        known = updates[:c] if knowledge == "partial" else updates
        kept = self._parameters, self._notes, self._memory
        root = self.master.state.root if "root" in self._attack.asks else None
        master = self.master.seen(self._rngs["asked"])
        step = Round(known, c, w, knowledge, rng, master, *kept, root)
        if step.partial:
            self._notes["direction agreement"] += direction_agreement(step, updates)
        return step


@backend.one_thread()
def poisoned_examples(
    setting: Setting,
    seed: int,
    data_dir: str | Path | None,
    after_step: Callable[[float], None] = lambda loss: None,
    data: datasets.Dataset | None = None,
) -> poisoning.PoisonedSet:
    """Return the examples that an attack injects into a trial; made at the first call, and kept."""
    inject = attacks[setting.attack].inject
    if inject is None:
        raise BadInput(f"attack {setting.attack!r} injects no examples; back-gradient does.")
    data = data or datasets.load(setting.dataset, generator(seed, "split"), data_dir)
    data = data.in_float32()  # of which poisoned examples are made, and by which they are kept
    made = inject(data, setting.poisoned_share, generator(seed, "back-gradient"), after_step)
    return poisoning.checked_set(setting.attack, made, data)
