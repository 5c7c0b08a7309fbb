"""What the master device holds beside the updates of an iteration, for rules that ask for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fltrust_repro.errors import BadInput

ASKED = (
    "c", "beta", "rng", "memory", "notes", "w_re", "workers", "layers", "root", "judge",
)  # fmt: skip
"""What a rule or pre-aggregation may ask for by name, after the updates."""

ROOT_DATA = ("root", "judge")
"""Those of them that take examples of the server's own."""

Judge = Callable[[np.ndarray], "tuple[np.ndarray, np.ndarray]"]


@dataclass
class ServerState:
    """What the master device keeps through a trial, for rules that ask for it by name.

    `memory` is the rule's own, empty at the start: numpy arrays, numbers, text and lists of these,
    by name. `notes` counts over the trial. `w_re` is the global model that the updates are from,
    `workers` are the identities of those who sent them, in ascending order, and `layers` says which
    parameters belong together, a weight or a bias each.

    Of a server with a small data set of its own, `root` is its own update from `w_re`, computed as
    a worker's, and `judge` gives error rates and mean losses, float64 (k,), of models (k, d) there.
    """

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    memory: dict[str, Any] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    w_re: np.ndarray | None = None  # float32 (d,); zeros where nobody told
    workers: np.ndarray | None = None  # int (m,); 0..m-1 where nobody told
    layers: tuple[slice, ...] | None = None  # of d; all in one where nobody told
    root: np.ndarray | None = None  # float32 (d,)
    judge: Judge | None = None

    def told(self, asked: tuple[str, ...], rows: np.ndarray, user: str) -> dict[str, Any]:
        """What `user` is given of what it asks for, c and beta apart, with updates `rows` (m, d).

        Raises `BadInput` where that takes examples of the server's own, and there are none.
        """
        m, d = rows.shape
        known = {name: value for name, value in vars(self).items() if name in asked}
        if missing := [name for name in ROOT_DATA if name in known and known[name] is None]:
            raise BadInput(
                f"{user} asks for {missing[0]}, which takes examples of the server's own; give "
                f"ServerState({missing[0]}=...) or, in a trial, --root-size 100."
            )
        unknown = {
            "w_re": lambda: np.zeros(d, dtype=np.float32),
            "workers": lambda: np.arange(m),
            "layers": lambda: (slice(0, d),),
        }
        empty = {name for name in unknown if name in known and known[name] is None}
        return {**known, **{name: unknown[name]() for name in empty}}
