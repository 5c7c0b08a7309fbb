"""Data poisoning: what compromised workers do to their training data (paper, Sections 4.1, 4.4).

Label flipping, and the back-gradient attack of Munoz-Gonzalez et al. (2017): find examples with
which training ends in a model of largest loss, following its gradient through the training itself;
here with the trajectory kept and Hessian-vector products written out, so that it is exact:

    p = softmax(x w^T),   gradient = (p - y)^T x / n,   H v = (p * (r - <p, r>))^T x / n,  r = x v^T

where x has a last column of ones for the bias. All poisoned examples are optimised together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fltrust_repro import readers
from fltrust_repro.datasets import MOST_CLASSES, Dataset
from fltrust_repro.doors import whole_number
from fltrust_repro.errors import BadInput, note, shown
from fltrust_repro.files import cache_folders, can_hold, is_file, write_bytes
from fltrust_repro.gradients import cross_entropy, softmax
from fltrust_repro.partition import Batches
from fltrust_repro.pixels import numbers

_FOLDER = "back-gradient"  # in a cache, of poisoned sets
_NOT_KEPT = "the poisoned examples cannot be kept, and are made anew each time"
VERSION = 1  # of the poisoned sets: raised when a change of the code moves them


def flip_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Flip each label l to L - l - 1, L = `classes` (Section 4.1)."""
    return classes - 1 - labels


def checked_labels(attack: str, labels: object, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """Return an attack's labels as int32; `BadInput` for others than 0..classes-1 of `shape`."""
    labels = np.asarray(labels)
    whole = labels.dtype.kind in "iu" and labels.shape == shape
    if not whole or not ((labels >= 0) & (labels < classes)).all():
        raise BadInput(
            f"attack {attack!r} gives labels {labels.dtype} {labels.shape}; they must be whole "
            f"numbers from 0 to {classes - 1}, of shape {shape}."
        )
    return labels.astype(np.int32)


def checked_set(attack: str, made: PoisonedSet, data: Dataset) -> PoisonedSet:
    """Return an attack's examples in float32; `BadInput` where they are not as the data set's."""
    if not isinstance(made, PoisonedSet):
        raise BadInput(f"attack {attack!r} injects a {type(made).__name__}, not a PoisonedSet.")
    x, shape = np.asarray(made.x, dtype=np.float32), data.train_x.shape[1:]
    if x.shape[1:] != shape:
        raise BadInput(
            f"attack {attack!r} injects examples of shape {x.shape[1:]}; the data set has {shape}."
        )
    labels = checked_labels(attack, made.labels, x.shape[:1], data.classes)
    return PoisonedSet(x, labels, made.start)


# --- backdoors


@dataclass(frozen=True)
class Backdoor:
    """A trigger, and the class that a model shall see in whatever has it.

    `trigger` is given examples (n, channels, height, width), float32 or uint8, and returns them
    with the trigger. In an attacked iteration each example of the compromised workers' batches has
    it, and the target's label, with probability `share`.
    """

    trigger: Callable[[np.ndarray], np.ndarray]
    target: int = 0
    share: float = 0.3

    def __post_init__(self) -> None:
        whole_number("a backdoor's target", self.target, 0, MOST_CLASSES - 1)
        if not callable(self.trigger):
            raise BadInput(f"a backdoor's trigger is {shown(self.trigger)}; give a function.")
        is_number = isinstance(self.share, Real) and not isinstance(self.share, bool)
        if not is_number or not 0 < self.share <= 1:
            raise BadInput(f"a backdoor's share is {shown(self.share)}; give a number in (0, 1].")

    def triggered(self, x: np.ndarray) -> np.ndarray:
        """Return examples with the trigger; `BadInput` where it makes something else of them."""
        made = np.asarray(self.trigger(x.copy()))
        if (made.shape, made.dtype) != (x.shape, x.dtype):
            raise BadInput(
                f"a backdoor's trigger makes {made.dtype} {made.shape} of {x.dtype} {x.shape}; "
                "it must return the examples as it is given them, with the trigger."
            )
        return made

    def added_to(self, data: Dataset) -> Dataset:
        """Return a data set with each training example once more, triggered, behind all of them."""
        if not 0 <= self.target < data.classes:
            raise BadInput(
                f"a backdoor's target is class {self.target}, but data set {data.name!r} has "
                f"classes 0 to {data.classes - 1}; choose one of these."
            )
        x = np.concatenate([data.train_x, self.triggered(data.train_x)])
        y = np.concatenate([data.train_y, np.full_like(data.train_y, self.target)])
        return dataclasses.replace(data, train_x=x, train_y=y)

    def plant(self, batches: Batches, c: int, first: int, rng: np.random.Generator) -> None:
        """Put triggered copies into c workers' batches; that of example j is example first + j."""
        rows, labels = batches.rows[:, :c], batches.labels[:, :c]
        chosen = rng.random(rows.shape) < self.share
        rows[chosen] += first
        labels[chosen] = self.target


# --- the back-gradient attack (4.4)


class PoisonedSet(NamedTuple):
    """Poisoned examples, their labels, and the examples they started from."""

    x: np.ndarray  # float32 (q, channels, height, width)
    labels: np.ndarray  # int32 (q,)
    start: np.ndarray  # float32, as x


@dataclass(frozen=True)
class BackGradient:
    """Settings of the attack."""

    examples: int = 240  # poisoned ones
    inner_steps: int = 100  # full-batch gradient descent from w = 0 on clean and poisoned examples
    inner_rate: float = 0.5
    outer_steps: int = 100  # of each poisoned example along its own unit-norm gradient, in [0, 1]
    outer_rate: float = 1.0  # length of the first; the others' falls linearly to 0


def with_bias(x: np.ndarray) -> np.ndarray:
    """Append the column of ones that makes the bias a weight."""
    return np.concatenate([x, np.ones((len(x), 1), dtype=x.dtype)], axis=1)


def descend(
    x: np.ndarray, y: np.ndarray, steps: int, rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient descent of softmax regression from w = 0, with all that reverse mode needs.

    Returns the final model (L, f), and models (steps, L, f) and probabilities (steps, n, L) before
    each step.
    """
    n, classes = y.shape
    w = np.zeros((classes, x.shape[1]), dtype=x.dtype)
    models = np.empty((steps, *w.shape), dtype=x.dtype)
    probabilities = np.empty((steps, n, classes), dtype=x.dtype)
    for t in range(steps):
        models[t], probabilities[t] = w, softmax(x @ w.T)
        w = w - (rate / n) * ((probabilities[t] - y).T @ x)
    return w, models, probabilities


def outer_gradient(
    poisoned: np.ndarray,
    poisoned_y: np.ndarray,
    clean: np.ndarray,
    clean_y: np.ndarray,
    steps: int,
    rate: float,
) -> tuple[np.ndarray, float]:
    """Gradient (q, f) of the trained model's loss on the clean examples by the poisoned ones.

    From poisoned (q, f) and clean (n, f) examples, without the column of ones, and one-hot labels,
    trained on together in so many steps of rate `rate`. Also returns the loss.
    """
    q = len(poisoned)
    x = with_bias(np.concatenate([poisoned, clean]))
    y = np.concatenate([poisoned_y, clean_y])
    w, models, probabilities = descend(x, y, steps, rate)
    share = rate / len(x)
    own = x[q:]
    v = (softmax(own @ w.T) - clean_y).T @ own / len(own)
    loss = float(cross_entropy(own @ w.T, clean_y.argmax(axis=1)).mean())
    gradient = np.zeros_like(x[:q])
    for t in reversed(range(steps)):
        p, r = probabilities[t], x @ v.T
        s = p * (r - (p * r).sum(axis=1, keepdims=True))
        gradient -= share * ((p[:q] - poisoned_y) @ v + s[:q] @ models[t])
        v = v - share * (s.T @ x)
    return gradient[:, :-1], loss


def optimise(
    setting: BackGradient,
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    rng: np.random.Generator,
    after_step: Callable[[float], None] = lambda loss: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find poisoned examples for clean ones, float (n, f) in [0, 1], with int labels (n,).

    `after_step` is called after each outer step with the loss before it. Returns the poisoned
    examples, float (q, f), their labels, int (q,), and what they started from, float (q, f).
    """
    chosen = rng.choice(len(x), setting.examples, replace=False)
    start = x[chosen]  # copies of random examples, each with a random other label
    poisoned_labels = (labels[chosen] + rng.integers(1, classes, setting.examples)) % classes
    poisoned = start.copy()
    one_hot = np.eye(classes, dtype=x.dtype)
    y, poisoned_y = one_hot[labels], one_hot[poisoned_labels]
    for step in range(setting.outer_steps):
        gradient, loss = outer_gradient(
            poisoned, poisoned_y, x, y, setting.inner_steps, setting.inner_rate
        )
        lengths = np.linalg.norm(gradient, axis=1, keepdims=True)
        size = setting.outer_rate * (1 - step / setting.outer_steps)
        moved = poisoned + size * gradient / np.where(lengths > 0, lengths, 1)
        poisoned = np.clip(moved, 0, 1)
        after_step(loss)
    return poisoned, poisoned_labels, start


def poisoned_set(
    data: Dataset,
    share: float,
    rng: np.random.Generator,
    after_step: Callable[[float], None] = lambda loss: None,
) -> PoisonedSet:
    """Examples of the back-gradient attack for a share of float32 data (4.4), made once and kept.

    They lie in the user's cache folder, under a name that tells the examples, the settings and the
    generator apart. Raises `BadInput` where softmax regression cannot be poisoned, having less than
    two labels or features outside [0, 1]; `DataUnavailable` where a kept set is damaged. Where none
    can be kept, it is made all the same.
    """
    if len(np.unique(data.train_y)) < 2:
        raise BadInput(
            f"data set {data.name!r} has training examples of one label only; the back-gradient "
            "attack needs at least two."
        )
    low, high = data.train_x.min(), data.train_x.max()
    if low < 0 or high > 1:
        raise BadInput(
            f"data set {data.name!r} has features from {low:.3g} to {high:.3g}; the back-gradient "
            "attack needs pixels from 0 to 1, as the image data sets have them."
        )
    attack = BackGradient(examples=max(round(share * len(data.train_y)), 1))
    name = f"{data.name}-{attack.examples}-{_digest(data, attack, rng)}.npz"
    for folder in _folders():
        if is_file(folder / name):
            return _kept(folder / name, attack.examples, data)
    flat = data.train_x.reshape(len(data.train_x), -1)
    x, labels, start = optimise(attack, flat, data.train_y, data.classes, rng, after_step)
    shape = (-1, *data.train_x.shape[1:])
    made = PoisonedSet(x.reshape(shape), labels.astype(np.int32), start.reshape(shape))
    if (place := next(filter(can_hold, _folders()), None)) is not None:
        _keep(made, place / name)
    return made


def _folders() -> list[Path]:
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for folder in cache_folders(__name__.partition(".")[0]):
            found.append(folder / _FOLDER)
    return found


def can_keep() -> bool:
    """Whether there is a cache folder that poisoned sets can go to; says so where there is none."""
    if found := any(map(can_hold, _folders())):
        return found
    note(f"{_NOT_KEPT}: no cache folder can be written.")
    return found


def _keep(made: PoisonedSet, file: Path) -> None:
    """Write a set whole or not at all; what hinders it is told, and costs nothing."""
    content = io.BytesIO()
    np.savez_compressed(content, **made._asdict())
    try:
        write_bytes(file, content.getvalue())
    except BadInput as error:
        note(f"{_NOT_KEPT}: {error.__cause__}.")
    finally:
        with contextlib.suppress(OSError):  # it goes only if nothing is in it
            file.parent.rmdir()


def _kept(file: Path, examples: int, data: Dataset) -> PoisonedSet:
    """Read a set that was kept; others may have written to its folder."""
    form = (np.float32, (examples, *data.train_x.shape[1:]))
    forms = {"x": form, "labels": (np.int32, (examples,)), "start": form}
    with readers.faults_of(file, "delete it, and it will be made again"):
        made = PoisonedSet(*readers.read_npz(file, forms))
        if made.labels.min() < 0 or made.labels.max() >= data.classes:
            raise ValueError(f"holds labels outside 0..{data.classes - 1}")
        for images in (made.x, made.start):
            if not (images.min() >= 0 and images.max() <= 1):
                raise ValueError("holds pixels outside 0..1")
    return made


def _digest(data: Dataset, attack: BackGradient, rng: np.random.Generator) -> str:
    told = [VERSION, dataclasses.asdict(attack), rng.bit_generator.state["state"]]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for array in (data.train_x, data.train_y):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def labels_before(made: PoisonedSet, data: Dataset) -> list[int | None]:
    """Return the labels that poisoned examples had in the data set, None for one not of it."""
    known = {x.tobytes(): int(label) for x, label in zip(data.train_x, data.train_y)}
    return [known.get(x.tobytes()) for x in made.start]


def holders(
    count: int, distribution: str, compromised: int, rng: np.random.Generator
) -> np.ndarray:
    """Who gets each poisoned example (4.4): worker 0 for "single-worker", any for "uniform"."""
    if distribution == "single-worker":
        return np.zeros(count, dtype=np.int64)
    return rng.integers(0, max(compromised, 1), count)


def with_examples(data: Dataset, made: PoisonedSet) -> Dataset:
    """Return a data set with the poisoned examples behind its own training examples, in float32.

    What an attack makes of pixels are no whole pixels any more.
    """
    x = np.concatenate([numbers(data.train_x), made.x])
    return dataclasses.replace(data, train_x=x, train_y=np.concatenate([data.train_y, made.labels]))
