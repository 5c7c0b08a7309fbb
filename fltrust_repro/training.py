"""The federated learning process under attack (paper, Section 2.1): one trial, start to end."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fltrust_repro import backend, datasets, downloads, poisoning
from fltrust_repro.attacks import attacks, direction_agreement
from fltrust_repro.backend import host_view, to_ndarray
from fltrust_repro.defenses import VALIDATION_EXAMPLES, Suspicion, defenses
from fltrust_repro.doors import as_numbers
from fltrust_repro.errors import BadInput
from fltrust_repro.models import models
from fltrust_repro.partition import Batches, Shards, deal, sample_batches
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Round
from fltrust_repro.workers import Learner

if TYPE_CHECKING:
    from mxnet.context import Context
    from mxnet.ndarray import NDArray

# Raised whenever a change of the code moves results by more than another type of CPU does, on which
# sums are rounded otherwise and a prediction flips here and there: older trials are then run again.
# `tests/golden.json` shows what moves.
PROTOCOL = 1
EVALUATE_EVERY = 10  # iterations
MOST_NUMBERS = 2**31 - 1  # in an array of MXNet's

_PURPOSES = (
    "split", "partition", "order", "initial", "batches", "attack", "selected", "poisoned",
    "validation", "ties", "back-gradient", "distribution", "rule",
)  # fmt: skip


@dataclass(frozen=True)
class TrialResult:
    """What a trial found.

    Its notes: "attacked iterations"; what an attack counts, such as "lambda not found", in how many
    of them; with partial knowledge "direction agreement", the share of parameters whose changing
    direction the attacker's own updates tell right (4.2), as a mean over them.
    """

    error_rate: float  # share of wrong predictions on the whole test set, final global model
    lowest_error_rate: float  # of those in the curve (Table 3)
    iterations: int  # done
    diverged: bool  # whether a parameter became NaN or infinite, which ends training
    seconds: float  # of training, by the clock, data loading left out
    # Every 10 iterations and at the end: iteration, error rate, and the benign workers' mean batch
    # loss at the model before that iteration.
    curve: Sequence[tuple[int, float, float]]
    empty_workers: int  # without a training example (of the first deal): they send zero updates
    notes: dict[str, float] = field(default_factory=dict)


@dataclass
class Course:
    """How far a trial has come: the global model, and what will be told of the way there."""

    w: NDArray  # (d,)
    iterations: int = 0
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # as a result's
    seconds: float = 0.0


class Snapshot(NamedTuple):
    """All between two iterations that the rest of a trial depends on, beside setting and seed.

    But for what a user's own rule or attack keeps in variables, which nobody can tell.
    """

    iterations: int
    told: dict[str, Any]  # what JSON can say, generators among it
    arrays: dict[str, np.ndarray]


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the trial's own generator for one purpose, so that no draw depends on another's."""
    return np.random.default_rng([seed, _PURPOSES.index(purpose)])


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
    """Train once under the setting's attack and defense, on the CPU or GPU number `gpu`.

    `seed` decides all that is random, each thing by a generator of its own; data sets are looked
    for in `data_dir` first; `after_iteration` is called after each iteration, for progress bars.
    `keep` is called then, too, with a function that takes a `Snapshot`: a trial of the same setting
    and seed that is `begun` with it ends with the same numbers, and its seconds are the sum.
    Raises `BadInput` or `DataUnavailable` where the model cannot take the data set's examples, or
    these are not at hand or damaged, and `MemoryError` where the GPU's memory ran out.
    """
    federation = Federation(setting, seed, backend.context(device, gpu), data_dir)
    course, diverged = federation.begin(begun), False
    curve, started = course.curve, time.perf_counter() - course.seconds
    for iteration in range(course.iterations + 1, setting.iterations + 1):
        w, losses = federation.iterate(course.w, iteration)
        diverged = not np.isfinite(host_view(w)).all()
        if diverged or iteration == setting.iterations or iteration % EVALUATE_EVERY == 0:
            known = losses[~np.isnan(losses)].astype(np.float64)
            loss = float(known.mean()) if known.size else float("nan")
            curve.append((iteration, federation.error_rate(w), loss))
        after_iteration()
        if diverged:
            break
        course = Course(w, iteration, curve, time.perf_counter() - started)
        keep(partial(federation.snapshot, course))
    errors, seconds = [error for _, error, _ in curve], time.perf_counter() - started
    done, empty, notes = curve[-1][0], federation.empty_workers, federation.finished_notes()
    return TrialResult(errors[-1], min(errors), done, diverged, seconds, curve, empty, notes)


class Federation:
    """Master and worker devices of one trial, and what they do in an iteration."""

    def __init__(
        self, setting: Setting, seed: int, ctx: Context, data_dir: str | Path | None
    ) -> None:
        self._setting, self._seed, self._attack = setting, seed, attacks[setting.attack]
        self._parameters, self._master = setting.parameters(), setting.at_master
        self._rngs = {name: generator(seed, name) for name in _PURPOSES}
        self._notes: Any = Counter()  # a Counter may count in fractions
        self._server = ServerState(self._rngs["rule"], notes=self._notes)
        self._memory: dict[str, Any] = {}  # the attack's
        data = datasets.load(setting.dataset, self._rngs["split"], data_dir)
        self._dealt_y, self._holders = data.train_y, None
        if self._attack.inject is not None:
            made = poisoned_examples(setting, seed, data_dir, data=data)
            who = setting.distribution, setting.compromised, self._rngs["distribution"]
            self._holders = poisoning.holders(len(made.x), *who)
            data = poisoning.with_examples(data, made)
        self._data, shape = data, data.train_x.shape[1:]
        self._shards = self._deal()
        self.empty_workers = int((self._shards.sizes == 0).sum())
        initial_seed = int(self._rngs["initial"].integers(2**31))
        self.learner = Learner(
            models[setting.model], data.classes, shape, ctx, initial_seed, setting.readings.initial
        )
        m, d = setting.selected, self.learner.initial.size
        if m * d > MOST_NUMBERS:
            raise BadInput(
                f"m = {m:,} workers and a model of d = {d:,} parameters make {m * d:,} numbers, "
                f"and an array of MXNet holds {MOST_NUMBERS:,}; take fewer workers or a smaller "
                "model."
            )
        chosen = self._rngs["validation"].permutation(len(data.test_y))[:VALIDATION_EXAMPLES]
        self._validation_y = data.test_y[chosen]
        self._train_x, self._test_x, self._validation_x = (
            self.learner.resident(x) for x in (data.train_x, data.test_x, data.test_x[chosen])
        )
        # A share of the iterations is attacked, drawn at random (4.2).
        count = round(setting.poisoned_fraction * setting.iterations)
        drawn = self._rngs["poisoned"].permutation(setting.iterations)[:count] + 1
        self._attacked = set(drawn.tolist())

    def begin(self, kept: Snapshot | None) -> Course:
        """Go on from a snapshot; from the start without one, or where it is of another trial."""
        if kept is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
                return self._restored(kept)
        return Course(self.learner.initial)

    def snapshot(self, course: Course) -> Snapshot:
        """Take down all that the rest of the trial depends on."""
        # Not who holds what: it was dealt at the start, or is dealt anew in each iteration.
        states = {name: rng.bit_generator.state for name, rng in self._rngs.items()}
        told = {"curve": [*course.curve], "seconds": course.seconds, "notes": {**self._notes}}
        arrays = {"w": host_view(course.w), "statistics": self.learner.statistics}
        for whose, memory in self._memories().items():
            kept = {name: value for name, value in memory.items() if isinstance(value, np.ndarray)}
            arrays |= {f"{whose} {name}": value.copy() for name, value in kept.items()}
            told[whose] = {name: value for name, value in memory.items() if name not in kept}
        return Snapshot(course.iterations, {**told, "generators": states}, arrays)

    def _memories(self) -> dict[str, dict[str, Any]]:
        return {"rule's": self._server.memory, "attack's": self._memory}

    def _restored(self, kept: Snapshot) -> Course:
        iterations, told, arrays = kept
        rngs = {name: np.random.default_rng() for name in _PURPOSES}
        for name, rng in rngs.items():
            rng.bit_generator.state = told["generators"][name]
        curve = [(int(i), float(error), float(loss)) for i, error, loss in told["curve"]]
        w = arrays["w"].astype(np.float32).reshape(self.learner.initial.shape)
        course = Course(to_ndarray(w), iterations, curve, float(told["seconds"]))
        notes = Counter(told["notes"])
        self.learner.statistics = arrays["statistics"]
        self._rngs, self._notes = rngs, notes
        self._server.rng, self._server.notes = rngs["rule"], notes
        for whose, memory in self._memories().items():
            begins = f"{whose} "
            whole = {n[len(begins) :]: a for n, a in arrays.items() if n.startswith(begins)}
            memory.clear()
            memory.update(told[whose], **whole)
        return course

    def iterate(self, w: NDArray, iteration: int) -> tuple[NDArray, np.ndarray]:
        """One iteration (2.1): the next global model (d,), and the benign workers' losses at w."""
        setting, attack, data = self._setting, self._attack, self._data
        # Step I: the master device sends the global model to the workers that take part.
        shards, c = self._taking_part()
        # Neither where no compromised worker was selected nor where no other one was.
        possible = setting.attack != "none" and 0 < c < len(shards)
        attacked = possible and iteration in self._attacked
        self._notes["attacked iterations"] += int(attacked)
        # Step II: the workers train on their own examples; the compromised ones attack.
        replaced = setting.readings.batches == "with-replacement"
        drawn = setting.batch_size, setting.rounds, self._rngs["batches"], replaced
        batches = sample_batches(shards, data.train_y, *drawn)
        if attacked and attack.poison is not None:
            batches.labels[:, :c] = self._poisoned(batches, c, w)
        self._server.w_re = host_view(w)
        updates, losses = self.learner.updates(w, self._train_x, batches, setting.learning_rate)
        if setting.readings.gradient == "sum":
            # Relative to a whole batch, whose learning rate is then the same.
            weights = (batches.counts / setting.batch_size).astype(np.float32)
            host_view(updates)[:] *= weights[:, None]
        if attacked and attack.craft is not None:
            host_view(updates)[:c] = attack.craft(self._seen(updates, c, w))
        # Step III: the master device aggregates.
        kept = updates if setting.defense == "none" else self._defended(updates, w)
        beta = self._master.beta
        change = self._master.rule(kept, c=setting.c_left, beta=beta, state=self._server)
        return to_ndarray(host_view(w) + host_view(change)), losses[c:]

    def error_rate(self, w: NDArray) -> float:
        """Of model w on the whole test set."""
        return self.learner.error_rate(w, self._test_x, self._data.test_y)

    def finished_notes(self) -> dict[str, float]:
        """What was counted; the direction agreement as a mean over the attacked iterations."""
        notes = {str(name): _number(name, value) for name, value in self._notes.items()}
        if "direction agreement" in notes:
            notes["direction agreement"] /= notes["attacked iterations"]
        return notes

    def _deal(self) -> Shards:
        """Deal the examples to the workers (4.1), and the poisoned ones to their holders."""
        setting, readings = self._setting, self._setting.readings
        examples = self._dealt_y, self._data.classes, self._data.users
        who = setting.workers, setting.compromised, setting.non_iid
        shards = deal(readings.dealing, *examples, *who, self._rngs["partition"])
        if readings.worker_order == "shuffled" and readings.dealing != "sorted":
            shards = shards.shuffled(generator(self._seed, "order"))
        if self._holders is None:
            return shards
        return shards.with_examples(self._holders, len(self._dealt_y))

    def _taking_part(self) -> tuple[Shards, int]:
        """The workers selected in this iteration, and how many of them are compromised."""
        setting = self._setting
        if setting.readings.dealing == "each-iteration":
            self._shards = self._deal()
        if setting.selected == setting.workers:
            return self._shards, setting.compromised
        rng = self._rngs["selected"]
        # In order, so that the compromised ones, numbered from 0, stay first.
        drawn = np.sort(rng.choice(setting.workers, setting.selected, replace=False))
        compromised = np.count_nonzero(drawn < setting.compromised)
        return Shards.of([self._shards[worker] for worker in drawn]), compromised

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
        master = replace(self._master, rule=self._master.rule.seen_at(self._server))
        kept = self._parameters, self._notes, self._memory
        step = Round(known, c, w, knowledge, rng, master, *kept)
        if step.partial:
            self._notes["direction agreement"] += direction_agreement(step, updates)
        return step

    def _defended(self, updates: NDArray, w: NDArray) -> NDArray:
        """The updates that the defense leaves (Section 5)."""
        master, rng = self._master, self._rngs["ties"]
        rule = master.rule.seen_at(self._server)
        case = Suspicion(updates, w, rule, master.c, master.beta, self._judge, rng)
        removed = defenses[self._setting.defense].removed(case)
        return to_ndarray(np.delete(host_view(updates), removed, axis=0))

    def _judge(self, models: Any) -> tuple[np.ndarray, np.ndarray]:
        """What a defense asks: error rates and losses of models (k, d) on the validation set."""
        shape = (None, self.learner.initial.size)
        user = f"defense {self._setting.defense!r}"
        checked = as_numbers(models, shape, user, "models that it has judged")
        return self.learner.judge(checked, self._validation_x, self._validation_y)


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
    rng, folders = generator(seed, "back-gradient"), downloads.search_path(data_dir)
    made = inject(data, setting.poisoned_share, rng, folders, after_step)
    return poisoning.checked_set(setting.attack, made, data)


def _number(name: object, noted: Any) -> float:
    """A note as a plain number, whatever kind of number or array of one it is."""
    value = np.asarray(noted.asnumpy() if hasattr(noted, "asnumpy") else noted)
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise BadInput(f"the attack notes {name!r} as {noted!r}; notes are numbers.")
    number = value.item()
    return int(number) if isinstance(number, bool) else number
