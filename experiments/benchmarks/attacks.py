"""The attacks at the size of LR on MNIST, and the Krum attack's search for lambda done plainly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import images
import numpy as np
from measure import Row, in_fresh_process, peak, timed
from stages import Iteration

from fltrust_repro.aggregation import Crowd
from fltrust_repro.attacks import (
    KrumProblem,
    attacks,
    changing_direction,
    krum_problem,
    largest_lambda,
)
from fltrust_repro.backend import host_view
from fltrust_repro.distances import squared_distances
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Round
from fltrust_repro.training import generator

SECTION = "attacks"
SEARCH, ANEW = "search for lambda", "distances anew at each halving"
_CASES = (
    ("gaussian", "krum", "full"),
    ("krum", "krum", "full"),
    ("krum", "krum", "partial"),
    ("trimmed-mean", "trimmed-mean", "full"),
    ("trimmed-mean", "trimmed-mean", "partial"),
    ("tailored", "trimmed-mean", "full"),
    ("tailored", "krum", "full"),
)


@dataclass(frozen=True)
class _Anew(KrumProblem):
    """The same problem, each try with crafted models that stand among the benign ones."""

    models: np.ndarray
    direction: np.ndarray

    def picks_crafted(self, scale: float, copies: int, assumed: int) -> bool:
        """Whether Krum picks w'_1, by the distances between all models."""
        crafted = np.tile(-np.float32(scale) * self.direction, (copies, 1))
        everyone = np.concatenate([crafted, self.models])
        neighbours = max(len(everyone) - assumed - 2, 1)
        return Crowd(squared_distances(everyone)).select(neighbours)[0] < copies


def _search(step: Round, anew: bool) -> float:
    """The Krum attack's lambda (3.2), from the known updates on."""
    direction = changing_direction(step)
    problem, _ = krum_problem(step, direction)
    if anew:
        models = step.known if step.partial else step.known[step.c :]
        problem = _Anew(**vars(problem), models=models, direction=direction)
    return largest_lambda(problem, step)[0]


def _measure(setting: Setting, budget: float, data_dir: Path | None) -> list[Row]:
    iteration = Iteration(setting, data_dir)
    iteration.sample()
    iteration.train()
    c, rng = setting.compromised, generator(0, "attack")
    updates, knowledge = host_view(iteration.updates), setting.knowledge or "full"
    known = updates[:c] if knowledge == "partial" else updates
    parameters, master = setting.parameters(), setting.at_master
    step = Round(known, c, iteration.w, knowledge, rng, master, parameters)

    def row(case: str, call: Callable[[], Any], who: str = "fltrust_repro", note: str = "") -> Row:
        call()
        with peak() as most:
            figures = timed(call, budget)
        m, d = iteration.updates.shape
        return Row(SECTION, case, who, m, d, memory=most.memory, note=note, **figures)

    told = [setting.attack, f"against {setting.rule}" * (setting.attack == "tailored")]
    name = ", ".join(filter(None, [*told, setting.knowledge]))
    rows = [row(name, lambda: attacks[setting.attack].crafted(step))]
    if setting.attack == "krum":
        fast, slow = _search(step, anew=False), _search(step, anew=True)
        note = "same result" if np.isclose(fast, slow) else f"lambda {slow:.3g}, not {fast:.3g}"
        case = f"{SEARCH}, {setting.knowledge}"
        rows.append(row(case, lambda: _search(step, anew=False)))
        rows.append(row(case, lambda: _search(step, anew=True), ANEW, note))
    return rows


def _measure_all(settings: list[Setting], budget: float, data_dir: Path | None) -> list[Row]:
    return [row for setting in settings for row in _measure(setting, budget, data_dir)]


def rows(quick: bool, data_dir: Path | None, say: Callable[[str], None]) -> list[Row]:
    """Measure all attacks."""
    say("attacks")
    settings = [
        images.lr_setting(quick, data_dir, attack=attack, rule=rule, knowledge=knowledge)
        for attack, rule, knowledge in _CASES
    ]
    return in_fresh_process(_measure_all, settings, 0.05 if quick else 1.0, data_dir)
