"""How far a trial has come: what is kept of it between two iterations, and taken up again."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fltrust_repro.backend import host_view, to_ndarray
from fltrust_repro.notes import Notes

if TYPE_CHECKING:
    from mxnet.ndarray import NDArray

_ARRAY = "array:"  # the key that stands, with an array's name, for the array


@dataclass
class Course:
    """How far a trial has come: the global model, and what will be told of the way there."""

    w: NDArray  # (d,)
    iterations: int = 0
    curve: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)  # a result's
    seconds: float = 0.0


class Snapshot(NamedTuple):
    """All between two iterations that the rest of a trial depends on, beside setting and seed.

    But for what a user's own rule or attack keeps in variables, which nobody can tell.
    """

    iterations: int
    told: dict[str, Any]  # what JSON can say, generators among it
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Moving:
    """What iterations move beside the global model, in place: draws, counts, memories by whose."""

    rngs: dict[str, np.random.Generator]
    notes: Counter[str]
    memories: dict[str, dict[str, Any]]

    def snapshot(self, course: Course, statistics: np.ndarray) -> Snapshot:
        """Take all down, with running statistics (s,) that the model has."""
        # Not who holds what: it was dealt at the start, or is dealt anew in each iteration.
        arrays = {"w": host_view(course.w), "statistics": statistics}
        told = {whose: _told(memory, whose, arrays) for whose, memory in self.memories.items()}
        told |= {"curve": [*course.curve], "seconds": course.seconds, "notes": {**self.notes}}
        told["generators"] = {name: rng.bit_generator.state for name, rng in self.rngs.items()}
        return Snapshot(course.iterations, told, arrays)

    def restore(self, kept: Snapshot, shape: tuple[int, ...]) -> Course:
        """Set all to what a snapshot has; return the course, with a global model of `shape`.

        Raises `KeyError`, `TypeError`, `ValueError` or `OverflowError`, and nothing has moved,
        where it is of another trial.
        """
        iterations, told, arrays = kept
        for name in self.rngs:
            np.random.default_rng().bit_generator.state = told["generators"][name]  # refuses it
        curve = [(int(i), float(error), float(loss)) for i, error, loss in told["curve"]]
        w = to_ndarray(arrays["w"].astype(np.float32).reshape(shape))
        course = Course(w, iterations, curve, float(told["seconds"]))
        notes = Notes(told["notes"])
        memories = {whose: {**_meant(told[whose], arrays)} for whose in self.memories}
        for name, rng in self.rngs.items():
            rng.bit_generator.state = told["generators"][name]
        for whose, memory in self.memories.items():
            memory.clear()
            memory.update(memories[whose])
        self.notes.clear()
        self.notes.update(notes)
        return course


def _told(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """A memory's value as JSON can say it; a copy of each array goes to `arrays`, under a name."""
    if isinstance(value, np.ndarray):
        while name in arrays:
            name += "'"
        arrays[name] = value.copy()
        return {_ARRAY: name}
    if isinstance(value, dict):
        return {str(key): _told(one, f"{name} {key}", arrays) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(one, f"{name} {i}", arrays) for i, one in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _meant(told: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value that was told."""
    if isinstance(told, dict):
        if _ARRAY in told:
            return arrays[told[_ARRAY]].copy()
        return {key: _meant(one, arrays) for key, one in told.items()}
    return [_meant(one, arrays) for one in told] if isinstance(told, list) else told
