"""One LR/MNIST iteration with each defense, against the same iteration without.

m = 100, under the partial knowledge attack crafted for the rule; the evaluation on the test set is
left out. NAIVE is ERR with m aggregations one by one, as its text reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import images
from measure import Row, figures, in_fresh_process, peak, seconds

from fltrust_repro import training
from fltrust_repro.aggregation import rules
from fltrust_repro.backend import context
from fltrust_repro.settings import Setting

SECTION = "defenses"
ATTACKS = {"krum": "krum", "trimmed-mean": "trimmed-mean", "median": "trimmed-mean"}
PLAIN, NAIVE = "no defense", "err, m aggregations"
DEFENSES = {PLAIN: "none", "err": "err", "lfr": "lfr", "union": "union", NAIVE: "err"}
_MOST = 40
_NAIVE_MOST = 5


def _measure(setting: Setting, who: str, iterations: int, data_dir: Path | None) -> Row:
    federation = training.Federation(setting, 0, context("cpu"), data_dir)
    w = federation.learner.initial

    def iterate(iteration: int) -> None:
        nonlocal w
        w, _ = federation.iterate(w, iteration)
        w.wait_to_read()

    iterate(1)  # compiles
    with peak() as most:
        times = [seconds(lambda k=k: iterate(k)) for k in range(2, iterations + 2)]
    m, d = setting.workers, w.size
    return Row(SECTION, setting.rule, who, m, d, memory=most.memory, **figures(times))


def _measure_all(settings: dict[str, Setting], quick: bool, data_dir: Path | None) -> list[Row]:
    """All defenses of one rule."""
    found = []
    for who, setting in settings.items():
        most = 1 if quick else _MOST
        if who == NAIVE:  # the last one, as the rule loses its shortcut
            plain = dataclasses.replace(rules[setting.rule], leave_one_out=None)
            rules._entries[setting.rule] = plain
            most = min(most, _NAIVE_MOST)
        found.append(_measure(setting, who, most, data_dir))
    return found


def rows(quick: bool, data_dir: Path | None, say: Callable[[str], None]) -> Iterator[Row]:
    """Measure every rule with every defense, each rule in a process of its own."""
    for rule, attack in list(ATTACKS.items())[: 1 if quick else None]:
        say(f"defenses: {rule}")
        fields = {"rule": rule, "attack": attack, "knowledge": "partial"}
        settings = {
            who: images.lr_setting(quick, data_dir, defense=defense, **fields)
            for who, defense in DEFENSES.items()
        }
        yield from in_fresh_process(_measure_all, settings, quick, data_dir)
