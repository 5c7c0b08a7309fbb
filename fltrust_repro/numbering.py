"""How the master device knows the workers where a user's own code looks at their updates.

A trial counts its workers so that the compromised ones come first. A rule that, on purpose or by a
tie, prefers the first or the last rows would be told thereby who attacks. So where a rule, a
pre-aggregation or a defense is not built in, the master device knows workers by numbers, drawn once
per trial, and their updates come in the order of these: who remembers what a worker sent still can.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fltrust_repro.aggregation import Rule


@dataclass(frozen=True)
class Numbering:
    """The numbers (workers,) of workers by identity, each of 0.. once; nobody else has another."""

    numbers: np.ndarray

    def arranged(self, updates: np.ndarray, workers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a copy of updates (m, d) in the order of the workers' numbers, and these (m,)."""
        count = len(self.numbers)
        numbers = np.append(self.numbers, np.arange(count, workers.max(initial=0) + 1))[workers]
        order = np.argsort(numbers)
        return updates[order], numbers[order]

    def behind(self, rule: Rule) -> Rule:
        """Return the rule as an attacker asks it, who knows workers by identity."""

        @functools.wraps(rule.function)
        def numbered(updates: np.ndarray, workers: np.ndarray, **known: Any) -> np.ndarray:
            updates, numbers = self.arranged(updates, workers)
            own = {"workers": numbers} if "workers" in rule.parameters else {}
            return rule.function(updates, **known, **own)

        asked = tuple(dict.fromkeys([*rule.parameters, "workers"]))
        return replace(rule, function=numbered, parameters=asked, leave_one_out=None)
