"""Data poisoning: what compromised workers do to their training data."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fltrust_repro import downloads, readers
from fltrust_repro.back_gradient import BackGradient, optimise
from fltrust_repro.datasets import Dataset
from fltrust_repro.errors import BadInput
from fltrust_repro.files import write_bytes

if TYPE_CHECKING:
    from fltrust_repro.settings import Setting

VERSION = 1  # of the poisoned sets: raised when a change of the code moves them


def flip_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Flip each label l to L - l - 1, L = `classes` (Section 4.1)."""
    return classes - 1 - labels


class PoisonedSet(NamedTuple):
    """Poisoned examples, their labels, and the examples they started from."""

    x: np.ndarray  # float32 (q, channels, height, width)
    labels: np.ndarray  # int32 (q,)
    start: np.ndarray  # float32, as x


def attack_of(data: Dataset, share: float) -> BackGradient:
    """Return the attack's settings for a share of poisoned examples, at least one.

    Raises `BadInput` where softmax regression cannot be poisoned: fewer than two labels, or
    features outside [0, 1].
    """
    if len(np.unique(data.train_y)) < 2:
        raise BadInput(
            f"data set {data.name!r} has training examples of one label only; the back-gradient "
            "attack needs at least two."
        )
    low, high = float(data.train_x.min()), float(data.train_x.max())
    if low < 0 or high > 1:
        raise BadInput(
            f"data set {data.name!r} has features from {low:.3g} to {high:.3g}; the back-gradient "
            "attack needs pixels from 0 to 1, as the image data sets have them."
        )
    return BackGradient(examples=max(round(share * len(data.train_y)), 1))


def poisoned_set(
    data: Dataset,
    share: float,
    rng: np.random.Generator,
    directories: Sequence[Path],
    after_step: Callable[[float], None] = lambda loss: None,
) -> PoisonedSet:
    """Examples of the back-gradient attack for a data set (4.4), made once and kept.

    They lie as `back-gradient/*.npz` in the first of `directories` (then `data/`) that can be
    written, under a name that tells the examples, the settings and the generator apart.

    Raises
    ------
    BadInput
        As `attack_of`.
    DataUnavailable
        No folder can be written, or a set that was kept is damaged.
    """
    attack = attack_of(data, share)
    problem = "the poisoned examples cannot be kept"
    folder = downloads.writable_folder("back-gradient", directories, problem)
    file = folder / f"{data.name}-{attack.examples}-{_digest(data, attack, rng)}.npz"
    if file.is_file():
        return _kept(file, attack.examples, data)
    flat = data.train_x.reshape(len(data.train_x), -1)
    x, labels, start = optimise(attack, flat, data.train_y, data.classes, rng, after_step)
    shape = (-1, *data.train_x.shape[1:])
    made = PoisonedSet(x.reshape(shape), labels.astype(np.int32), start.reshape(shape))
    content = io.BytesIO()
    np.savez_compressed(content, **made._asdict())
    write_bytes(file, content.getvalue())
    return made


def _kept(file: Path, examples: int, data: Dataset) -> PoisonedSet:
    """Read a set that was kept; others may have written to its folder."""
    images = (np.float32, (examples, *data.train_x.shape[1:]))
    forms = {"x": images, "labels": (np.int32, (examples,)), "start": images}
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
    digest.update(np.ascontiguousarray(data.train_x))
    digest.update(np.ascontiguousarray(data.train_y))
    return digest.hexdigest()[:16]


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


def holders(setting: Setting, count: int, rng: np.random.Generator) -> np.ndarray:
    """Which compromised worker gets each poisoned example (Section 4.4): worker 0, or any."""
    if setting.distribution == "single-worker":
        return np.zeros(count, dtype=np.int64)
    return rng.integers(0, max(setting.compromised, 1), count)
