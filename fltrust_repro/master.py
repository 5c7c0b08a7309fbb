"""Step III of federated learning: the master device removes and aggregates (2.1, Section 5)."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fltrust_repro.backend import host_view, to_ndarray
from fltrust_repro.datasets import Dataset
from fltrust_repro.defenses import VALIDATION_EXAMPLES, Suspicion, defenses
from fltrust_repro.doors import as_numbers
from fltrust_repro.kernels import column_mean
from fltrust_repro.numbering import Numbering
from fltrust_repro.partition import root_examples
from fltrust_repro.server import Judge, ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Master
from fltrust_repro.workers import Learner

if TYPE_CHECKING:
    from mxnet.ndarray import NDArray

_ROUNDING = 1e-4  # of the mean's length: beyond what another order of summing makes


class MasterDevice:
    """The master device of one trial: its rule and defense, its own examples, what it remembers.

    `root` are the training examples that it keeps for itself, int (k,), and `state` is what it has
    for its rule. `numbers`, int (workers,), are those by which a user's own code knows the workers.
    """

    def __init__(
        self,
        setting: Setting,
        learner: Learner,
        data: Dataset,
        rngs: dict[str, np.random.Generator],
        notes: Counter[str],
        numbers: np.ndarray,
    ) -> None:
        self._setting, self._learner, self._master = setting, learner, setting.at_master
        self._numbering = Numbering(numbers) if setting.numbered else None
        self._rngs, self._asked = rngs, setting.root_data
        self.state = ServerState(rngs["rule"], notes=notes, layers=learner.layers)
        chosen = rngs["validation"].permutation(len(data.test_y))[:VALIDATION_EXAMPLES]
        validation = data.test_x[chosen], data.test_y[chosen]
        self._validation = self._judge(f"defense {setting.defense!r}", *validation)
        self.root = np.empty(0, dtype=np.int64)
        if self._asked:
            given = setting.root_size, setting.root_bias, rngs["root"]
            self.root = root_examples(data.train_y, data.classes, *given)
        if "judge" in self._asked:
            own = data.train_x[self.root], data.train_y[self.root]
            self.state.judge = self._judge(f"rule {self._master.rule.name!r}", *own)

    @property
    def trains(self) -> bool:
        """Whether somebody asks for the server's own update."""
        return "root" in self._asked

    def begin_iteration(
        self, w: NDArray, workers: np.ndarray, root: np.ndarray | None = None
    ) -> None:
        """Take down which model was sent, to whom, int (m,), and the server's own update (d,)."""
        self.state.w_re, self.state.workers, self.state.root = host_view(w), workers, root

    def seen(self, asker: np.random.Generator | None = None) -> Master:
        """What the master device would make of this iteration's updates; nothing moves by asking.

        What it draws comes for an `asker` from a generator of its own, the same for all that is
        asked in an iteration: nobody foresees the master device's draws.
        """
        state = self.state
        if asker is not None:
            state = replace(state, rng=np.random.default_rng(asker.integers(2**63)))

        def would_make(updates: np.ndarray, states: list[ServerState]) -> list[np.ndarray]:
            rows, changes = to_ndarray(updates), []
            found: dict[str, Any] = {}
            for state in states:
                ties = copy.deepcopy(self._rngs["ties"]) if asker is None else state.rng
                changes.append(self._aggregated(rows, state, ties, found)[0])
            return changes

        rule, numbering = self._master.rule, self._numbering
        rule = numbering.behind(rule) if numbering else rule
        defended = would_make if self._setting.defense != "none" else None
        return replace(self._master, rule=rule.seen_at(state), defended=defended)

    def aggregate(self, updates: NDArray, compared: bool) -> np.ndarray:
        """Return the change (d,) of the global model that the workers' updates (m, d) make.

        Where it is `compared` with the mean of what the defense leaves, the notes count both that
        and how often it is another.
        """
        state = self.state
        change, left = self._aggregated(updates, state, self._rngs["ties"], {})
        if compared:
            state.notes["compared with the mean"] += 1
            state.notes["differs from the mean"] += int(_differs(change, column_mean(left)))
        return change

    def _aggregated(
        self,
        updates: NDArray,
        state: ServerState,
        ties: np.random.Generator,
        found: dict[str, Any],
    ) -> tuple[np.ndarray, NDArray]:
        """What the rule makes of what the defense (Section 5) leaves, and the latter.

        Ties, and what the rule draws and remembers, come from and go to these. What a defense finds
        of the updates is kept in `found`, for other draws of the same; not where the rule draws.
        """
        master, c = self._master, self._setting.c_left
        if self._numbering is not None:
            rows, senders = host_view(updates), state.senders(len(updates))
            rows, numbers = self._numbering.arranged(rows, senders)
            updates, state = to_ndarray(rows), replace(state, workers=numbers)
        if self._setting.defense != "none":
            rule = master.rule.seen_at(state)
            found = {} if "rng" in rule.parameters else found
            how = master.c, master.beta, self._validation, ties, found
            case = Suspicion(updates, cast(np.ndarray, state.w_re), rule, *how)
            removed = defenses[self._setting.defense].removed(case)
            updates = to_ndarray(np.delete(host_view(updates), removed, axis=0))
            if state.workers is not None:
                state = replace(state, workers=np.delete(state.workers, removed))
        change = master.rule(updates, c=c, beta=master.beta, state=state)
        return host_view(change), updates

    def _judge(self, user: str, x: np.ndarray, labels: np.ndarray) -> Judge:
        """What tells error rates and losses of models (k, d) on examples."""
        resident, shape = self._learner.resident(x), (None, self._learner.initial.size)

        def judge(models: Any) -> tuple[np.ndarray, np.ndarray]:
            checked = as_numbers(models, shape, user, "models that it has judged")
            return self._learner.judge(checked, resident, labels)

        return judge


def _differs(change: np.ndarray, mean: np.ndarray) -> bool:
    if np.array_equal(change, mean, equal_nan=True):
        return False
    gap, length = (np.linalg.norm(a.astype(np.float64)) for a in (change - mean, mean))
    return not gap <= _ROUNDING * length < np.inf
