"""What the master device holds beside the updates of an iteration, for rules that ask for it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fltrust_repro.doors import as_numbers
from fltrust_repro.errors import BadInput, shown
from fltrust_repro.notes import Notes

ASKED = (
    "c", "beta", "rng", "memory", "notes", "w_re", "workers", "layers", "root", "judge",
)  # fmt: skip
"""What a rule or pre-aggregation may ask for by name, after the updates."""

ROOT_DATA = ("root", "judge")
"""Those of them that take examples of the server's own."""

Judge = Callable[[np.ndarray], "tuple[np.ndarray, np.ndarray]"]


def of_root_data(asked: Collection[str]) -> tuple[str, ...]:
    """Those of the names asked for that take examples of the server's own: a league apart."""
    return tuple(name for name in ROOT_DATA if name in asked)


def lacks_root_data(user: str, name: str, instead: str) -> BadInput:
    """Return the error of a user that asks for what there is not, and what to do `instead`."""
    return BadInput(f"{user} asks for {name}, which takes examples of the server's own; {instead}.")


def check_base(user: str, name: str, asked: Collection[str]) -> None:
    """Raise `BadInput` where a rule that another one calls asks for what nobody keeps for it."""
    if kept := [one for one in asked if one not in ("c", "beta", "rng", "notes")]:
        do = "give one that looks at the updates alone, as median"
        raise BadInput(f"{user}: base is {name!r}, which asks for {', '.join(kept)}; {do}.")


@dataclass
class ServerState:
    """What the master device keeps through a trial, for rules that ask for it by name.

    `memory` is the rule's own, empty at the start: by names that are text, numpy arrays, numbers,
    text, and lists and dicts of these. `notes` counts over the trial. `w_re` is the global model
    that the updates are from, `workers` are the identities of those who sent them, in ascending
    order, for a user's own code the numbers of `Numbering`, and `layers` says which parameters
    belong together, a weight or a bias each.

    Of a server with a small data set of its own, `root` is its own update from `w_re`, computed as
    a worker's, and `judge` gives error rates and mean losses, float64 (k,), of models (k, d) there.
    """

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    memory: dict[str, Any] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Notes)
    w_re: np.ndarray | None = None  # float32 (d,); zeros where nobody told
    workers: np.ndarray | None = None  # int (m,); 0..m-1 where nobody told
    layers: tuple[slice, ...] | None = None  # of d; all in one where nobody told
    root: np.ndarray | None = None  # float32 (d,)
    judge: Judge | None = None
    d: int | None = None  # of the updates that memory is of

    def copied(self, **changes: Any) -> ServerState:
        """Return a state to query with: what a rule moves on is a copy, what it reads may change.

        The judge is the same: models and data sets are not copied.
        """
        moved = {"rng", "memory", "notes"} - changes.keys()
        return replace(self, **{one: copy.deepcopy(getattr(self, one)) for one in moved}, **changes)

    def senders(self, m: int) -> np.ndarray:
        """Who sent m updates, int (m,): the first of the workers, and then nobody's numbers."""
        senders = np.arange(0) if self.workers is None else np.asarray(self.workers)[:m]
        nobody = senders.max(initial=-1) + 1 + np.arange(m - len(senders))
        return np.concatenate([senders, nobody])

    def told(self, asked: tuple[str, ...], rows: np.ndarray, user: str) -> dict[str, Any]:
        """What `user` is given of what it asks for, c and beta apart, with updates `rows` (m, d).

        Arrays are its own copies, but for its memory. Where a query has another number of rows than
        there are workers, these are the first so many, and then nobody's. Raises `BadInput` where
        that takes examples of the server's own, and there are none.
        """
        m, d = rows.shape
        if "memory" in asked:
            if self.memory and self.d not in (None, d):
                wrong = f"its state is of updates of d = {self.d}, these have d = {d}"
                raise BadInput(f"{user}: {wrong}; give it a new ServerState.")
            self.d = d
        for name in of_root_data(asked):
            if getattr(self, name) is None:
                do = f"give ServerState({name}=...) or, in a trial, --root-size 100"
                raise lacks_root_data(user, name, do)
        known: dict[str, Any] = {name: value for name, value in vars(self).items() if name in asked}
        if "w_re" in known:
            w_re = np.zeros(d) if self.w_re is None else self.w_re
            known["w_re"] = as_numbers(w_re, (d,), user, "w_re").copy()
        if "workers" in known:
            known["workers"] = self.senders(m)
        if "layers" in known:
            known["layers"] = _in_order(self.layers or [slice(d)], d, user)
        if "root" in known:
            known["root"] = as_numbers(self.root, (d,), user, "root").copy()
        return known


def as_state(state: object, user: str) -> ServerState | None:
    """Return what was given as a state, or None for none; `BadInput` for anything else."""
    if state is None or isinstance(state, ServerState):
        return state
    raise BadInput(f"{user}: state is {shown(state)}; give a ServerState, made once for a trial.")


def _in_order(layers: Sequence[slice], d: int, user: str) -> tuple[slice, ...]:
    """The layers from the first on; `BadInput` unless they hold each of d parameters once."""
    ends = sorted(layer.indices(d)[:2] for layer in layers)
    if [start for start, _ in ends] + [d] != [0] + [stop for _, stop in ends]:
        told = ", ".join(f"{start}:{stop}" for start, stop in ends)
        raise BadInput(f"{user}: layers are {told}; they must hold each of {d} parameters once.")
    return tuple(slice(start, stop) for start, stop in ends)
