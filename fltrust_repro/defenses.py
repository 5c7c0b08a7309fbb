"""Defenses (Section 5): which local models the master device removes before it aggregates.

A defense judges every worker by two global models on a small validation set, A with the worker's
update among those aggregated and B without it; `E_A - E_B` is its error rate impact, `L_A - L_B`
its loss impact. Ties are broken at random: the compromised workers come first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fltrust_repro.aggregation import Rule
from fltrust_repro.doors import lent_parts, take_in
from fltrust_repro.errors import BadInput
from fltrust_repro.parameters import check_called
from fltrust_repro.registry import Registry, check_named, summary

VALIDATION_EXAMPLES = 100  # Section 5: drawn uniformly at random from the testing examples

Judge = Callable[[Any], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Suspicion:
    """What a defense is given in one iteration; NDArrays are taken, too."""

    updates: np.ndarray  # float32 (m, d), as received from the workers
    w_re: np.ndarray  # float32 (d,), the global model they started from
    rule: Rule
    c: int  # as the rule takes it; beta likewise
    beta: int
    judge: Judge  # models (k, d) -> error rates and mean losses on the validation set, (k,) each
    rng: np.random.Generator  # for ties
    found: dict[str, Any] = field(default_factory=dict)  # of these updates; no draw changes it

    def __post_init__(self) -> None:
        take_in(self, "a defense", "updates")
        asked = self.rule.name, self.c, self.beta, self.judge
        known, given = self.found.get("asked"), (self.updates, self.w_re)
        if asked != known or not all(map(np.array_equal, given, self.found["given"])):
            # Kept, since a plug-in may change its copies; in place where nobody found anything yet.
            found = self.found if known is None else {}
            found.update(asked=asked, given=given)
            object.__setattr__(self, "found", found)

    @property
    def impacts(self) -> tuple[np.ndarray, np.ndarray]:
        """Error rate impact and loss impact of each worker, float64 (m,) each."""
        if "impacts" not in self.found:
            self.found["impacts"] = self._impacts()
        errors, losses = self.found["impacts"]
        return errors.copy(), losses.copy()

    def _impacts(self) -> tuple[np.ndarray, np.ndarray]:
        updates, w_re = self.found["given"]
        included = self.rule(updates, c=self.c, beta=self.beta)
        excluded = self.rule.without_each(updates, c=self.c, beta=self.beta)
        changes = np.concatenate([included[None], excluded.aggregates])
        errors, losses = self.judge(w_re + changes)
        # Finite, so that two infinite losses make an impact of 0 and not NaN.
        losses = np.minimum(losses, np.finfo(np.float32).max)
        return tuple(values[0] - values[1:][excluded.which] for values in (errors, losses))

    def largest(self, impacts: np.ndarray) -> np.ndarray:
        """Return the c workers of largest impact, equal ones in random order."""
        order = self.rng.permutation(len(impacts))
        return order[np.argsort(-impacts[order], kind="stable")][: self.c]


@dataclass(frozen=True)
class Defense:
    """A named defense: a function that returns which workers to remove, at most `most` times c."""

    name: str
    function: Callable[[Suspicion], Any]
    most: int

    def removed(self, case: Suspicion) -> np.ndarray:
        """Return which workers to remove; `BadInput` where the function tells anything else."""
        answer = self.function(lent_parts(case, self.function))
        try:
            told = np.asarray(answer.asnumpy() if hasattr(answer, "asnumpy") else answer)
        except ValueError:  # lists of different lengths
            told = np.asarray(None)
        m, most = len(case.updates), min(self.most * case.c, len(case.updates) - 1)
        if told.shape == (0,):
            return told.astype(np.int64)
        if told.ndim != 1 or told.dtype.kind not in "iu":
            problem = f"returned {told.dtype} of shape {told.shape}"
        elif told.min() < 0 or told.max() >= m:
            problem = f"returned worker {told.min() if told.min() < 0 else told.max()} of {m}"
        elif len(np.unique(told)) < told.size:
            problem = "returned a worker twice"
        elif told.size > most:
            problem = f"removed {told.size} workers of {m}"
        else:
            return told.astype(np.int64)
        raise BadInput(
            f"defense {self.name!r} {problem}; it must return which workers to remove, "
            f"whole numbers from 0 to {m - 1}, each once, and may remove {most} of them "
            f"(most = {self.most}, c = {case.c})."
        )

    @property
    def summary(self) -> str:
        """What `list` prints beside the name."""
        return summary(self.function)


defenses: Registry[Defense] = Registry("defense")


def defense(name: str, most: int = 1) -> Callable:
    """Register a function `(Suspicion) -> workers to remove`, int (k,), k <= `most` times c."""
    check_named("defense", name)
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise BadInput(f"defense {name!r} has most = {most!r}; give a whole number, at least 0.")

    def register(function: Callable[[Suspicion], np.ndarray]) -> Callable:
        check_called(f"defense {name!r}", function, ())
        defenses.add(name, Defense(name, function, most))
        return function

    return register


@defense("none", most=0)
def no_defense(case: Suspicion) -> np.ndarray:
    """Nothing is removed."""
    return np.empty(0, dtype=np.int64)


@defense("err")
def error_rate_rejection(case: Suspicion) -> np.ndarray:
    """ERR: remove the c workers of largest error rate impact."""
    return case.largest(case.impacts[0])


@defense("lfr")
def loss_function_rejection(case: Suspicion) -> np.ndarray:
    """LFR: remove the c workers of largest loss impact."""
    return case.largest(case.impacts[1])


@defense("union", most=2)
def union(case: Suspicion) -> np.ndarray:
    """Union: remove the workers that ERR or LFR removes, up to 2c."""
    return np.union1d(error_rate_rejection(case), loss_function_rejection(case))
